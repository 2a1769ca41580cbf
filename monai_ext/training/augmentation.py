"""Training on sources that are harmed as robustness runs harm them: displaced, turned, moved in, or noisy."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Randomizable, Transform
from torch import Tensor

from monai_ext.data.perturbations import Perturbation, perturb, randomize
from monai_ext.modalities import canonical


class HarmSources(Randomizable, Transform):
    """Each of the perturbations of a slice's sources, at one of its levels, all of them as likely; the target stays.

    Args:
        perturbations: as evaluation takes them, {"kind": "translate", "contrast": "T2", "levels": [0, 3]}.
        sources: the contrasts in the order of the channels, each with its neighbours beside it.

    Raises:
        ValueError: a perturbation is none, or is of a contrast that is no source.
    """

    def __init__(self, perturbations: Sequence[Mapping[str, Any]], *, sources: Sequence[str]) -> None:
        self.sources = [canonical(name) for name in sources]
        self.perturbations = [Perturbation(**perturbation) for perturbation in perturbations]
        for perturbation in self.perturbations:
            if perturbation.contrast not in self.sources:
                named = f"{perturbation.kind} of {perturbation.contrast or 'nothing'}"
                raise ValueError(f"augment harms sources, {', '.join(self.sources)}, got {named}")

    def randomize(self, data: Any = None) -> None:  # noqa: ARG002 - Randomizable's
        """Draw a level of each perturbation, and the seed of where it goes.

        Args:
            data: MONAI's; not looked at.
        """
        self.levels = [
            perturbation.levels[self.R.randint(len(perturbation.levels))] for perturbation in self.perturbations
        ]
        self.seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """(M, H, W) in "sources" -> the same; the other entries as they are"""
        self.randomize()
        sources: Tensor = torch.as_tensor(data["sources"]).as_subclass(torch.Tensor)
        volume = sources.unflatten(0, (len(self.sources), -1)).movedim(1, -1)  # (M, H, W, slices of a contrast)
        shape = (volume.shape[1], volume.shape[2], volume.shape[3])
        for perturbation, level in zip(self.perturbations, self.levels, strict=True):
            draw = randomize(perturbation, shape, seed=self.seed, subject="")
            volume = perturb(perturbation, volume, draw, level=level, sources=self.sources)
        return {**data, "sources": volume.movedim(-1, 1).flatten(0, 1)}
