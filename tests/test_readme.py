"""What the README tells people to type works, and prints what it says."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dicom_study import write_study
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


@pytest.mark.long
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


@pytest.mark.long
def test_a_study_gets_its_series_and_a_bundle_is_packed_and_verified(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    shutil.copytree(REPOSITORY / "bundles", tmp_path / "bundles")
    write_study(tmp_path / "STUDY", "T1", "T2")
    commands = data_commands()[5:]
    assert [shlex.split(command)[3] for command in commands] == ["dicom", "package", "verify"]
    for command in commands:
        here(*shlex.split(command)[2:], cwd=tmp_path)
    assert list((tmp_path / "OUT").rglob("*.dcm"))
    assert list((tmp_path / "packed").glob("agi_net*.zip"))


@pytest.mark.parametrize(
    ("told", "done"),
    [
        ("make label BUNDLE=agi_net STUDIES=studies", "monailabel start_server --app monai_ext/serve/label_app"),
        ("make weights BUNDLE=agi_net ANATOMY=label_maps LESIONS=masks", "-m monai_ext weights agi_net --work"),
    ],
)
def test_what_make_is_told_to_do_it_would_do(told: str, done: str) -> None:
    """Label's server is asked by tests/serve (`make test-serve`), a training on phantoms by test_phantom_weights.py."""
    pages = [README, *(page.read_text(encoding="utf-8") for page in REPOSITORY.glob("bundles/*/docs/README.md"))]
    assert any(told in page for page in pages)
    made = subprocess.run(["make", "-n", *told.split()[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done in made.stdout


def test_deploy_is_told_what_its_tests_tell_it() -> None:
    """Holoscan runs the application in tests/serve/test_deploy.py (`make test-serve`), by the words that stand here."""
    (line,) = [line for line in "".join(blocks("sh")).splitlines() if "deploy_app" in line]
    words = [word for word in shlex.split(line)[1:] if word.startswith("-") or "." in word]
    tested = (REPOSITORY / "tests" / "serve" / "test_deploy.py").read_text(encoding="utf-8")
    assert words == ["-m", "monai_ext.serve.deploy_app", "--input", "--output", "--target"]
    assert all(f'"{word}"' in tested for word in words)
