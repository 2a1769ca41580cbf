"""Methods whose errors are known, and subjects as the evaluation takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor


@dataclass(frozen=True)
class Method:
    """The truth, blurred (voxels), noisy, each slice off by `stripes`, and worse with every harm to a source."""

    name: str
    blur: float = 0.0
    noise: float = 0.02
    stripes: float = 0.0
    fragile: float = 0.5

    def predict(self, image: Tensor, item: Mapping[str, Any]) -> Tensor:
        rng = np.random.default_rng([sum(item["subject"].encode()), sum(self.name.encode())])
        truth = item["target"][0].numpy()
        skill = 1 + 0.4 * rng.standard_normal()  # of the method with this subject
        made = gaussian_filter(truth, (self.blur, self.blur, 0)) + self.noise * skill * rng.standard_normal(truth.shape)
        made += self.stripes * rng.standard_normal(truth.shape[2]) * (truth > 0.05)
        harm = (image - item["image"]).abs().mean(0).numpy()
        return torch.from_numpy((made + self.fragile * harm)[None].astype(np.float32))


class Phantoms:
    """Subjects as prepared ones come: in [0, 1], with a mask of the brain."""

    protocol: Mapping[str, Any] = {"slices": ["middle", 20]}

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self.items = items
        self.current: Mapping[str, Any] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        self.current = self.items[index]
        return self.current


HARMS = ({"kind": "translate", "contrast": "T2", "levels": [0, 1, 2, 3]},)
BETTER = Method("AGI-Net", blur=0.4, noise=0.015, fragile=0.3)
WORSE = Method("ResUnet", blur=0.45, noise=0.018, stripes=0.02, fragile=0.6)
