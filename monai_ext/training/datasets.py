"""What a network is trained on and validated on: slices or patches of subjects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import Compose, ResizeWithPadOrCropd
from torch.utils.data import Dataset

from monai_ext.data.batching import Draw, draw_condition
from monai_ext.data.datalist import Subject
from monai_ext.data.patches import PatchDataset
from monai_ext.data.slices import SliceDataset
from monai_ext.training.augmentation import HarmSources

LOOKED_AT = 8  # slices, to see whether heads fit
BRIGHT = 0.1  # of the brightest; what is below may be noise around the head
MOST_LOST = 0.1  # of what is bright in them


def samples(
    *,
    data: Sequence[Subject],
    sources: Sequence[str],
    target: Sequence[str],
    slices: str | Sequence[Any],
    image_size: int,
    patch_size: Sequence[int] | None = None,
    patches: int = 8,
    neighbours: int = 0,
    allow_missing: bool = False,
    augment: Sequence[Mapping[str, Any]] = (),
) -> SliceDataset:
    """Make the dataset that a network is trained on: slices cut or padded to `image_size`, or patches for one in 3D.

    Args:
        data: the subjects.
        sources, target: channels of "sources" and of "target".
        slices: which of a subject's, see `SliceDataset`.
        image_size: of a slice's two axes.
        patch_size: of three axes; then `image_size` does not count.
        patches: how many of them a subject and epoch.
        neighbours: slices on either side of a source's.
        allow_missing: contrasts that a subject lacks are zeros, and "available" says so.
        augment: perturbations of sources, as evaluation takes them; see `HarmSources`.

    Returns:
        A `SliceDataset`, or a `PatchDataset` where there is a `patch_size`.

    Raises:
        ValueError: more than a tenth of the heads lies outside `image_size`, or an argument that may not be.
    """
    if patch_size is not None:
        if augment:
            raise ValueError(f"augment is for slices, and patch_size {list(patch_size)} asks for patches in 3D")
        options: dict[str, Any] = {"slices": slices, "patch_size": patch_size, "per_subject": patches}
        return PatchDataset(data, sources=sources, target=target, **options)
    crop: Any = ResizeWithPadOrCropd(keys=["sources", "target"], spatial_size=(image_size, image_size))
    if augment:
        crop = Compose([crop, HarmSources(augment, sources=sources)])
    options = {"slices": slices, "neighbours": neighbours, "allow_missing": allow_missing}
    whole = SliceDataset(data, sources=sources, target=target, **options)
    _refuse_cut_heads(whole, image_size)
    whole.transform, whole.size = crop, (image_size, image_size)
    return whole


def _refuse_cut_heads(dataset: SliceDataset, image_size: int) -> None:
    """A network that is shown the middle of heads alone would learn nothing of the rest, and nobody be told."""
    sizes = [kind.size for kind in dataset.kinds]
    large = [number for number, size in enumerate(sizes) if max(size) > image_size]
    if not large:
        return
    crop = ResizeWithPadOrCropd(keys=["sources"], spatial_size=(image_size, image_size))
    looked_at = [dataset[large[round(at)]] for at in np.linspace(0, len(large) - 1, min(LOOKED_AT, len(large)))]
    whole = sum(int((item["sources"] > BRIGHT).sum()) for item in looked_at)
    kept = sum(int((crop({"sources": item["sources"]})["sources"] > BRIGHT).sum()) for item in looked_at)
    if whole - kept > MOST_LOST * whole:
        height, width = sizes[large[0]]
        raise ValueError(
            f"image_size {image_size} cuts slices of {height} x {width}, such as {looked_at[0]['subject']}'s, and "
            f"{(whole - kept) / whole:.0%} of the heads with them: give --image_size {max(map(max, sizes))}, or "
            f"prepare the data with larger voxels and smaller slices (`prepare --spacing 2 --size {image_size}`)"
        )


class ValidationTasks(Dataset[dict[str, Any]]):
    """One task a slice of `slices`, always the same: sources, and one contrast to make, as "target" and "wanted".

    Args:
        slices: whose sources and target are one list.
        seed: draws the tasks.
    """

    def __init__(self, slices: SliceDataset, *, seed: int = 0) -> None:
        self.slices = slices
        rng = np.random.default_rng(seed)
        self.tasks: list[tuple[tuple[bool, ...], int]] = []
        for kind in slices.kinds:
            condition = draw_condition(kind.available, epoch=0, curriculum=0, rng=rng)
            left = [n for n, present in enumerate(kind.available) if present and not condition[n]]
            self.tasks.append((condition, int(rng.choice(left))))

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        condition, wanted = self.tasks[index]
        item = self.slices[Draw(index, 0, condition)]
        return {**item, "target": item["target"][wanted : wanted + 1], "wanted": wanted}
