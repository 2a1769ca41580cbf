"""Synthesis at a resolution that was not acquired: the finer grid of an output, and the network's share of it.

For networks whose `forward` takes an `output_size`: their image is a function of position.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from monai.engines.utils import default_prepare_batch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from monai_ext.data.gridded import Grid
from monai_ext.data.resampling import slice_grid, to_ras
from monai_ext.data.volumes import Volume
from monai_ext.networks.inr import check_output


@dataclass(frozen=True)
class Resolution:
    """How fine the axial plane of an output is; neither is the reference's own.

    Attributes:
        scale: times as many pixels a side as the reference has.
        spacing: of the pixels in mm.

    Raises:
        ValueError: a number that may not be, or both are given.
    """

    scale: float = 1.0
    spacing: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale < np.inf:
            raise ValueError(f"scale must be finite and above 0, got {self.scale}")
        if self.spacing is not None and not 0 < self.spacing < np.inf:
            raise ValueError(f"spacing must be finite and above 0 mm, got {self.spacing}")
        if self.spacing is not None and self.scale != 1:
            raise ValueError(f"give scale or spacing, got scale={self.scale}, spacing={self.spacing}")

    @property
    def own(self) -> bool:
        """Whether it is the reference's own."""
        return self.scale == 1 and self.spacing is None

    def of(self, grid: Grid) -> tuple[Grid, tuple[int, int]]:
        """Lay out the output's grid.

        Args:
            grid: at the reference's resolution.

        Returns:
            The grid with the reference's voxels at this resolution, and the pixels that the network is to write.

        Raises:
            ValueError: they are too many for its input.
        """
        upright = to_ras(Volume(np.broadcast_to(np.float32(0), grid.stored_shape), grid.stored_affine))
        step = upright.spacing[:2] / self.scale if self.spacing is None else np.full(2, self.spacing)
        extent = Volume(np.broadcast_to(np.float32(0), grid.shape), grid.affine).spacing[:2] * grid.shape[:2]
        height, width = (max(1, round(float(pixels))) for pixels in extent / step)
        check_output((height, width), grid.shape[0], grid.shape[1])
        whole = np.ones(upright.shape, dtype=bool)
        spacing = (float(step[0]), float(step[1]), None)
        shape, affine = slice_grid(upright, spacing=spacing, crop=None, size=None, keep=whole)
        turn = ornt_transform(axcodes2ornt("RAS"), io_orientation(grid.stored_affine))
        i, j, k = apply_orientation(np.broadcast_to(np.float32(0), shape), turn).shape
        stored = affine @ inv_ornt_aff(turn, shape)
        return replace(grid, stored_shape=(i, j, k), stored_affine=stored), (height, width)


OWN = Resolution()


def prepare_batch(batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    """Prepare a batch as MONAI does, with the network's `output_size` where one is asked for.

    Args:
        batch, device, non_blocking, kwargs: as of `monai.engines.default_prepare_batch`.

    Returns:
        (image, label) or, with "output_size" in the batch, (image, label, (), {"output_size": (height, width)}).
    """
    image, label = default_prepare_batch(dict(batch), device, non_blocking, **kwargs)
    size = batch.get("output_size")
    return (image, label) if size is None else (image, label, (), {"output_size": size[0].item()})
