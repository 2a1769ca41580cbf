"""The picture of the README, drawn of any label maps by `tools/draw_synthesis.py`."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]


@pytest.mark.long
def test_the_readmes_picture_is_drawn_of_any_label_maps_and_masks(head: Path, tmp_path: Path) -> None:
    infarct = np.zeros((40, 40, 40), np.uint8)
    infarct[10:30, 12:28, 14:26] = 1
    masks = tmp_path / "masks"
    masks.mkdir()
    nib.save(nib.Nifti1Image(infarct, np.diag([1.0, 1, 1, 1])), masks / "infarct.nii.gz")
    picture = tmp_path / "synthesis.png"
    where = ["--anatomy", head.parent, "--lesions", masks, "--out", picture]
    subprocess.run([sys.executable, ROOT / "tools/draw_synthesis.py", *where], check=True, timeout=300)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"), np.float32)
    rows = np.array_split(pixels, 2)
    for row in rows:
        columns = np.array_split(row, 5, axis=1)  # T1, T2, FLAIR by two, the truth
        assert all(column.std() > 10 for column in columns)
