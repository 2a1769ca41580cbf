"""A look at what FD-GAN takes apart: the anatomy that contrasts share, and the style of one of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_ext.data.montage import montage
from monai_ext.data.slices import SliceDataset
from monai_ext.files import absolute
from monai_ext.networks import FDGAN

ROW = 160  # pixels


@torch.no_grad()
def picture(network: FDGAN, data: SliceDataset, *, path: Path | str, slices: int = 3) -> Path:
    """Write a PNG with a row for each of some slices, spread evenly over the data, and print where it is.

    The sources, the pseudo-target, the anatomy's channels as colours, the prediction, the truth; then the same anatomy
    in each source's style.

    Args:
        network: trained.
        data: whose slices are shown.
        path: of the PNG.
        slices: how many rows.

    Returns:
        The path.
    """
    items = [data[place] for place in spread(len(data), slices)]
    device = next(network.parameters()).device
    x = torch.stack([item["sources"] for item in items]).to(device)
    prediction, pseudo_target = network.forward_with_pseudo_target(x)
    content = network.content(x)
    sources = x.unflatten(1, (len(data.sources), -1))
    sources = sources[:, :, sources.shape[2] // 2]  # a source's own slice, not its neighbours
    swapped = [network.decode(content, network.style(sources[:, [number]])) for number in range(sources.shape[1])]
    target = ", ".join(data.target)
    columns: list[tuple[str, Any]] = [
        *((name, sources[:, number]) for number, name in enumerate(data.sources)),
        ("pseudo-target", pseudo_target[:, 0]),
        ("anatomy", colours(content)),
        (f"SYNTHETIC {target}", prediction[:, 0]),
        (f"{target}, acquired", torch.stack([item["target"][0] for item in items])),
        *((f"in {name}'s style", restyled[:, 0]) for name, restyled in zip(data.sources, swapped, strict=True)),
    ]
    rows = [[upright(images[number]) for _, images in columns] for number in range(len(items))]
    written = montage(rows, titles=[name for name, _ in columns], path=absolute(Path(path)), height=ROW, white=1.0)
    print(f"look at {written}")
    return written


def colours(features: Tensor) -> Tensor:
    """Show features as colours: the three directions in which pixels differ most are red, green and blue.

    Args:
        features: (B, C, H, W).

    Returns:
        (B, H, W, 3) in [0, 1].
    """
    pixels = features.float().movedim(1, -1).flatten(0, 2)
    pixels = pixels - pixels.mean(0)
    _, _, directions = torch.pca_lowrank(pixels, q=3, center=False, niter=8)
    peaks = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    along = pixels @ (directions * peaks.sign())  # a direction's sign is arbitrary: its largest part is positive
    low, high = (along.quantile(share, dim=0) for share in (0.02, 0.98))
    shown = ((along - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return shown.reshape(features.shape[0], *features.shape[2:], 3)


def spread(length: int, count: int) -> list[int]:
    """Choose places spread evenly over a length, and away from its ends.

    Args:
        length: of what there is.
        count: how many are chosen.

    Returns:
        Rising indices from 0 to length - 1; where there are fewer than `count`, some come more than once.
    """
    return [int(place) for place in np.linspace(0, length - 1, count + 2)[1:-1].round()]


def upright(image: Tensor) -> NDArray[np.float32]:
    """Turn a slice to how it is looked at, anterior up.

    Args:
        image: as it is stored, (I, J) or in colour (I, J, 3).

    Returns:
        float32 (J, I) or (J, I, 3), on the CPU.
    """
    return np.rot90(image.float().cpu().numpy())
