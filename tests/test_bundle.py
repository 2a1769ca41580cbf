"""What the configs call: ids are checked, subjects chosen, a run described."""

import json
from pathlib import Path

import pytest

from monai_ext.bundle import cases, prepared_as, refuse_unknown_ids

KNOWN = {
    "sources": ["T1"],
    "epochs": 3,
    "network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 2},
    "train": {"trainer": {"_target_": "monai_ext.training.engine.PairedAdversarialTrainer"}, "handlers": [{"a": 1}]},
    "options": {"depth": 2},
}


def test_a_config_whose_ids_are_all_known_passes():
    refuse_unknown_ids(KNOWN, [KNOWN])
    refuse_unknown_ids({**KNOWN, "tracking_uri": "sqlite:///x", "_meta_": {"any": 1}}, [KNOWN])


@pytest.mark.parametrize(
    ("change", "path", "near"),
    [
        ({"sorces": ["T2"]}, "sorces", "sources"),
        ({"epoch": 4}, "epoch", "epochs"),
        ({"train": {"trainr": {}}}, "train#trainr", "trainer"),
        (
            {"train": {**KNOWN["train"], "trainer": {**KNOWN["train"]["trainer"], "acumulate": 2}}},
            "train#trainer#acumulate",
            "accumulate",
        ),
        ({"network_def": {**KNOWN["network_def"], "in_chanels": 2}}, "network_def#in_chanels", "in_channels"),
        ({"options": {"dept": 2}}, "options#dept", "depth"),
    ],
)
def test_a_misspelt_id_is_refused_with_the_nearest(change: dict, path: str, near: str):
    with pytest.raises(ValueError, match=f"has the id '{path}'; did you mean '{near}'"):
        refuse_unknown_ids({**KNOWN, **change}, [KNOWN])


def test_an_argument_that_the_config_leaves_to_its_default_may_be_overridden():
    refuse_unknown_ids({**KNOWN, "network_def": {**KNOWN["network_def"], "dilation": 2}}, [KNOWN])


def test_another_bundle_configs_ids_are_known_too():
    refuse_unknown_ids({**KNOWN, "overwrite": True}, [KNOWN, {"overwrite": False}])


def datalist(folder: Path, **images: list[str]) -> Path:
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
    path = datalist(tmp_path, a=["T1", "T2"], b=["T1"], c=["T1", "T2"])
    assert [subject.name for subject in cases(path, "training", ["T1", "t2"])] == ["a", "c"]
    assert "1 of 3 training subjects lack a contrast and are left out: b" in caplog.text


def test_a_split_without_a_whole_subject_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no subject of its training split has T1, PD"):
        cases(datalist(tmp_path, a=["T1"]), "training", ["T1", "PD"])


def test_a_source_that_is_the_target_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="once, got T1, T2, T1"):
        cases(datalist(tmp_path, a=["T1"]), "training", ["T1", "T2", "T1"])


def test_how_the_data_were_prepared_is_read_from_beside_them(tmp_path: Path):
    path = datalist(tmp_path, a=["T1"])
    assert prepared_as(path) is None
    parameters = {
        "reference": ["T1"], "spacing": [1.0, 1.0, None], "crop": [96, 96], "size": None, "register": "rigid",
        "brain_mask": "", "percentile": 99.5,
    }  # fmt: skip
    (tmp_path / "a" / "prepared.json").write_text(json.dumps({"parameters": parameters}))
    del parameters["percentile"]
    assert prepared_as(path) == parameters
