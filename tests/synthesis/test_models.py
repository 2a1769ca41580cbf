"""What is installed, listed and chosen from."""

from pathlib import Path

import pytest
from installed_weights import collection, say_more

from monai_ext import catalogue
from monai_ext.__main__ import main
from monai_ext.synthesis.installed import choose_method, installed_methods


def measured(**fitted: float) -> dict[str, object]:
    """What `real.py --record` writes of T1,T2 -> FLAIR."""
    return {"T1,T2:FLAIR": {kind: {"cases": 3, "psnr_fitted": value} for kind, value in fitted.items()}}


@pytest.fixture
def twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two methods for one task, the second of which states that it is better, and one for any."""
    folder = collection(tmp_path / "twins", "agi_net", "fd_gan", "pmm_synth")
    say_more(folder / "fd_gan/models/model.pt", quality=measured(head=18.0, brain=20.0), licence="Apache-2.0")
    monkeypatch.setattr(catalogue, "bundles_folder", lambda: folder)
    return folder


@pytest.mark.usefixtures("twins")
def test_the_list_says_of_each_its_task_size_licence_and_quality(capsys):
    assert main(["models"]) == 0
    entries = capsys.readouterr().out.replace("\n  ", " | ").splitlines()
    assert [line.partition(":")[0] for line in entries] == ["agi_net", "fd_gan", "pmm_synth"]
    assert "T1 + T2 -> FLAIR" in entries[0]
    assert "Apache-2.0" in entries[1]
    assert "FLAIR of T1 and T2, real heads as scanned: 18.0 dB after one linear fit" in entries[1]
    assert "any of T1, T2" in entries[2]
    assert all(" MB" in line for line in entries)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("target", "available", "name"),
    [
        ("FLAIR", ("T1", "T2"), "agi_net"),
        ("FLAIR", ("T1", "T2", "T1C"), "pmm_synth"),  # the third contrast counts
        ("FLAIR", ("T1",), "pmm_synth"),
        ("FLAIR", ("T1", "PD"), "pmm_synth"),
        ("T2", ("T1", "T2"), "pmm_synth"),  # what is to be made is no source
    ],
)
def test_the_method_is_the_one_made_for_what_is_there(target, available, name):
    assert choose_method(installed_methods(), target, available).name == name


@pytest.mark.usefixtures("twins")
def test_of_two_for_one_task_the_better_is_taken():
    assert choose_method(installed_methods(), "FLAIR", ("T1", "T2")).name == "fd_gan"


@pytest.mark.parametrize(("skull", "name"), [(True, "pmm_synth"), (False, "fd_gan"), (None, "fd_gan")])
def test_one_for_any_task_is_taken_where_it_was_measured_to_be_better(twins, skull, name):
    say_more(twins / "pmm_synth/models/model.pt", quality=measured(head=19.5, brain=18.0))
    assert choose_method(installed_methods(), "FLAIR", ("T2", "T1"), skull=skull).name == name
    assert choose_method(installed_methods(), "T2", ("T1",), skull=skull).name == "pmm_synth"  # measured for no such


@pytest.mark.parametrize(
    ("psnr", "ssim", "name"),
    [
        ((18.05, 18.0), (0.6, 0.7), "fd_gan"),  # level, and alike in structure
        ((18.05, 18.0), (0.7, 0.6), "agi_net"),
        ((18.05, 18.0), (None, 0.6), "fd_gan"),
        ((18.05, 18.0), (0.6, 7), "agi_net"),  # no SSIM
        ((18.05, 18.0), (None, None), "agi_net"),
        ((18.3, 18.0), (0.6, 0.7), "agi_net"),
    ],
)
def test_of_two_that_are_level_in_psnr_the_one_with_the_better_ssim_is_taken(twins, psnr, ssim, name):
    for bundle, level, alike in zip(("agi_net", "fd_gan"), psnr, ssim, strict=True):
        of_heads = {"cases": 3, "psnr_fitted": level, **({} if alike is None else {"ssim_fitted": alike})}
        say_more(twins / bundle / "models/model.pt", quality={"T1,T2:FLAIR": {"head": of_heads}})
    assert choose_method(installed_methods(), "FLAIR", ("T1", "T2"), skull=True).name == name


def test_the_list_has_the_ssim_that_decides(twins, capsys):
    of_heads = {"cases": 3, "psnr_fitted": 18.04, "ssim_fitted": 0.711}
    say_more(twins / "fd_gan/models/model.pt", quality={"T1,T2:FLAIR": {"head": of_heads}})
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert "FLAIR of T1 and T2, real heads as scanned: 18.0 dB, SSIM 0.71 after one linear fit" in said


@pytest.mark.parametrize(
    "stated", ["much", ["T1,T2:FLAIR"], {"T1,T2:FLAIR": 99}, measured(head=1e9), measured(head="9")]
)
def test_figures_that_are_none_are_no_figures(twins, stated):
    say_more(twins / "pmm_synth/models/model.pt", quality=stated)
    assert choose_method(installed_methods(), "FLAIR", ("T1", "T2")).name == "fd_gan"
    assert main(["models"]) == 0


def test_weights_that_are_not_their_jsons_are_left_aside_by_name(twins, capsys, caplog):
    with (twins / "fd_gan/models/model.pt").open("ab") as file:
        file.write(b"more")
    assert [one.name for one in installed_methods()] == ["agi_net", "pmm_synth"]
    assert "fd_gan/models/model.pt is not what the JSON beside it speaks of" in caplog.text
    assert main(["models"]) == 0
    assert "fd_gan" not in capsys.readouterr().out


def test_where_nothing_is_installed_that_is_said(tmp_path, monkeypatch, capsys):
    bare = collection(tmp_path / "bare")
    monkeypatch.setattr(catalogue, "bundles_folder", lambda: bare)
    assert main(["models"]) == 0
    assert "no weights are installed" in capsys.readouterr().out
