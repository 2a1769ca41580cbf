"""How long a whole subject takes by `monai-ext synthesise`, from Enter to the files, with the weights of each bundle.

    python tests/benchmarks/subject.py
    python tests/benchmarks/subject.py --of T1=SCANS/T1W.nii.gz T2=SCANS/T2W.nii.gz
    python tests/benchmarks/subject.py --of STUDY_OF_DICOM --target T2
    python tests/benchmarks/subject.py --subjects 6 --jobs 1 2

A phantom of 240 x 240 x 155 voxels of 1 mm is made first, and goes through each bundle; or --of says what a person
types, who leaves it to the command which bundle serves. Each run is a new process that does what a person's would: look
at the scans, prepare them, register where they lie apart, synthesise, write the image, its JSON and the quick look.
--subjects is of several phantoms by one command, by each number of --jobs in turn; memory is that of one process, the
largest.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import nibabel as nib

METHODS = ("agi_net", "fd_gan", "hmf_mambainr", "pmm_synth")


def run(*words: str) -> tuple[float, float, float]:
    """Seconds `monai-ext` took, those of processor time, and its most memory in GiB.

    This process makes and reads nothing itself, for a child's most memory begins with its parent's.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen([sys.executable, "-m", "monai_ext", *words], stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        if status:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}: {said.read()}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def synthesised(scans: Sequence[str], out: Path, *, target: str, words: Sequence[str], rounds: int) -> str:
    """Seconds of each run, of processor time in their median, and GiB at most: cells of a table's row."""
    rows = [run("synthesise", *scans, "--target", target, "-o", f"{out}{number}", *words) for number in range(rounds)]
    waited, worked, memory = zip(*rows, strict=True)
    return f"{', '.join(f'{seconds:.1f}' for seconds in waited)} | {median(worked):.1f} | {max(memory):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--spacing", type=float, default=1.0, help="of the phantom's voxels, in mm")
    parser.add_argument("--of", nargs="+", metavar="SCAN", help="what synthesise is given in the phantom's place")
    parser.add_argument("--target", default="FLAIR")
    parser.add_argument("--subjects", type=int, default=1)
    parser.add_argument("--jobs", nargs="+", type=int, default=[1], help="how many of several subjects at once")
    args, words = parser.parse_known_args()
    head = "| | seconds, each run | of processor time, median | GiB at most |\n|---|---|---|---|"
    with tempfile.TemporaryDirectory() as work:
        if args.of:
            cells = synthesised(args.of, Path(work) / "out", target=args.target, words=words, rounds=args.rounds)
            print(f"{head}\n| {' '.join(Path(one).name for one in args.of)} to {args.target} | {cells}")
            return
        people = Path(work) / "people"
        made = f"--site brats --subjects {args.subjects} --contrasts T1,T2 --layout folder"
        run("phantom", "--out", str(people), "--spacing", str(args.spacing), *made.split())
        files = {name: next(people.glob(f"brats-*/*{name}.nii.gz")) for name in ("T1", "T2")}
        shape = " x ".join(map(str, nib.load(files["T1"]).shape))
        print(f"{shape} voxels of {args.spacing:g} mm, T1 and T2 to {args.target}\n\n{head}")
        several = args.subjects > 1
        scans = [str(people)] if several else [f"{name}={path}" for name, path in files.items()]
        for method in args.methods:
            for jobs in args.jobs:
                what = f"{method}, {args.subjects} subjects, {jobs} at once" if several else method
                chosen = ["--method", method, "--jobs", str(jobs), *words]
                out = Path(work) / f"{method}-{jobs}-"
                cells = synthesised(scans, out, target=args.target, words=chosen, rounds=args.rounds)
                print(f"| {what} | {cells}", flush=True)


if __name__ == "__main__":
    main()
