"""The tests of engine_cases.py, in a process of their own.

In one process, a DataLoader's workers forked after OpenVINO and onnxruntime had run have ended in a segmentation fault.
"""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("engine_cases.py")


@pytest.mark.parametrize("which", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_engines_agree_fall_back_and_are_remembered(which: str, tmp_path: Path) -> None:
    words = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", which, "--basetemp", tmp_path / "cases", CASES]
    done = subprocess.run([sys.executable, "-m", "pytest", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
