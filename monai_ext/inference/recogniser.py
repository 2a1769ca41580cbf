"""What a glance at a scan tells: its contrast, whether the skull is there, which way up it lies, and how strange it is.

A small network sees the head in cubes of 4 mm. It was trained on phantoms alone, with `tools/train_recogniser.py`; its
weights and what was measured of it on phantoms of people that it had not seen lie beside this file.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_ext.inference.coarse import SIDE, Glance, cube
from monai_ext.modalities import MODALITIES

WEIGHTS = Path(__file__).with_name("recogniser.npz")
WIDTHS = (1, 12, 32, 64, 96)  # channels; all but the last stage halve the image
PLACED = 12  # channels that keep where they are, for the pose
HIDDEN = 64

# How a head may lie along (right, front, top): first mirrored along its front, along its top, then its axes exchanged.
# Along left and right it is nearly its own mirror image: which of the two it shows cannot be seen.
POSES = tuple((axes, front, top) for axes in permutations(range(3)) for front in (False, True) for top in (False, True))
UPRIGHT = 0
_AXES = ("left-right", "front-back", "head-foot")


def posed(array: NDArray[Any], pose: int) -> NDArray[Any]:
    """Turn an upright array as it lies in a pose.

    Args:
        array: (R, A, S): rightwards, frontwards, upwards.
        pose: a number of POSES; UPRIGHT changes nothing.

    Returns:
        A view, its axes in the pose's order.
    """
    axes, front, top = POSES[pose]
    if front:
        array = array[:, ::-1]
    if top:
        array = array[:, :, ::-1]
    return array.transpose(axes)


def pose_in_words(pose: int) -> str:
    """Say how a head lies whose header calls this pose upright.

    Args:
        pose: a number of POSES, not UPRIGHT.

    Returns:
        Such as "upside down", for a sentence.

    Raises:
        KeyError: it is UPRIGHT.

    Example:
        >>> pose_in_words(POSES.index(((0, 1, 2), False, True)))
        'upside down'
    """
    axes, front, top = POSES[pose]
    if axes == (0, 1, 2):
        return {(True, False): "back to front", (False, True): "upside down", (True, True): "turned over"}[front, top]
    changed = [f"{_AXES[axis]} along {_AXES[n]}" for n, axis in enumerate(axes) if n != axis]
    return f"with its axes exchanged ({', '.join(changed)})"


@dataclass(frozen=True)
class Seen:
    """Probabilities: of each contrast, that the skull is there, of each of POSES; and the distance from training.

    `distance` is the figures' to the nearest contrast's phantoms (Mahalanobis), where 99% of unseen phantoms keep
    below 1.
    """

    contrasts: dict[str, float]
    skull: float
    poses: NDArray[np.float64]
    distance: float

    @property
    def pose(self) -> int:
        """The likeliest."""
        return int(np.argmax(self.poses))


class Recogniser(nn.Module):
    """See cubes of a head: (B, 1, S, S, S), of `coarse.cube`, -> logits of contrast and skull, of pose; and figures.

    Figures (B, HIDDEN) are what contrast and skull are told by: strange scans lie far from all phantoms' there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(a, b, 3, stride=1 if b == WIDTHS[-1] else 2, padding=1, bias=False),
                nn.BatchNorm3d(b),
                nn.ReLU(),
            )
            for a, b in pairwise(WIDTHS)
        )
        self.figures = nn.Sequential(nn.Linear(2 * WIDTHS[-1], HIDDEN), nn.ReLU())
        self.looks = nn.Linear(HIDDEN, len(MODALITIES) + 1)
        self.places = nn.Conv3d(WIDTHS[-1], PLACED, 1)
        places = PLACED * (SIDE // 8) ** 3
        self.lies = nn.Sequential(nn.Linear(places, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(POSES)))

    def forward(self, cubes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1, S, S, S) -> (B, 7 + 1), the contrasts in the order of MODALITIES, then the skull; (B, 24); figures."""
        x = cubes
        for stage in self.stages:
            x = stage(x)
        pooled = torch.cat([x.mean(dim=(2, 3, 4)), x.amax(dim=(2, 3, 4))], dim=1)
        figures = self.figures(pooled)
        return self.looks(figures), self.lies(self.places(x).flatten(1)), figures


@dataclass(frozen=True)
class Trained:
    """The recogniser, and what was measured of it.

    Attributes:
        network: in eval mode; nothing may change it.
        centres: (7, H), where each contrast's phantoms lie.
        precision: (H, H), the inverse of the covariance that all contrasts share.
        farthest: the distance that 99 in 100 unseen phantoms keep below.
        implausible: the true contrast's probability that one unseen phantom in a thousand falls below.
        sure_of_pose: the probability above which a pose is hardly ever wrong.
    """

    network: Recogniser
    centres: NDArray[np.float32]
    precision: NDArray[np.float32]
    farthest: float
    implausible: float
    sure_of_pose: float


def distances(
    figures: NDArray[np.float32], centres: NDArray[np.float32], precision: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Measure how far figures are from the nearest of the centres (Mahalanobis).

    Args:
        figures: (N, H), of `Recogniser`.
        centres: (C, H).
        precision: (H, H), the inverse of the covariance that all centres share.

    Returns:
        (N,), in standard deviations.
    """
    apart = (figures[:, None] - centres[None]).astype(np.float64)
    return np.sqrt(np.einsum("ncf,fg,ncg->nc", apart, precision, apart).min(axis=1))


@lru_cache(maxsize=2)
def trained(path: Path = WEIGHTS) -> Trained:
    """Read a recogniser; the last two are kept.

    Args:
        path: an .npz of `tools/train_recogniser.py`.

    Returns:
        Its network and what was measured of it; nothing may change it.

    Raises:
        OSError: it is not there.
    """
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    about = json.loads(bytes(values.pop("about")).decode())
    centres, precision = (values.pop(name).astype(np.float32) for name in ("centres", "precision"))
    network = Recogniser()
    state = {name: torch.from_numpy(value) for name, value in values.items()}
    network.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()})
    return Trained(
        network=network.eval().requires_grad_(False),
        centres=centres,
        precision=precision,
        farthest=float(about["farthest"]),
        implausible=float(about["implausible"]),
        sure_of_pose=float(about["sure_of_pose"]),
    )


def recognise(glance: Glance) -> Seen:
    """Tell what is seen of a scan, by the recogniser that lies beside this file.

    Args:
        glance: of `coarse.glance`.

    Returns:
        Probabilities, and how far the scan is from phantoms.
    """
    model = trained()
    looks, lies, figures = model.network(torch.from_numpy(cube(glance.array, glance.head))[None, None])
    contrasts = looks[0, :-1].double().softmax(0)
    return Seen(
        contrasts={name: float(p) for name, p in zip(MODALITIES, contrasts, strict=True)},
        skull=float(looks[0, -1].double().sigmoid()),
        poses=lies[0].double().softmax(0).numpy(),
        distance=float(distances(figures.numpy(), model.centres, model.precision)[0] / model.farthest),
    )
