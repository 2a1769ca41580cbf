"""What a glance at a scan tells: its contrast, whether the skull is there, which way up it lies, and how strange it is.

A small network that was trained on phantoms alone (`tools/train_recogniser.py`); its weights and what was measured of
it on phantoms that it had not seen lie beside this file.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from monai_ext.inference.coarse import Glance, cube
from monai_ext.modalities import MODALITIES

WEIGHTS = Path(__file__).with_name("recogniser.npz")
WIDTHS = (12, 24, 48, 64)
# How a head may lie along (right, front, top): first mirrored along its front, along its top, then its axes exchanged.
# Along left and right it is nearly its own mirror image: which of the two it shows cannot be seen.
POSES = tuple((axes, front, top) for axes in permutations(range(3)) for front in (False, True) for top in (False, True))
UPRIGHT = 0
_AXES = ("left-right", "front-back", "head-foot")


class Recogniser(nn.Module):
    """A 3D network of three heads over one trunk."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = WIDTHS
        self.trunk = nn.Sequential(
            _block(1, first, stride=2), _block(first, second, stride=2), _block(second, third, stride=2),
            _block(third, last, stride=1),
        )  # fmt: skip
        self.features = nn.Linear(2 * last, last)
        self.contrast = nn.Linear(last, len(MODALITIES))
        self.skull = nn.Linear(last, 1)
        self.pose = nn.Linear(last * 27, len(POSES))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 1, S, S, S) -> logits (B, 7), (B,), (B, 24) and features (B, 64)."""
        maps = self.trunk(image)
        pooled = torch.cat([maps.mean(dim=(2, 3, 4)), maps.amax(dim=(2, 3, 4))], dim=1)
        features = functional.relu(self.features(pooled))
        places = functional.adaptive_avg_pool3d(maps, 3).flatten(1)
        return self.contrast(features), self.skull(features)[:, 0], self.pose(places), features


def _block(channels: int, width: int, *, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(channels, width, 3, stride=stride, padding=1), nn.GroupNorm(4, width), nn.ReLU(inplace=True)
    )


def posed(array: NDArray[Any], pose: int) -> NDArray[Any]:
    """An upright (R, A, S) array as it lies in a pose."""
    axes, front, top = POSES[pose]
    if front:
        array = array[:, ::-1]
    if top:
        array = array[:, :, ::-1]
    return array.transpose(axes)


def pose_in_words(pose: int) -> str:
    """What is wrong with a header that calls this pose upright."""
    axes, front, top = POSES[pose]
    if axes == (0, 1, 2):
        return {(True, False): "back to front", (False, True): "upside down"}.get(
            (front, top), "turned over, upside down and back to front"
        )
    return "with its axes exchanged: " + ", ".join(
        f"what the header calls {_AXES[n]} is {_AXES[axis]}" for n, axis in enumerate(axes) if n != axis
    )


@dataclass(frozen=True)
class Seen:
    """Probabilities: of each contrast, that the skull is there, of each of POSES; and the distance from training.

    `distance` is Mahalanobis's to the nearest contrast's phantoms, divided by what 99% of unseen phantoms keep.
    """

    contrasts: dict[str, float]
    skull: float
    poses: NDArray[np.float64]
    distance: float

    @property
    def contrast(self) -> str:
        """The likeliest."""
        return max(self.contrasts, key=lambda name: self.contrasts[name])


@dataclass(frozen=True)
class Trained:
    """The network and what was measured on phantoms that it had not seen."""

    network: Recogniser
    means: NDArray[np.float64]  # (7, F)
    precision: NDArray[np.float64]  # (F, F)
    farthest: float
    about: dict[str, Any]

    def distances(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, F) -> (N,): 1 is where 99% of unseen phantoms end."""
        return mahalanobis(features, self.means, self.precision) / self.farthest


def mahalanobis(
    features: NDArray[np.float64], means: NDArray[np.float64], precision: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, F) to the nearest of the means (C, F): (N,)."""
    apart = features[:, None] - means[None]
    return np.sqrt(np.einsum("ncf,fg,ncg->nc", apart, precision, apart).min(axis=1))


@lru_cache(maxsize=2)
def trained(path: Path = WEIGHTS) -> Trained:
    """The recogniser at `path`, read once."""
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    about = json.loads(bytes(values.pop("about")).decode())
    means, precision = (values.pop(name).astype(np.float64) for name in ("means", "precision"))
    network = Recogniser().eval()
    network.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()})
    return Trained(network, means, precision, float(about["farthest"]), about)


@torch.inference_mode()
def recognise(seen: Glance) -> Seen:
    """The mean of what is seen of the scan and of its mirror image."""
    model = trained()
    image = torch.from_numpy(cube(seen.array, seen.head))
    contrast, skull, pose, features = model.network(torch.stack([image, image.flip(0)])[:, None])
    probability = contrast.softmax(dim=1).mean(dim=0).double().numpy()
    return Seen(
        contrasts={name: float(share) for name, share in zip(MODALITIES, probability, strict=True)},
        skull=float(skull.sigmoid().mean()),
        poses=pose[:1].softmax(dim=1)[0].double().numpy(),
        distance=float(model.distances(features.mean(dim=0, keepdim=True).double().numpy())[0]),
    )
