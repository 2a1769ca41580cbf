"""What weights say of the data that they were trained on."""

import json
from pathlib import Path

import numpy as np
from test_selection import listed

from monai_ext.training.description import describe, prepared_as


def prepare(folder: Path) -> tuple[Path, dict[str, object]]:
    """A datalist whose one subject was prepared in voxels of 1 x 1 x 3 mm; what is to be known of it."""
    path = listed(folder, a=["T1"])
    parameters = {
        "reference": ["T1"], "spacing": [1.0, 1.0, None], "crop": [96, 96], "size": None, "register": "rigid",
        "brain_mask": "", "percentile": 99.5,
    }  # fmt: skip
    record = {"parameters": parameters, "grid": {"affine": np.diag([1.0, 1.0, 3.0, 1.0]).tolist()}}
    (folder / "a" / "prepared.json").write_text(json.dumps(record))
    return path, {**{key: value for key, value in parameters.items() if key != "percentile"}}


def test_how_the_data_were_prepared_is_read_from_beside_them(tmp_path: Path):
    assert prepared_as(listed(tmp_path, a=["T1"])) is None
    path, known = prepare(tmp_path)
    assert prepared_as(path) == {**known, "trained_spacing": [1.0, 1.0, 3.0]}


def test_a_network_of_coarser_sources_says_the_voxels_that_it_was_shown(tmp_path: Path):
    path, known = prepare(tmp_path)
    said = describe(sources=["T1"], target=["T2"], datalist=path, coarser=2)
    assert said["preset"] == {**known, "trained_spacing": [2.0, 2.0, 3.0]}
