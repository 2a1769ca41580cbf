"""What weights say of the data that they were trained on."""

import json
from pathlib import Path

from monai_ext.training.description import prepared_as


def test_how_the_data_were_prepared_is_read_from_beside_them(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "T1.nii").write_bytes(b"x")
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"name": "d", "root": ".", "training": [{"subject": "a", "T1": "a/T1.nii"}]}))
    assert prepared_as(path) is None
    parameters = {
        "reference": ["T1"], "spacing": [1.0, 1.0, None], "crop": [96, 96], "size": None, "register": "rigid",
        "brain_mask": "", "percentile": 99.5,
    }  # fmt: skip
    affine = [[-1.0, 0, 0, 5], [0, 1.5, 0, 5], [0, 0, 4.0, 5], [0, 0, 0, 1]]
    sidecar = {"parameters": parameters, "grid": {"affine": affine}}
    (tmp_path / "a" / "prepared.json").write_text(json.dumps(sidecar))
    del parameters["percentile"]
    assert prepared_as(path) == {**parameters, "trained_spacing": [1.0, 1.5, 4.0]}
