"""The picture of what a network's stages hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_disentanglement import Slices

from monai_ext.evaluation.features import picture
from monai_ext.networks import AGINet


def test_each_stage_has_a_column_in_colour_and_no_hook_is_left(tmp_path: Path):
    network = AGINet(width=8, groups=4)
    path = picture(network, Slices(), path=tmp_path / "features.png", stages=["down1", "body"], slices=2)  # type: ignore[arg-type]
    page = np.asarray(Image.open(path))
    coloured = np.flatnonzero((page.max(2).astype(int) - page.min(2) > 8).any(0))
    wide = page.shape[1] / 6  # two sources, two stages, what is made, what is real
    assert wide < np.ptp(coloured) < 2.2 * wide
    assert page.shape[0] > 2 * 160
    assert not any(module._forward_hooks for module in network.modules())


def test_a_stage_that_there_is_not_is_refused(tmp_path: Path):
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 1, 3))
    with pytest.raises(ValueError, match="Sequential has no part 'down1'; its parts are 0"):
        picture(network, Slices(), path=tmp_path / "no.png", stages=["down1"])  # type: ignore[arg-type]
