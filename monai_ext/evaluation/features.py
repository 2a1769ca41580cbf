"""What the stages of a network hold of a slice, as colours (AGI-Net, Fig. 6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_ext.data.montage import montage
from monai_ext.data.slices import SliceDataset
from monai_ext.evaluation.disentanglement import ROW, colours, spread, upright
from monai_ext.files import absolute


@torch.no_grad()
def picture(
    network: nn.Module, data: SliceDataset, *, path: Path | str, stages: Sequence[str], slices: int = 3
) -> Path:
    """Write a PNG with a row for each of some slices, spread evenly over the data, and print where it is.

    The sources, what each stage gives with its three main directions as red, green and blue, the prediction, the truth.
    A stage's directions are its own: colours of two stages, or of two networks, do not mean the same.

    Args:
        network: trained.
        data: whose slices are shown.
        path: of the PNG.
        stages: parts of the network, by name, each of which gives (B, C, H, W).
        slices: how many rows.

    Returns:
        The path.

    Raises:
        ValueError: the network has no part of such a name.
    """
    parts = dict(network.named_modules())
    held: dict[str, Tensor] = {}
    hooks = []
    for stage in stages:
        if stage not in parts:
            own = ", ".join(name for name, _ in network.named_children())
            raise ValueError(f"{type(network).__name__} has no part {stage!r}; its parts are {own}")
        hooks.append(parts[stage].register_forward_hook(lambda _, __, y, stage=stage: held.update({stage: y})))
    items = [data[place] for place in spread(len(data), slices)]
    x = torch.stack([item["sources"] for item in items]).to(next(network.parameters()).device)
    try:
        prediction = network.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
    target = ", ".join(data.target)
    columns: list[tuple[str, Any]] = [
        *((name, x[:, number]) for number, name in enumerate(data.sources)),
        *((stage, colours(held[stage])) for stage in stages),
        (f"SYNTHETIC {target}", prediction[:, 0]),
        (f"{target}, acquired", torch.stack([item["target"][0] for item in items])),
    ]
    rows = [[upright(images[number]) for _, images in columns] for number in range(len(items))]
    written = montage(rows, titles=[name for name, _ in columns], path=absolute(Path(path)), height=ROW, white=1.0)
    print(f"look at {written}")
    return written
