"""What the README tells people to type works, and prints what it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from running import here

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def data_commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("python -m monai_ext ")]


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_snippet_prints_the_shapes_that_its_comments_say(tmp_path: Path) -> None:
    (snippet,) = blocks("python")
    printed = run(["-c", snippet], tmp_path).splitlines()
    promised = [line.partition("# ")[2] for line in snippet.splitlines() if line.startswith("print")]
    assert printed == [f"torch.Size({shape})" for shape in promised]


def test_the_three_data_commands_lead_to_slices(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    commands = data_commands()[:3]
    assert [shlex.split(command)[3] for command in commands] == ["phantom", "index", "prepare"]
    for command in commands:
        here(*shlex.split(command)[2:], cwd=tmp_path)
    (snippet,) = blocks("python continued")
    *lines, last = snippet.strip().splitlines()
    printed = run(["-c", "\n".join([*lines, f"print({last.partition('#')[0]})"])], tmp_path).strip()
    found = re.findall(r"\((\d+), (\d+), (\d+)\)|\[(\d+), (\d+), (\d+)\]", printed)
    shapes = [tuple(int(number) for number in numbers if number) for numbers in found]
    assert shapes == [(2, 192, 192), (1, 192, 192)], printed


@pytest.mark.long
def test_the_commands_for_real_data_prepare_every_real_case(tmp_path: Path) -> None:
    data = REPOSITORY.parent / "shared" / "data" / "real"
    if not data.is_dir():
        pytest.skip("the folder of real scans is not here")
    index, prepare = data_commands()[3:5]
    for command in (index.replace("DATA", str(data)), prepare):
        here(*shlex.split(command)[2:], cwd=tmp_path)
    cases = {folder.name for folder in (tmp_path / "prepared_real").iterdir() if folder.is_dir()}
    assert cases == {folder.name for folder in data.iterdir() if not folder.name.startswith("dicom")}
