"""How bright cortex is on each contrast of a person, against white matter; of phantoms too.

    python tests/benchmarks/cortex.py --root SCANS --out OUT --exclude "*.mha" "*.dcm" [--pool POOL]

SCANS is as `real.py` has it, and OUT keeps the cases as they are prepared. White matter is what T1 shows brightest,
cortex what it shows at 0.6 to 0.85 of that, without fluid, lesions and the outer 4 mm of the brain. Printed, a row a
case: the cortex's median on each contrast as a share of white matter's, and fluid's. POOL is phantoms of
`phantom --stream`: percentiles over those with a T1, T2 and FLAIR, the FLAIR target too, seen by the scanned T1.
"""

from pathlib import Path

import numpy as np
from cases import parser_of, tell_each
from likeness import Case

from monai_ext.data.datalist import read_datalist
from monai_ext.data.volumes import read_volume

GREY = (0.6, 0.85)  # of white matter, on T1


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--pool", type=Path, help="phantoms to lay beside them")
    args = parser.parse_args()
    status = tell_each(args, shares, wanted=lambda names: {"T1", "T2"} <= set(names))
    if args.pool:
        tell(args.pool)
    return status


def shares(case: Case) -> str:
    """Of white matter, cortex and fluid on each contrast."""
    return "cortex (fluid) " + ", ".join(f"{name} {cortex:.2f} ({fluid:.2f})" for name, cortex, fluid in levels(case))


def tell(pool: Path) -> None:
    """Print what a pool's phantoms have."""
    found: dict[str, list[float]] = {}
    for subject in read_datalist(pool / "datalist.json").splits["training"]:
        if not {"T1", "T2", "FLAIR"} <= set(subject.images):
            continue
        images = {name: read_volume(subject.images[name]) for name in ("T1", "T2", "FLAIR")}
        images["FLAIR target"] = read_volume(subject.targets["FLAIR"])
        masks = {name: read_volume(path, allow_constant=True).array > 0 for name, path in subject.masks.items()}
        scans = {name: volume.array for name, volume in images.items()}
        case = Case(subject.name, scans, masks["brain"], masks.get("lesion"), images["T1"].spacing)
        for name, cortex, _ in levels(case):
            found.setdefault(name, []).append(cortex)
    for name, values in found.items():
        percentiles = ", ".join(f"{value:.2f}" for value in np.percentile(values, (5, 25, 50, 75, 95)))
        alike = np.corrcoef(values, found["T2"])[0, 1]
        print(f"{len(values)} phantoms: cortex on {name} {percentiles} (percentiles 5 to 95), r {alike:.2f} with T2's")


def levels(case: Case) -> list[tuple[str, float, float]]:
    """Each contrast, cortex and fluid as shares of white matter."""
    white, fluid = case.white_matter, case.fluid
    assert fluid is not None  # there are T1 and T2
    t1 = case.images["T1"] / np.median(case.images["T1"][white])
    cortex = case.inner & ~fluid & (t1 > GREY[0]) & (t1 < GREY[1])
    if case.lesion is not None:
        cortex &= ~case.lesion
    return [
        (name, *(float(np.median(image[part]) / np.median(image[white])) for part in (cortex, fluid & case.inner)))
        for name, image in case.images.items()
    ]


if __name__ == "__main__":
    raise SystemExit(main())
