"""Five imagined hospitals: their contrasts, diseases, scanners and protocols differ as real datasets do."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from monai_ext.data.phantoms.sequences import Sequence, nulling_time
from monai_ext.data.phantoms.tissues import tissues
from monai_ext.modalities import MODALITIES

_SPIN_ECHO = {1.5: Sequence("se", tr=520, te=12, mt=0.3, fat=0.9), 3.0: Sequence("se", tr=620, te=9, mt=0.3, fat=0.9)}
_MPRAGE = {
    1.5: Sequence("mprage", tr=2000, te=3.5, ti=950, flip=8, fat=0.9),
    3.0: Sequence("mprage", tr=2300, te=3, ti=900, flip=9, fat=0.8),
}
_T1_FLAIR = {
    1.5: Sequence("ir", tr=1700, te=14, ti=800, mt=0.2, fat=0.8),
    3.0: Sequence("ir", tr=1900, te=12, ti=980, mt=0.2, fat=0.8),
}
_T2 = {1.5: Sequence("se", tr=4200, te=100, mt=0.3, fat=0.9), 3.0: Sequence("se", tr=4800, te=95, mt=0.3, fat=0.8)}
_LONG_T2 = {
    1.5: Sequence("se", tr=8200, te=100, mt=0.3, fat=0.9),
    3.0: Sequence("se", tr=5700, te=100, mt=0.3, fat=0.8),
}
_PD = {1.5: Sequence("se", tr=8200, te=8, mt=0.3, fat=0.9), 3.0: Sequence("se", tr=5700, te=8, mt=0.3, fat=0.8)}
_FLAIR = {  # TI: see site_protocol
    1.5: Sequence("ir", tr=8000, te=115, mt=0.15, fat=0.5, flow=0.05),
    3.0: Sequence("ir", tr=9000, te=105, mt=0.15, fat=0.3, flow=0.05),
}
_DWI = {1.5: Sequence("se", tr=5000, te=90, b=1000, fat=0.05), 3.0: Sequence("se", tr=5000, te=75, b=1000, fat=0.05)}


@dataclass(frozen=True)
class Site:
    """What is particular to a site; `level`: white matter's stored value (ADC: that of 1e-3 mm^2/s)."""

    name: str
    contrasts: tuple[str, ...]
    lesion: str
    layout: str
    stripped: bool
    fields: tuple[float, ...]
    orientation: str
    extent: tuple[float, float, float]  # mm
    level: Mapping[str, float]
    level_spread: float  # spreads are log-normal
    protocol_spread: float
    noise: float  # standard deviation, as a share of white matter's signal
    bias: float  # standard deviation of the logarithm of the coil's gain
    ageing: tuple[float, float]  # wider sulci, changes of white matter: drawn from this range
    t1: Mapping[float, Sequence] = field(default_factory=lambda: _SPIN_ECHO)
    t2: Mapping[float, Sequence] = field(default_factory=lambda: _T2)
    subsets: bool = False  # a subject may lack some contrasts


SITES = {
    site.name: site
    for site in (
        Site(
            name="healthy", contrasts=("T1", "T2", "PD"), lesion="none", layout="ixi", stripped=False,
            fields=(1.5, 1.5, 3.0), orientation="RAS", extent=(208, 256, 192),
            level={"T1": 420, "T2": 260, "PD": 700}, level_spread=0.2, protocol_spread=0.03,
            noise=0.03, bias=0.12, ageing=(0, 0.35), t1=_MPRAGE, t2=_LONG_T2,
        ),
        Site(
            name="glioma", contrasts=("T1", "T2", "T1C", "FLAIR", "DWI", "ADC"), lesion="glioma",
            layout="bids", stripped=False, fields=(3.0,), orientation="LAS", extent=(208, 256, 192),
            level={"ADC": 1000}, level_spread=0.15, protocol_spread=0.02,
            noise=0.03, bias=0.15, ageing=(0, 0.4), t1=_T1_FLAIR,
        ),
        Site(
            name="brats", contrasts=("T1", "T2", "T1C", "FLAIR"), lesion="glioma", layout="brats2023",
            stripped=True, fields=(1.5, 3.0), orientation="LPS", extent=(240, 240, 155),
            level={}, level_spread=0.5, protocol_spread=0.12, noise=0.025, bias=0.06, ageing=(0, 0.6), t1=_MPRAGE,
        ),
        Site(
            name="stroke", contrasts=("FLAIR", "DWI", "ADC"), lesion="stroke", layout="bids", stripped=True,
            fields=(1.5, 3.0), orientation="RAS", extent=(200, 232, 168),
            level={"DWI": 170, "FLAIR": 220, "ADC": 1}, level_spread=0.25, protocol_spread=0.06,
            noise=0.05, bias=0.1, ageing=(0.3, 1.0),
        ),
        Site(
            name="immune", contrasts=("T1", "T2", "FLAIR", "ADC"), lesion="plaques",
            layout="folder", stripped=False, fields=(3.0,), orientation="LPS", extent=(208, 256, 192),
            level={"T1": 900, "T2": 700, "FLAIR": 350, "ADC": 1000}, level_spread=0.2, protocol_spread=0.05,
            noise=0.04, bias=0.18, ageing=(0, 0.5), subsets=True,
        ),
    )
}  # fmt: skip


def available(site: Site, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw the contrasts that one subject has.

    Args:
        site: whose `subsets` says whether some may be missing.
        rng: of the lot; nothing is drawn where all are there always.

    Returns:
        All of the site's, or at `subsets` sites at least two of them, in the site's order.
    """
    if not site.subsets or len(site.contrasts) < 3:
        return site.contrasts
    missing = rng.choice(len(site.contrasts), size=rng.integers(0, len(site.contrasts) - 1), replace=False)
    return tuple(name for index, name in enumerate(site.contrasts) if index not in missing)


def site_protocol(site: Site, rng: np.random.Generator, *, tesla: float) -> dict[str, Sequence]:
    """Draw every contrast's sequence at a site for one subject: the site's own, a little off.

    Args:
        site: whose protocol is varied.
        rng: of all that is drawn.
        tesla: the field, 1.5 or 3.

    Returns:
        A sequence for each of MODALITIES; T1C's is T1's with contrast agent, ADC's is DWI's.

    Raises:
        KeyError: the site has no protocol for this field.
    """
    t1 = site.t1[tesla]
    nominal = {
        "T1": t1, "T2": site.t2[tesla], "PD": _PD[tesla], "T1C": t1,
        "FLAIR": _FLAIR[tesla], "DWI": _DWI[tesla], "ADC": _DWI[tesla],
    }  # fmt: skip

    def jitter(scale: float = 1.0) -> float:
        return float(np.exp(scale * site.protocol_spread * np.clip(rng.normal(), -2, 2)))

    drawn = {
        name: replace(nominal[name], tr=nominal[name].tr * jitter(0.5), te=nominal[name].te * jitter())
        for name in MODALITIES
    }
    if t1.kind in ("ir", "mprage"):
        drawn["T1"] = replace(drawn["T1"], ti=t1.ti * jitter(0.3))
    drawn["T1C"] = replace(drawn["T1"], contrast_agent=True)  # before and after: one protocol
    drawn["ADC"] = drawn["DWI"]
    null = nulling_time(tissues(tesla)["ventricle"], tr=drawn["FLAIR"].tr)
    drawn["FLAIR"] = replace(drawn["FLAIR"], ti=null * float(np.exp(rng.normal(0, 0.02))))
    return drawn
