"""What a coarse voxel shows is the mean of what is in it."""

import pytest
import torch
from torch.nn import functional

from monai_ext.data.phantoms.rendering import _box_mean


@pytest.mark.parametrize("width", [1.0, 1.4, 2.0, 2.5, 3.0, 5.2])
def test_a_cube_is_averaged_as_a_convolution_does_it(width: float):
    maps = torch.rand(2, 9, 12, 3, generator=torch.Generator().manual_seed(0))
    reach = 4
    edges = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5  # of voxels around one
    shares = edges[1:].clamp(max=width / 2) - edges[:-1].clamp(min=-width / 2)
    shares = (shares.clamp(min=0) / width).float()
    cube = torch.einsum("i,j,k->ijk", shares, shares, shares)[None, None]
    expected = functional.conv3d(maps[:, None], cube, padding=reach)[:, 0]
    torch.testing.assert_close(_box_mean(maps, width), expected, rtol=0, atol=1e-6)
