"""Several datalists at once: who is trained on, and what is refused before any training."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from monai_ext.data.batching import Kind
from monai_ext.data.datalist import Datalist, Subject, write_datalist
from monai_ext.data.selection import names_of, select_subjects
from monai_ext.networks import PMMSynth
from monai_ext.networks.adapters import know_sites
from monai_ext.training.datasets import ValidationTasks

SIX = ("T1", "T2", "T1C", "FLAIR", "DWI", "ADC")


@pytest.fixture
def datalist(tmp_path: Path) -> Callable[..., str]:
    """Make a datalist of one dataset whose subjects have these contrasts; there is nothing in their files."""

    def make(name: str, *subjects: tuple[str, ...], file: str = "") -> str:
        cases = []
        for number, contrasts in enumerate(subjects):
            images = {contrast: tmp_path / f"{name}{number}" / f"{contrast}.nii" for contrast in contrasts}
            for path in images.values():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"0" * 400)
            cases.append(Subject(f"{name}{number}", name, images))
        path = tmp_path / f"{file or name}.json"
        write_datalist(path, Datalist(name, tmp_path, {"training": cases}))
        return str(path)

    return make


def test_datalists_are_one_training_set_each_with_its_name(datalist, caplog):
    files = [["ours", datalist("a", ("T1", "T2"), ("T1",))], datalist("b", ("DWI", "ADC", "T1"))]
    with caplog.at_level(logging.WARNING):
        chosen = select_subjects(files, "training", SIX, least=2)
    assert names_of(chosen) == ("ours", "b")
    assert "1 of 2 training subjects of ours lack a contrast and are left out: a1" in caplog.text


def test_two_datalists_of_one_name_are_refused(datalist):
    files = [datalist("a", ("T1", "T2")), datalist("a", ("T1", "T2"), file="again")]
    with pytest.raises(ValueError, match=r"dataset 'a' is named twice, by .*a\.json and by .*again\.json"):
        select_subjects(files, "training", SIX, least=2)


def test_a_dataset_without_a_pair_of_contrasts_is_refused(datalist):
    files = [datalist("a", ("T1", "T2")), datalist("b", ("T1",), ("T2",))]
    with pytest.raises(ValueError, match=r"no training subject of dataset 'b' has two of .* nothing to synthesise"):
        select_subjects(files, "training", SIX, least=2)


def test_a_contrast_that_never_has_ground_truth_is_refused_before_training(datalist):
    with pytest.raises(ValueError, match=r"T1C, ADC never has ground truth in the training split of a"):
        select_subjects(datalist("a", ("T1", "T2", "FLAIR", "DWI")), "training", SIX, least=2, supervised=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "datalist must be a path, or a list"),
        ([["a", "b", "c"]], "datalist must be a path, or a list"),
        ([["ours", "/nowhere.json"]], "/nowhere.json: there is no such datalist, which 'ours' names"),
    ],
)
def test_what_is_no_datalist_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        select_subjects(given, "training", SIX, least=2)


def test_validation_asks_for_one_contrast_that_is_there_and_no_source():
    class Slices:
        kinds = (Kind("a", (True, True, False, True)),) * 9

    for condition, wanted in ValidationTasks(Slices()).tasks:
        assert Slices.kinds[0].available[wanted]
        assert not condition[wanted]
        assert any(condition)


def test_other_datasets_change_no_weight():
    network = PMMSynth(modalities=("T1", "T2"), width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert know_sites(network, ("x", "y")).site_index("y") == 1
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="each named once, got x, x"):
        know_sites(network, ("x", "x"))


def listed(folder: Path, **images: list[str]) -> Path:
    entries = []
    for name, contrasts in images.items():
        for contrast in contrasts:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{contrast}.nii").write_bytes(b"x")
        entries.append({"subject": name, **{contrast: f"{name}/{contrast}.nii" for contrast in contrasts}})
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "d", "root": ".", "training": entries}))
    return path


def test_subjects_that_lack_a_contrast_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = listed(tmp_path, a=["T1", "T2"], b=["T1"], c=["T1", "T2"])
    assert [subject.name for subject in select_subjects(path, "training", ["T1", "t2"])] == ["a", "c"]
    assert "1 of 3 training subjects of d lack a contrast and are left out: b" in caplog.text


def test_a_split_without_a_whole_subject_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no subject of its training split has T1, PD"):
        select_subjects(listed(tmp_path, a=["T1"]), "training", ["T1", "PD"])


def test_a_source_that_is_the_target_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="once, got T1, T2, T1"):
        select_subjects(listed(tmp_path, a=["T1"]), "training", ["T1", "T2", "T1"])
