"""What a network is trained on: whole heads, or a word about it."""

from pathlib import Path

import numpy as np
import pytest

from monai_ext.data.datalist import Subject
from monai_ext.data.volumes import Volume, write_volume
from monai_ext.training.datasets import samples


@pytest.fixture
def head(tmp_path: Path) -> Subject:
    """A disc, 40 pixels wide, in slices of 64 x 48, with noise around it."""
    rng = np.random.default_rng(0)
    i, j = np.mgrid[:64, :48]
    disc = np.where((i - 31.5) ** 2 + (j - 23.5) ** 2 < 400, 0.6, 0.04 * rng.random((64, 48)))
    for contrast in ("T1", "T2"):
        image = Volume(np.repeat(disc[..., None], 3, axis=2).astype(np.float32), np.eye(4))
        write_volume(tmp_path / f"{contrast}.nii", image, dtype=np.uint16, slope=1 / 65535)
    return Subject("sub-1", "ours", {"T1": tmp_path / "T1.nii", "T2": tmp_path / "T2.nii"})


def test_slices_are_cut_and_padded_to_one_size_where_the_head_fits(head: Subject) -> None:
    for size in (40, 56, 80):
        (item, *_) = samples(data=[head], sources=["T1"], target=["T2"], slices="every", image_size=size)
        assert item["sources"].shape == item["target"].shape == (1, size, size)
        assert int((item["sources"] > 0.5).sum()) == int((item["target"] > 0.5).sum()) > 1200


def test_a_size_that_cuts_heads_is_refused_and_the_message_says_what_fits(head: Subject) -> None:
    message = "image_size 24 cuts slices of 64 x 48, such as sub-1's, and 54% of the heads with them"
    with pytest.raises(ValueError, match=f"{message}: give --image_size 64, or prepare"):
        samples(data=[head], sources=["T1"], target=["T2"], slices="every", image_size=24)


def test_batches_go_by_the_size_that_the_network_is_shown(head: Subject, tmp_path: Path) -> None:
    """People of other grids would else never share one."""
    image = Volume(np.full((40, 44, 3), 0.5, np.float32), np.eye(4))
    for contrast in ("T1", "T2"):
        write_volume(tmp_path / f"other_{contrast}.nii", image, dtype=np.uint16, slope=1 / 65535)
    other = Subject("sub-2", "ours", {c: tmp_path / f"other_{c}.nii" for c in ("T1", "T2")})
    data = samples(data=[head, other], sources=["T1"], target=["T2"], slices="every", image_size=48)
    assert {kind.size for kind in data.kinds} == {(48, 48)}
