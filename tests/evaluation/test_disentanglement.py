"""The picture of what FD-GAN takes apart."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from monai_ext.evaluation.disentanglement import colours, picture
from monai_ext.networks import FDGAN


class Slices:
    """As much of a SliceDataset as is looked at."""

    sources, target = ("T1", "T2"), ("FLAIR",)

    def __len__(self) -> int:
        return 5

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        images = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(number))
        return {"sources": images[:2], "target": images[2:]}


def test_the_strongest_directions_become_the_three_colours():
    rng = torch.Generator().manual_seed(0)
    hidden = torch.rand(1, 3, 16, 16, generator=rng) * torch.tensor([9.0, 3.0, 1.0])[:, None, None]
    mix, _ = torch.linalg.qr(torch.randn(8, 3, generator=rng))
    shown = colours(torch.einsum("ck,bkhw->bchw", mix, hidden))[0]
    assert shown.shape == (16, 16, 3)
    for number in range(3):
        both = torch.stack([shown[..., number].flatten(), hidden[0, number].flatten()])
        assert torch.corrcoef(both)[0, 1].abs() > 0.9


def test_a_row_a_slice_in_colour(tmp_path: Path):
    path = picture(FDGAN(width=4).eval(), Slices(), path=tmp_path / "look.png", slices=2)  # type: ignore[arg-type]
    page = np.asarray(Image.open(path))
    assert page.ndim == 3
    assert page.shape[0] > 2 * 160
    coloured = (page.max(2).astype(int) - page.min(2) > 8).any(0)
    columns = np.flatnonzero(coloured)
    assert 0 < np.ptp(columns) < page.shape[1] / 8 + 8  # the anatomy alone, of eight images in a row
