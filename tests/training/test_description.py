"""What weights say of the data that they were trained on."""

import json
from pathlib import Path

import pytest

from monai_ext.training.description import describe, prepared_as


def listed(folder: Path) -> Path:
    """A datalist of one subject with T1, of which nothing is known yet."""
    (folder / "a").mkdir()
    (folder / "a" / "T1.nii").write_bytes(b"x")
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "d", "root": ".", "training": [{"subject": "a", "T1": "a/T1.nii"}]}))
    return path


def prepare(datalist: Path) -> dict[str, object]:
    """Say beside the subject that it was prepared in voxels of 1 x 1.5 x 4 mm; what is to be known of it."""
    parameters = {
        "reference": ["T1"], "spacing": [1.0, 1.0, None], "crop": [96, 96], "size": None, "register": "rigid",
        "brain_mask": "", "percentile": 99.5,
    }  # fmt: skip
    affine = [[-1.0, 0, 0, 5], [0, 1.5, 0, 5], [0, 0, 4.0, 5], [0, 0, 0, 1]]
    record = {"parameters": parameters, "grid": {"affine": affine}}
    (datalist.parent / "a" / "prepared.json").write_text(json.dumps(record))
    return {key: value for key, value in parameters.items() if key != "percentile"}


def test_how_the_data_were_prepared_is_read_from_beside_them(tmp_path: Path):
    path = listed(tmp_path)
    assert prepared_as(path) is None
    known = prepare(path)
    assert prepared_as(path) == {**known, "trained_spacing": [1.0, 1.5, 4.0]}


def test_a_network_of_coarser_sources_says_the_voxels_that_it_was_shown(tmp_path: Path):
    path = listed(tmp_path)
    known = prepare(path)
    said = describe(sources=["T1"], target=["T2"], datalist=path, coarser=2, canvas=256)
    assert said["preset"] == {**known, "trained_spacing": [2.0, 3.0, 4.0]}
    assert said["canvas"] == 128
    assert "canvas" not in describe(sources=["T1"], target=["T2"], datalist=path)


def test_weights_say_by_which_bundle_and_as_what_network_they_were_made(tmp_path: Path):
    (tmp_path / "ours" / "configs").mkdir(parents=True)
    (tmp_path / "ours" / "configs" / "metadata.json").write_text('{"version": "1.2.3"}')
    network = {"target": "torch.nn.Conv2d", "arguments": {"in_channels": 2}}
    said = describe(
        sources=["T1"], target=["T2"], datalist=listed(tmp_path), bundle_root=tmp_path / "ours", network_def=network
    )
    assert (said["bundle"], said["version"]) == ("ours", "1.2.3")
    assert said["network_def"] == {"_target_": "torch.nn.Conv2d", "in_channels": 2}
    with pytest.raises(ValueError, match=r"ours/configs is no bundle.*name its folder with --bundle_root"):
        describe(sources=["T1"], target=["T2"], datalist="unread", bundle_root=tmp_path / "ours" / "configs")
