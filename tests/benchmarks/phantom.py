"""How long a phantom of all seven contrasts takes on one core, from nothing to files.

    python tests/benchmarks/phantom.py [--subjects 5] [--spacing 2] [--site glioma]

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
from monai_ext.modalities import MODALITIES

GOAL = 4.0  # seconds


def main() -> int:
    """Print the seconds a subject; the status is 1 where that misses the goal."""
    parser = argparse.ArgumentParser(description="Seconds a phantom")
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument("--spacing", type=float, default=2.0, help="mm")
    parser.add_argument("--site", choices=sorted(SITES), default="glioma")
    args = parser.parse_args()
    if args.subjects < 2:
        raise ValueError(f"--subjects must be at least 2, got {args.subjects}")
    torch.set_num_threads(1)
    spacing = (args.spacing,) * 3
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            Job(Path(folder), args.site, "bids", index, 0, spacing, MODALITIES, (0.0, 0.0), randomize=False)
            for index in range(args.subjects)
        ]
        first, *others = [make_subject(job)[1] for job in jobs]
    median = float(np.median(others))
    print(f"seven contrasts at {args.spacing:g} mm, site {args.site}, one thread: {median:.1f} s a subject", end=", ")
    print(f"the slowest {max(others):.1f} s, the first {first:.1f} s (goal: under {GOAL:g})")
    return 0 if median < GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
