"""How fast `monai-ext synthesise` starts: from Enter to the first slice in the network, and what the imports take.

    python tests/benchmarks/start.py [T1.nii.gz T2.nii.gz]

Each run is a new process; without scans a phantom of 4 mm is made. Beside the seconds that a person waits stand those
that the processor worked for it, which a busy machine changes little. The last table is of `python -X importtime`:
each package's own modules, without what they import from others.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from monai_ext.__main__ import main as monai_ext

# In the child: monai-ext's own entry, which ends when a network of ours is about to see its first slice.
UNTIL_THE_FIRST_SLICE = """
import os, sys, time
from monai_ext.__main__ import UNUSED, script

for name in UNUSED:
    sys.modules.setdefault(name, None)
from torch.nn.modules.module import register_module_forward_pre_hook

def first(module, _):
    if type(module).__module__.startswith("monai_ext.networks"):
        used = os.times()
        print("first slice", time.time(), used.user + used.system, flush=True)
        os._exit(0)

register_module_forward_pre_hook(first)
sys.exit(script())
"""
IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")


def command(scans: list[Path], out: Path) -> list[str]:
    """The words after monai-ext."""
    return ["synthesise", *map(str, scans), "--target", "FLAIR", "-o", str(out)]


def to_the_first_slice(scans: list[Path], out: Path) -> tuple[float, float]:
    """Seconds waited and seconds of processor time."""
    began = time.time()
    words = [sys.executable, "-c", UNTIL_THE_FIRST_SLICE, *command(scans, out)]
    done = subprocess.run(words, capture_output=True, text=True)
    found = re.search(r"^first slice (\S+) (\S+)$", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"no slice came to a network: {done.stderr}")
    return float(found[1]) - began, float(found[2])


def to_the_end_of_help() -> tuple[float, float]:
    """Seconds waited and seconds of processor time."""
    began, before = time.time(), os.times()
    subprocess.run([sys.executable, "-m", "monai_ext", "--help"], check=True, stdout=subprocess.DEVNULL)
    used = os.times()
    worked = used.children_user + used.children_system - before.children_user - before.children_system
    return time.time() - began, worked


def imports(scans: list[Path], out: Path) -> Counter[str]:
    """Package -> seconds that its own modules take to be imported."""
    words = [sys.executable, "-X", "importtime", "-m", "monai_ext", *command(scans, out)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    packages: Counter[str] = Counter()
    for microseconds, module in IMPORTED.findall(done.stderr):
        packages[module.split(".")[0]] += int(microseconds)
    return Counter({package: total / 1e6 for package, total in packages.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scans", nargs="*", type=Path, help="a T1 and a T2 whose names tell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--packages", type=int, default=12, help="how many of those that take longest are named")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        scans = args.scans
        if not scans:
            made = "--site healthy --subjects 1 --spacing 4 --contrasts T1,T2 --layout folder"
            monai_ext(["phantom", "--out", work, *made.split()])
            scans = sorted(Path(work).glob("healthy-*/*.nii.gz"))
        first = [to_the_first_slice(scans, Path(work) / f"out{number}") for number in range(args.rounds)]
        helped = [to_the_end_of_help() for _ in range(args.rounds)]
        print("| seconds, median | waited | of processor time |\n|---|---|---|")
        for name, rows in (("Enter to the first slice", first), ("monai-ext --help", helped)):
            waited, worked = (median(column) for column in zip(*rows, strict=True))
            print(f"| {name} | {waited:.2f} | {worked:.2f} |", flush=True)
        packages = imports(scans, Path(work) / "out")
    print(f"\n| imports | {sum(packages.values()):.2f} s |\n|---|---|")
    for package, seconds in packages.most_common(args.packages):
        print(f"| {package} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
