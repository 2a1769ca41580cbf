"""How scanners shade the contrasts of one person, and whether alike: a gain of second order in the white matter.

    python tests/benchmarks/shading.py --root SCANS --out OUT --exclude "*.mha" "*.dcm"

SCANS is as `real.py` has it, and OUT keeps the cases as they are prepared. The logarithm of each contrast's grey
values in the white matter, which T1 shows, is fitted by a polynomial of second order in space, without what lies far
from it. Printed, a row a case: the fit's standard deviation over the brain for each contrast, and the correlation of
each two contrasts' there. What two sources show alike is the coil's; what one shows alone may be tissue or sequence.
"""

from itertools import combinations

import numpy as np
from cases import parser_of, tell_each
from likeness import Case, second_order
from numpy.typing import NDArray

ROUNDS = 5  # of the fit, each without what lay far from the one before
FAR = 2.0  # medians of the distances
DARK = 0.05  # of white: what has no logarithm worth fitting


def main() -> int:
    args = parser_of(__doc__).parse_args()
    return tell_each(args, alike, wanted=lambda names: "T1" in names and len(names) > 1)


def alike(case: Case) -> str:
    """How much each contrast is shaded, and how alike each two."""
    shadings = {name: shading(case, name) for name in case.images}
    spread = ", ".join(f"{name} {values.std():.2f}" for name, values in shadings.items())
    pairs = ", ".join(
        f"{one}-{other} {np.corrcoef(shadings[one], shadings[other])[0, 1]:+.2f}"
        for one, other in combinations(shadings, 2)
    )
    return f"shaded by {spread}; alike {pairs}"


def shading(case: Case, name: str) -> NDArray[np.float64]:
    """The logarithm of the contrast's gain at each voxel of the brain."""
    terms = [np.broadcast_to(term, case.brain.shape) for term in second_order(case.brain.shape)]
    white = case.white_matter & (case.images[name] > DARK)
    columns = np.stack([*(term[white] for term in terms), np.ones(int(white.sum()))], 1)
    values = np.log(case.images[name][white].astype(np.float64))
    kept = np.ones(len(values), bool)
    for _ in range(ROUNDS):
        found = np.linalg.lstsq(columns[kept], values[kept], rcond=None)[0]
        distance = np.abs(values - columns @ found)
        kept = distance <= FAR * np.median(distance)
    return np.asarray(sum(weight * term[case.brain] for weight, term in zip(found[:-1], terms, strict=True)))


if __name__ == "__main__":
    raise SystemExit(main())
