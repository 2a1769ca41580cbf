"""How long a whole subject takes by `monai-ext synthesise`, from Enter to the files, with the weights of each bundle.

    python tests/benchmarks/subject.py

A phantom of 240 x 240 x 155 voxels of 1 mm is made first. Each run is a new process that does what a person's would:
look at the scans, prepare them, synthesise, write the image, its JSON and the quick look.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
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


def synthesised(scans: list[Path], out: Path, *, method: str, words: list[str]) -> tuple[float, float, float]:
    """As `run` has them."""
    named = [f"{contrast}={path}" for contrast, path in zip(("T1", "T2"), scans, strict=True)]
    return run("synthesise", *named, "--target", "FLAIR", "--method", method, "-o", str(out), *words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--spacing", type=float, default=1.0, help="of the phantom's voxels, in mm")
    args, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as work:
        made = "--site brats --subjects 1 --contrasts T1,T2 --layout folder"
        run("phantom", "--out", work, "--spacing", str(args.spacing), *made.split())
        scans = [next(Path(work).glob(f"brats-*/*{name}.nii.gz")) for name in ("T1", "T2")]
        print(f"{' x '.join(map(str, nib.load(scans[0]).shape))} voxels of {args.spacing:g} mm, T1 and T2 to FLAIR\n")
        print("| | seconds, each run | of processor time, median | GiB at most |\n|---|---|---|---|")
        for method in args.methods:
            rows = [
                synthesised(scans, Path(work) / f"{method}{number}", method=method, words=words)
                for number in range(args.rounds)
            ]
            waited, worked, memory = zip(*rows, strict=True)
            each = ", ".join(f"{seconds:.1f}" for seconds in waited)
            print(f"| {method} | {each} | {median(worked):.1f} | {max(memory):.1f} |", flush=True)


if __name__ == "__main__":
    main()
