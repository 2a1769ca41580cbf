"""A 2D network over a volume, slice by slice."""

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SliceInferer
from torch import Tensor

from monai_ext.precision import autocast, memory_format, wanted_dtype

AXIAL = 2  # the volume's last axis: RAS, so k runs upwards


class SlicesInferer(SliceInferer):
    """The axial slices of (1, M, I, J, K) through a 2D network, `batch_size` at a time: (1, K', I, J, K) in [0, 1].

    Slices in which every source is zero do not go through the network: there is nothing to synthesise from, and the
    result is zero. `amp` is as in `monai_ext.precision`; the result is float32 whatever it is.
    """

    def __init__(self, *, batch_size: int = 4, amp: bool | str = True, progress: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        super().__init__(spatial_dim=AXIAL, roi_size=(-1, -1), sw_batch_size=batch_size, overlap=0, progress=progress)
        self.amp = amp

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """(1, M, I, J, K) -> (1, K', I, J, K)"""
        filled = inputs.ne(0).any(dim=(0, 1, 2, 3))
        taken = filled if filled.any() else torch.arange(len(filled), device=filled.device) == 0  # tells K' at least
        layout = memory_format(inputs.device, wanted_dtype(inputs.device, self.amp))

        def on_slices(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return network(x.contiguous(memory_format=layout), *args, **kwargs).float()

        with autocast(inputs.device, self.amp):
            found = super().__call__(inputs[..., taken], on_slices, *args, **kwargs)
        if not isinstance(found, Tensor):
            raise TypeError(f"the network must give one tensor, got {type(found).__name__}")
        found = found.clamp(0, 1)
        result = found.new_zeros(*found.shape[:-1], inputs.shape[-1])
        result[..., filled] = found[..., filled[taken]]
        return result
