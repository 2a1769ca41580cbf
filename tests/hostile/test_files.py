"""Mutated scans, datalists, sidecars and DICOM: refused by name, the others done, nothing hung or out of place."""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
# What once got through, by kind and number: kept, whatever the numbers of a run are.
ONCE = ["sidecars:4", "weights:411", "weights:492"]


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, RUN, *words], capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def test_two_hundred_attacks_and_those_that_once_got_through_do_no_harm() -> None:
    counts = "110 nifti, 10 inference, 40 datalists, 15 sidecars, 25 dicom"
    words = [word for part in counts.split(", ") for word in (f"--{part.split()[1]}", part.split()[0])]
    assert f"{counts}, {len(ONCE)} cases: 0 got through" in run(*words, "--only", *ONCE)


@pytest.mark.long
def test_two_thousand_attacks_do_no_harm() -> None:
    counts = "1300 nifti, 100 inference, 300 datalists, 100 sidecars, 200 dicom"
    words = [word for part in counts.split(", ") for word in (f"--{part.split()[1]}", part.split()[0])]
    assert f"{counts}: 0 got through" in run("--first", "1000", *words)


def test_an_attack_that_does_harm_is_seen(tmp_path: Path) -> None:
    """The judge itself, given a hang, a crash, a large memory and a file where none belongs."""
    code = """
import time, pathlib, sys
import attack
folder = pathlib.Path(sys.argv[1])
attack.CPU_SECONDS, attack.WAITING_SECONDS = 2, 3
def sleeps(place, seed): time.sleep(30); return []
def spins(place, seed):
    while True: pass
def breaks(place, seed): raise KeyError("lost")
def swells(place, seed): held = bytearray(b"x" * 200_000_000); return [] if held else []
def strays(place, seed):
    attack._list(place, [attack._good(place)])
    ordinary = attack.command_line
    def command(words): (place.folder / "outside/pwned").touch(); return ordinary(words)
    attack.command_line = command
    return place.prepare(needs="good")
def forgets(place, seed):
    attack._list(place, [attack._good(place)])
    return place.prepare(needs="another")
for one, sign in ((sleeps, "hangs"), (spins, "died"), (breaks, "KeyError"), (swells, "took"), (strays, "outside"),
                  (forgets, "was not done")):
    attack.ATTACKS["test"] = one
    faults = attack.attack("test", 0, folder / one.__name__, honest_mb=20)
    assert any(sign in fault for fault in faults), (one.__name__, faults)
"""
    roots = [str(RUN.parent), str(RUN.parents[1] / "bundles"), str(RUN.parents[2])]
    code = f"import sys\nsys.path[:0] = {roots!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
