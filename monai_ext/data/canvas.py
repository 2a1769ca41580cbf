"""Where on its canvas an image shows something: what norms and pools over a canvas should see, whatever its size."""

import torch
from torch import Tensor

DARK = 0.05  # of white: noise of the background is below it, and skin above


def filled_box(images: Tensor, *, margin: int = 0, multiple: int = 1) -> tuple[slice, slice]:
    """Find the rows and columns that hold all that is not dark.

    Args:
        images: (..., H, W) in [0, 1]; what any of them shows counts.
        margin: pixels more on each side, where the canvas has them.
        multiple: of which the box's sides are multiples, where the canvas has room for it.

    Returns:
        Two slices; of the whole canvas where nothing is there.
    """
    filled = (images > DARK).flatten(0, -3).any(0) if images.dim() > 2 else images > DARK
    rows, columns = (
        _side(torch.nonzero(filled.any(axis)).flatten(), filled.shape[1 - axis], margin=margin, multiple=multiple)
        for axis in (1, 0)
    )
    return rows, columns


def _side(where: Tensor, size: int, *, margin: int, multiple: int) -> slice:
    if not len(where):
        return slice(0, size)
    first, stop = max(0, int(where[0]) - margin), min(size, int(where[-1]) + 1 + margin)
    wanted = min(size, -(-(stop - first) // multiple) * multiple)
    first = max(0, min(first - (wanted - (stop - first)) // 2, size - wanted))
    return slice(first, first + wanted)
