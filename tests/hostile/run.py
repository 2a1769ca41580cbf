"""Mutated files against the commands that read them: how many were tried, and every one that got through.

    python tests/hostile/run.py --nifti 9000 --inference 1000 --datalists 2000 --sidecars 500 --dicom 500

Each case is made from its number. A line is printed for each fault, and the exit status is 1 if there is one. Again one
case: --only datalists:17.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

for library in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(library, "1")  # a fork has none of its parent's threads
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "bundles"), str(Path(__file__).resolve().parents[2])]

from attack import ATTACKS, BATCH, attack, honest_need, untrained  # noqa: E402 - the folder's own, found above

BATCHES = ("nifti", "inference")  # whose cases are tried ten at a time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for kind in ATTACKS:
        parser.add_argument(f"--{kind}", type=int, default=0, help="how many cases")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one (default: 0)")
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND:NUMBER", help="these cases and no other")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default: 1)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of pydicom, on each value that was changed on purpose
    logging.disable(logging.CRITICAL)  # of nibabel, likewise

    tasks = [(kind, int(number)) for kind, _, number in (one.partition(":") for one in args.only)]
    counts = {kind: getattr(args, kind) for kind in ATTACKS}
    for kind, count in counts.items():
        batches = -(-count // BATCH) if kind in BATCHES else count
        tasks += [(kind, args.first + number) for number in range(batches)]
    start, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="hostile-") as work, ThreadPoolExecutor(args.jobs) as pool:
        kinds = dict.fromkeys(kind for kind, _ in tasks)
        if {"inference", "weights"} & kinds.keys():
            untrained(Path(work))
        honest = {
            kind: honest_need(kind, Path(work) / "honest", numbers=[number for one, number in tasks if one == kind])
            for kind in kinds
        }

        def one(task: tuple[str, int]) -> tuple[str, int, list[str]]:
            kind, number = task
            return kind, number, attack(kind, number, Path(work) / f"{kind}-{number}", honest_mb=honest[kind])

        for done, (kind, number, faults) in enumerate(pool.map(one, tasks), 1):
            if done % 100 == 0:
                print(f"{done} of {len(tasks)} done, the last {kind}:{number}", file=sys.stderr, flush=True)
            failed += bool(faults)
            for fault in faults:
                print(f"{kind}:{number} {fault}", flush=True)
    parts = [f"{count} {kind}" for kind, count in counts.items() if count]
    tried = ", ".join([*parts, *([f"{len(args.only)} cases"] if args.only else [])])
    took = ", ".join(f"{need:.0f} MB ({kind})" for kind, need in honest.items())
    print(f"{tried}: {failed} got through, {time.monotonic() - start:.0f} s; a good batch takes {took}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
