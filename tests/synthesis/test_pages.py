"""What the two pages and the README's first screen tell people to type works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
from dicom_study import write_study
from installed_weights import scan

from monai_ext.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--epochs",
    "1",
    "--batch_size",
    "2",
    "--width",
    "8",
    "--discriminator_width",
    "8",
    "--image_size",
    "32",
    "--slices",
    "['middle',4]",
]


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of each monai-ext line."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if re.match(r"(\.venv/bin/)?monai-ext ", line)]


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
def test_training_on_ones_own_data_and_using_it(tmp_path, monkeypatch):
    for number in range(10):
        for seed, contrast in enumerate(("T1", "T2", "FLAIR")):
            scan(tmp_path / "DATA" / f"p{number}" / f"{contrast}.nii.gz", seed=10 * number + seed)
    some_scans(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in commands("docs/your-hospital.md"):
        tiny = {"train": TINY, "evaluate": TINY[4:6], "prepare": ["--size", "32"]}.get(words[0], [])
        if words[0] == "prepare":
            words = [word for word in words if word not in ("--register", "rigid")]  # noise has nothing to register by
        if "--help" not in words:
            assert main([*words, *tiny]) == 0, words
    assert (tmp_path / "synthetic" / "p1" / "FLAIR_synthetic.nii.gz").is_file()
    assert any((tmp_path / "evaluated").iterdir())
