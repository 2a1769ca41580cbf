"""How near rigid registration comes to a known offset, and how long it takes.

    python tests/benchmarks/registration.py --cases 100

Each case is another phantom: T2 is moved against T1 by up to 15 mm and 12 degrees, registered to it, and the
residual is the distance between where the truth and the result put the brain's voxels, averaged over the brain.
"""

import argparse
import sys
import time

import numpy as np
from nibabel.affines import apply_affine

from monai_ext.data.phantoms.patients import Phantom, make_phantom
from monai_ext.data.phantoms.sites import SITES
from monai_ext.data.registration import register_rigid

LIMIT = 0.5  # mm


def residual(phantom: Phantom, contrast: str, found: np.ndarray) -> tuple[float, float]:
    """The mean distance to the truth over the brain in mm, and how far off the headers alone were."""
    brain = apply_affine(phantom.brain.affine, np.argwhere(phantom.brain.array > 0.5))
    truth = apply_affine(phantom.offsets[contrast], brain)
    apart = [np.linalg.norm(apply_affine(matrix, brain) - truth, axis=1).mean() for matrix in (found, np.eye(4))]
    return float(apart[0]), float(apart[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--site", choices=sorted(SITES), default="healthy")
    parser.add_argument("--reference", default="T1")
    parser.add_argument("--moving", default="T2")
    parser.add_argument("--randomize", action="store_true", help="tissues and sequences beyond any one scanner's")
    args = parser.parse_args()

    errors, seconds = [], []
    for index in range(args.cases):
        phantom = make_phantom(
            SITES[args.site],
            index=index,
            contrasts=(args.reference, args.moving),
            misalign=(15.0, 12.0),
            randomize=args.randomize,
        )
        start = time.perf_counter()
        found = register_rigid(phantom.images[args.reference], phantom.images[args.moving])
        seconds.append(time.perf_counter() - start)
        error, before = residual(phantom, args.moving, found)
        errors.append(error)
        print(f"case {index:3d}: {before:5.1f} mm apart, then {error:.3f} mm, {seconds[-1]:.1f} s", file=sys.stderr)
    within = sum(error < LIMIT for error in errors)
    print(f"{args.moving} to {args.reference}, site {args.site}, 2 mm, up to 15 mm and 12 degrees")
    print(f"{within} of {args.cases} within {LIMIT} mm; median {np.median(errors):.3f}, worst {max(errors):.3f} mm")
    print(
        f"{np.median(seconds):.1f} s each, the first {seconds[0]:.1f} s (ITK loads), the slowest {max(seconds):.1f} s"
    )
    return 0 if within >= 0.95 * args.cases else 1


if __name__ == "__main__":
    sys.exit(main())
