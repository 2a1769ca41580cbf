"""A network over a volume: one in 2D slice by slice, one in 3D patch by patch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from monai_ext.data.canvas import filled_box
from monai_ext.inference.engines import Engine
from monai_ext.inference.graphs import EngineError
from monai_ext.inference.maker import Maker
from monai_ext.networks.pmm_synth import OneTask
from monai_ext.runtime import autocast, checked_engine, memory_format, wanted_dtype


class SlicesInferer(Inferer):
    """Take a 2D network over the axial slices of a volume: (1, M, I, J, K) -> (1, K', I, J, K) float32 in [0, 1].

    As MONAI's `SliceInferer` does with whole slices, without its weights, counts and copies for windows that overlap,
    and with all slices of a batch cut at once. Slices in which every source is zero do not go through the network:
    there is nothing to synthesise from, and the result is zero. More arguments of a call are the network's; with an
    `output_size` among them the planes are of that size, and whole.

    Args:
        batch_size: slices at a time.
        amp: precision, see `monai_ext.runtime`.
        engine: what runs the network, see `monai_ext.inference.engines`.
        progress: whether a bar is shown.
        neighbours: n puts n slices of either side beside each source, as `SliceDataset` does.
        margin: the network sees the rows and columns in which the volume shows anything, and so many more on each
            side, zeros where the volume ends: norms over a plane then do not depend on how much background there is,
            and it takes less time. None is whole planes.
        canvas: the network sees whole planes instead, with zeros round those of fewer rows or columns than this, as
            `monai_ext.training.datasets.samples` shows them to one that learns: FD-GAN's blocks and norms over a
            plane depend on it. `margin` does not count then.

    Raises:
        ValueError: a number that may not be, or inputs that are not one volume.

    Example:
        >>> volume = torch.rand(1, 2, 16, 16, 3)  # two sources, three slices
        >>> volume[..., 2] = 0
        >>> synthetic = SlicesInferer(amp=False)(volume, lambda slices: slices.mean(1, keepdim=True))
        >>> synthetic.shape, torch.allclose(synthetic[0, 0], volume[0].mean(0)), bool(synthetic[..., 2].any())
        (torch.Size([1, 1, 16, 16, 3]), True, False)
    """

    def __init__(
        self,
        *,
        batch_size: int = 4,
        amp: bool | str = True,
        engine: str = "torch",
        progress: bool = False,
        neighbours: int = 0,
        margin: int | None = None,
        canvas: int | None = None,
    ) -> None:
        super().__init__()
        if canvas is not None and (type(canvas) is not int or canvas < 1):
            raise ValueError(f"canvas must be at least 1, or null for the head and its margin, got {canvas!r}")
        if margin is not None and margin < 0:
            raise ValueError(f"margin must be at least 0, or null for whole planes, got {margin}")
        self.around, self.margin, self.canvas = torch.arange(-neighbours, neighbours + 1), margin, canvas
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.amp, self.progress = batch_size, amp, progress
        self.engine = Engine(engine, amp=amp)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """(1, M, I, J, K) -> (1, K', I, J, K)"""
        if inputs.dim() != 5 or len(inputs) != 1:
            raise ValueError(f"inputs must be one volume (1, M, I, J, K), got {tuple(inputs.shape)}")
        if self.canvas is not None and "output_size" not in kwargs:
            (top, below), (left, right) = (_in_the_middle(side, self.canvas) for side in inputs.shape[2:4])
            whole = self._planes(pad(inputs, (0, 0, left, right, top, below)), network, *args, **kwargs)
            return whole.narrow(2, top, inputs.shape[2]).narrow(3, left, inputs.shape[3])
        if self.margin is not None and "output_size" not in kwargs:
            around = self.margin + 8  # beyond the volume's own planes too, so that what is around the head is its alone
            wide = pad(inputs, (0, 0, around, around, around, around))
            rows, columns = filled_box(wide[0].permute(0, 3, 1, 2), margin=self.margin, multiple=8)
            cropped = self._planes(wide[:, :, rows, columns], network, *args, **kwargs)
            result = cropped.new_zeros(1, cropped.shape[1], *wide.shape[2:])
            result[:, :, rows, columns] = cropped
            return result[:, :, around:-around, around:-around]
        return self._planes(inputs, network, *args, **kwargs)

    def _planes(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """(1, M, I, J, K) -> (1, K', I, J, K), all of every plane through the network"""
        slices = inputs[0].permute(3, 0, 1, 2).contiguous()  # now each is one block of memory
        filled = torch.nonzero(slices.amax(dim=(1, 2, 3)))[:, 0]  # images are in [0, 1]
        run = network
        if len(filled):
            sample = self._with_neighbours(slices, filled[[len(filled) // 2]])
            run = self.engine.best_for(network, sample, count=len(filled), plain=not args and not kwargs)
        try:
            return self._through(run, slices, filled, *args, **kwargs)
        except EngineError as error:
            return self._through(self.engine.after(error, network), slices, filled, *args, **kwargs)

    def _through(
        self, network: Callable[..., Tensor], slices: Tensor, filled: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """(K, M, I, J), which of them to take through -> (1, K', I, J, K)"""
        self.engine.begin(network, slices.device)
        layout = memory_format(slices.device, wanted_dtype(slices.device, self.amp))
        result = slices.new_zeros(len(slices), 1, *slices.shape[2:])  # until the network says how many channels it has
        batches = filled.split(self.batch_size) if len(filled) else ()
        with autocast(slices.device, self.amp):
            for which in tqdm(batches, desc="slices", unit="batch", leave=False, disable=not self.progress):
                answer = network(self._with_neighbours(slices, which).contiguous(memory_format=layout), *args, **kwargs)
                if answer.shape[1:] != result.shape[1:]:
                    result = slices.new_zeros(len(slices), *answer.shape[1:])
                result[which] = answer.float().clamp(0, 1)
        return result.permute(1, 2, 3, 0)[None]

    def _with_neighbours(self, slices: Tensor, which: Tensor) -> Tensor:
        """(K, M, I, J), (B,) -> (B, M * (2n + 1), I, J), edge slices repeated"""
        if len(self.around) == 1:
            return slices[which]
        near = (which[:, None] + self.around.to(which.device)).clamp(0, len(slices) - 1)
        return slices[near].transpose(1, 2).flatten(1, 2)


def _in_the_middle(side: int, canvas: int) -> tuple[int, int]:
    """How many pixels a canvas has before and after a side; larger sides come to multiples of 8, as graphs ask."""
    more = canvas - side if side <= canvas else -side % 8
    return more // 2, more - more // 2


class AnySourcesInferer(SlicesInferer):
    """A `SlicesInferer` for a network that takes whichever contrasts are there, and the site.

    What nobody asks for is not computed. A source that ends before the others is there in its own slices alone.

    Args:
        maker: which contrasts are there and wanted, and the site.
        options: of `SlicesInferer`.
    """

    def __init__(self, *, maker: Maker, **options: Any) -> None:
        super().__init__(**options)
        self.maker = maker

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """(1, M, I, J, K) -> (1, M, I, J, K), zeros where nothing was wanted; a source that is all zero is not there"""
        assert self.maker.task is not None
        is_source = (inputs[0] != 0).flatten(1).any(1)
        targets, site, (_, outputs) = self.maker.task.targets, self.maker.site, self.maker.channels
        wanted = ~is_source if targets is None else torch.tensor([c in targets for c in outputs], device=inputs.device)

        number = None if site is None else network.site_index(site)
        task = OneTask(network, given=is_source, site=number, wanted=wanted)
        return super().__call__(inputs, task, *args, **kwargs)

    def _planes(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """(1, M, I, J, K) -> (1, M, I, J, K), slices with the same sources together"""
        shown = (inputs[0] != 0).flatten(1, 2).any(1).T  # (K, M)
        kinds = shown[shown.any(1)].unique(dim=0)
        if len(kinds) < 2:
            return super()._planes(inputs, network, *args, **kwargs)
        made: Tensor | float = 0.0
        for kind in kinds:
            task = OneTask(network.network, given=kind, site=network.site, wanted=torch.tensor(network.wanted))
            made = made + super()._planes(inputs * (shown == kind).all(1), task, *args, **kwargs)
        assert isinstance(made, Tensor)
        return made


class PatchesInferer(SlidingWindowInferer):
    """Take a 3D network over a volume patch by patch: (1, M, I, J, K) -> (1, K', I, J, K) float32 in [0, 1].

    MONAI's sliding window. Patches overlap by half and are blended with Gaussian weights, so that no seam is seen.

    Args:
        patch_size: voxels along i, j and k.
        batch_size: patches at a time.
        amp: precision, see `monai_ext.runtime`.
        engine: "torch" or "auto", which is torch: other engines take slices.
        progress: whether a bar is shown.

    Raises:
        ValueError: another engine.
    """

    def __init__(
        self,
        *,
        patch_size: Sequence[int],
        batch_size: int = 1,
        amp: bool | str = True,
        engine: str = "torch",
        progress: bool = False,
    ) -> None:
        super().__init__(patch_size, batch_size, overlap=0.5, mode="gaussian", progress=progress)
        if checked_engine(engine) not in ("auto", "torch"):
            raise ValueError(f"a network in 3D is run by torch, got engine {engine}: give --engine auto")
        self.amp, self.engine = amp, Engine("torch", amp=amp)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """(1, M, I, J, K) -> (1, K', I, J, K)"""
        self.engine.begin(network, inputs.device)
        with autocast(inputs.device, self.amp):
            result = super().__call__(inputs, lambda x: network(x, *args, **kwargs).float().clamp(0, 1))
        assert isinstance(result, Tensor)
        return result
