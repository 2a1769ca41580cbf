"""How long a phantom takes on one core, from nothing to files.

    python tests/benchmarks/phantom.py [--contrasts T1,T2,FLAIR] [--spacings 1 2] [--site glioma]

The template is read once a process and counts with the first subject, which is printed apart. The median of the
others counts, written files and truth included.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from monai_ext.data.phantoms.command import Job, make_subject
from monai_ext.data.phantoms.sites import SITES
from monai_ext.modalities import canonical
from monai_ext.runtime import keep_freed_memory

GOALS = {1.0: 6.0, 2.0: 1.0}  # mm -> seconds of three contrasts


def main() -> int:
    """Print the seconds a subject; the status is 1 where that misses a goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument("--spacings", type=float, nargs="+", default=list(GOALS), help="mm")
    parser.add_argument("--contrasts", default="T1,T2,FLAIR")
    parser.add_argument("--site", choices=sorted(SITES), default="glioma")
    args = parser.parse_args()
    if args.subjects < 2:
        raise ValueError(f"--subjects must be at least 2, got {args.subjects}")
    torch.set_num_threads(1)
    keep_freed_memory()  # as every process that makes phantoms does
    contrasts = tuple(canonical(name) for name in args.contrasts.split(","))
    missed = False
    for spacing in args.spacings:
        with tempfile.TemporaryDirectory() as folder:
            sides = (spacing,) * 3
            jobs = [
                Job(Path(folder), args.site, "bids", index, 0, sides, contrasts, (0.0, 0.0), randomize=False)
                for index in range(args.subjects)
            ]
            first, *others = [make_subject(job)[1] for job in jobs]
        median, goal = float(np.median(others)), GOALS.get(spacing)
        print(
            f"{len(contrasts)} contrasts at {spacing:g} mm, site {args.site}, one thread: {median:.2f} s a subject",
            end=", ",
        )
        print(f"the slowest {max(others):.2f} s, the first {first:.1f} s", f"(goal: under {goal:g})" if goal else "")
        missed |= goal is not None and median >= goal
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
