"""What the two pages and the README's first screen tell people to type works as it stands there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dicom_study import write_study
from installed_weights import scan

from monai_ext.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of each monai-ext line."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if re.match(r"(\.venv/bin/)?monai-ext ", line)]


def within_sentences(page: str) -> list[list[str]]:
    """The words of each whole command that stands in the text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [shlex.split(command) for command in re.findall(r"`monai-ext ([^`]+)`", text)]


def some_scans(folder: Path) -> None:
    """What the pages call T1.nii.gz, a.nii.gz, patients and STUDY."""
    for seed, names in enumerate((("T1", "a"), ("T2", "b"))):
        for path in (folder / f"{names[0]}.nii.gz", folder / f"{names[1]}.nii.gz"):
            scan(path, seed=seed)
        scan(folder / "patients" / "p1" / f"{names[0]}.nii.gz", seed=seed)
    write_study(folder / "STUDY", "T1", "T2")


@pytest.mark.usefixtures("installed")
def test_the_readme_s_one_line_and_its_python(tmp_path, monkeypatch, capsys):
    some_scans(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(commands("README.md")[0]) == 0
    assert list((tmp_path / "out").rglob("FLAIR_synthetic.nii.gz"))
    capsys.readouterr()
    (snippet,) = blocks("README.md", "python scans")
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("agi_net ")


@pytest.mark.long
@pytest.mark.usefixtures("installed")
def test_the_first_synthesis(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nilearn")
    some_scans(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in commands("docs/first-synthesis.md"):
        assert main(words) == 0, words
    made = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*_synthetic.nii.gz")}
    assert made == {"synthetic", "out", "told", "everyone", "study"}
    (snippet,) = blocks("docs/first-synthesis.md", "python")
    capsys.readouterr()
    exec(compile(snippet, "first-synthesis.md", "exec"), {})
    assert "agi_net" in capsys.readouterr().out
    assert (tmp_path / "healthy-002_FLAIR_synthetic.nii.gz").is_file()


@pytest.mark.long
def test_training_on_ones_own_data_and_using_it(tmp_path, monkeypatch, capsys):
    """Every line as it stands, DATA being phantoms: coarse ones, so that the compact training takes seconds."""
    pytest.importorskip("nilearn")
    monkeypatch.chdir(tmp_path)
    people = "phantom --out DATA --site healthy --subjects 6 --spacing 6 --contrasts T1,T2,FLAIR --layout folder"
    assert main(people.split()) == 0
    for contrast in ("T1", "T2"):
        (tmp_path / "patients" / "p1").mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "DATA" / "healthy-001" / f"{contrast}.nii.gz", tmp_path / "patients" / "p1")
    lines = commands("docs/your-hospital.md")
    assert [words[0] for words in lines] == ["index", "prepare", "train", "evaluate", "train", "evaluate", "synthesise"]
    for words in lines:
        assert main(words) == 0, words
    assert (tmp_path / "synthetic" / "p1" / "FLAIR_synthetic.nii.gz").is_file()
    assert any((tmp_path / "evaluated").iterdir())
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    text = (ROOT / "docs/your-hospital.md").read_text(encoding="utf-8")
    adapt, use = (shlex.split(line) for line in text.splitlines() if line.startswith("python -m monai.bundle run"))
    for words in ((*adapt, "--epochs", "1", "--slices", "['middle', 2]"), use):
        subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
    assert (tmp_path / "synthetic_ours" / "p1" / "FLAIR_synthetic.nii.gz").is_file()
    assert list((tmp_path / "prepared").rglob("*.png"))  # the pictures of --qc
    capsys.readouterr()
    for words in within_sentences("docs/your-hospital.md"):
        assert main(words) == 0, words
    assert "--epochs" in capsys.readouterr().out
