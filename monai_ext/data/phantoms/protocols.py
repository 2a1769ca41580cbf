"""What scanners play: protocols that hospitals have, protocols that none has, and the one that targets are made by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from monai_ext.data.phantoms.sequences import Sequence, nulling_time
from monai_ext.data.phantoms.tissues import Tissue

# Of targets: white matter's value, so that what is brightest (fluid, enhancement, infarct) stays below 1.
WHITE = {"T1": 0.60, "T2": 0.22, "PD": 0.60, "T1C": 0.40, "FLAIR": 0.45, "DWI": 0.30}
ADC_TOP = 3.3  # 1e-3 mm^2/s, the ADC that is 1
FIELD = 3.0  # tesla, of the canonical protocol

# One sharp protocol a contrast, the same for every subject: what a network makes of any scanner's images.
CANONICAL: dict[str, Sequence] = {
    "T1": Sequence("mprage", tr=2300, te=3, ti=900, flip=9, fat=0.8),
    "T1C": Sequence("mprage", tr=2300, te=3, ti=900, flip=9, fat=0.8, contrast_agent=True),
    "T2": Sequence("se", tr=5000, te=95, mt=0.3, fat=0.8),
    "PD": Sequence("se", tr=4500, te=14, mt=0.2, fat=0.8),
    "FLAIR": Sequence("ir", tr=9000, te=110, ti=2400, mt=0.5, fat=0.4),
    "DWI": Sequence("se", tr=6000, te=75, b=1000, fat=0.05),
    "ADC": Sequence("se", tr=6000, te=75, b=1000, fat=0.05),
}


@dataclass(frozen=True)
class Echoes:
    """What T2 does to images, which decides how bright lesions are: echo times in ms.

    `flair` is that of the canonical FLAIR; `t2` is the shortest that hospitals play for a T2-weighted scan.
    """

    flair: float = CANONICAL["FLAIR"].te
    t2: float = 55.0

    def __post_init__(self) -> None:
        if not (60 <= self.flair <= 300 and 20 <= self.t2 <= 100):
            raise ValueError(
                "an echo of FLAIR is 60 to 300 ms and the shortest of T2 20 to 100 ms, "
                f"got {self.flair:g} and {self.t2:g}"
            )

    @property
    def canonical(self) -> dict[str, Sequence]:
        """The canonical protocol with its FLAIR's echo."""
        return CANONICAL | {"FLAIR": replace(CANONICAL["FLAIR"], te=self.flair)}


USUAL = Echoes()


def draw_protocol(
    rng: np.random.Generator, table: Mapping[str, Tissue], *, tesla: float, wide: bool, shortest_t2: float = Echoes.t2
) -> dict[str, Sequence]:
    """Draw every contrast's sequence for one subject.

    Args:
        rng: of all that is drawn.
        table: the person's tissues; FLAIR's inversion time goes by its "ventricle".
        tesla: the field, by which the times that weight by T1 grow.
        wide: False for the times that hospitals play, True for a wider range of them.
        shortest_t2: the shortest echo in ms of hospitals' T2-weighted scans.

    Returns:
        A sequence for each of MODALITIES; T1C's is T1's with contrast agent, ADC's is DWI's.
    """
    slow = (tesla / 3) ** 0.3  # T1 grows with the field, and with it the times that weight by it

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def span(low: float, high: float, wider: float = 1.35) -> float:
        return between(low / wider, high * wider) if wide else between(low, high)

    mt = float(rng.uniform(0, 0.7))  # of multi-slice scans: the more slices the more of it
    fat = float(rng.uniform(0.5, 1.6))  # above 1: scalps lie at the coil
    kind = str(rng.choice(("se", "mprage", "spgr", "ir"), p=(0.3, 0.4, 0.15, 0.15)))
    if kind == "se":
        t1 = Sequence("se", tr=span(420, 700) * slow, te=span(7, 15, 1.2), mt=mt, fat=fat)
    elif kind == "mprage":
        flip, train = span(7, 12), int(rng.integers(120, 200))
        t1 = Sequence(
            "mprage", tr=span(1800, 2500, 1.1) * slow, te=span(2, 4.5), ti=span(820, 1150, 1.1) * slow, flip=flip,
            train=train, echo_spacing=min(span(5.5, 8.5), 1500 * slow / train), fat=fat,
        )  # fmt: skip
    elif kind == "spgr":
        t1 = Sequence("spgr", tr=span(9, 30), te=span(2, 5), flip=span(15, 30, 1.2), fat=fat)
    else:
        t1 = Sequence(
            "ir", tr=span(1700, 2600, 1.1) * slow, te=span(8, 18), ti=span(720, 1000, 1.1) * slow, mt=mt, fat=fat
        )
    flair_tr = span(6500, 11000, 1.15)
    null = nulling_time(table["ventricle"], tr=flair_tr)
    flair = Sequence(
        "ir", tr=flair_tr, te=span(80, 145, 1.2), ti=null * float(np.exp(rng.normal(0, 0.06 if wide else 0.035))),
        mt=mt, fat=float(rng.uniform(0.05, 0.8)), flow=float(rng.uniform(0, 0.14)),
        inversion=float(rng.uniform(0.9, 1)),
    )  # fmt: skip
    dwi = Sequence(
        "se", tr=span(3000, 8000), te=span(60, 105, 1.15), b=float(rng.choice((1000, 1000, 1000, 800, 1200))), fat=0.05
    )
    if wide:
        dwi = replace(dwi, b=between(600, 1500))
    return {
        "T1": t1,
        "T2": Sequence("se", tr=span(2800, 6500), te=span(shortest_t2, 110), mt=mt, fat=fat),
        "PD": Sequence("se", tr=span(2200, 7500), te=span(8, 30), mt=mt, fat=fat),
        "T1C": replace(t1, contrast_agent=True),  # before and after: one protocol
        "FLAIR": flair,
        "DWI": dwi,
        "ADC": dwi,
    }


# Of the canonical FLAIR, as shares of white matter: fluid of narrow sulci, which thick slices and flow fill, and of
# wide cisterns.
CANONICAL_FLOW = 0.5
WIDE_FLUID = 0.25
