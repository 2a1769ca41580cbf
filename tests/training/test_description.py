"""What weights say of the data that they were trained on."""

import json
from pathlib import Path

from test_selection import listed

from monai_ext.training.description import prepared_as


def test_how_the_data_were_prepared_is_read_from_beside_them(tmp_path: Path):
    path = listed(tmp_path, a=["T1"])
    assert prepared_as(path) is None
    parameters = {
        "reference": ["T1"], "spacing": [1.0, 1.0, None], "crop": [96, 96], "size": None, "register": "rigid",
        "brain_mask": "", "percentile": 99.5,
    }  # fmt: skip
    (tmp_path / "a" / "prepared.json").write_text(json.dumps({"parameters": parameters}))
    del parameters["percentile"]
    assert prepared_as(path) == parameters
