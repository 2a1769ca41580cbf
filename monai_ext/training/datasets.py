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
    return SliceDataset(data, sources=sources, target=target, transform=crop, **options)


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
