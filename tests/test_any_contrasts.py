"""Several datalists at once: who is trained on, and what is refused before any training."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from monai_ext.any_contrasts import ValidationTasks, all_cases, knowing, names_of
from monai_ext.data.batching import Kind
from monai_ext.data.datalist import Datalist, Subject, write_datalist
from monai_ext.networks import PMMSynth

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
        chosen = all_cases(files, "training", SIX)
    assert names_of(chosen) == ("ours", "b")
    assert "1 of 2 training subjects of ours lack a contrast, left out" in caplog.text


def test_two_datalists_of_one_name_are_refused(datalist):
    files = [datalist("a", ("T1", "T2")), datalist("a", ("T1", "T2"), file="again")]
    with pytest.raises(ValueError, match=r"dataset 'a' is named twice, by .*a\.json and by .*again\.json"):
        all_cases(files, "training", SIX)


def test_a_dataset_without_a_pair_of_contrasts_is_refused(datalist):
    files = [datalist("a", ("T1", "T2")), datalist("b", ("T1",), ("T2",))]
    with pytest.raises(ValueError, match=r"no training subject of dataset 'b' has two of .* nothing to synthesise"):
        all_cases(files, "training", SIX)


def test_a_contrast_that_never_has_ground_truth_is_refused_before_training(datalist):
    with pytest.raises(ValueError, match=r"T1C, ADC never has ground truth in the training split of a"):
        all_cases(datalist("a", ("T1", "T2", "FLAIR", "DWI")), "training", SIX, supervised=True)


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
        all_cases(given, "training", SIX)


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
    assert knowing(network, ("x", "y")).dataset_index("y") == 1
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="each named once, got x, x"):
        knowing(network, ("x", "x"))
