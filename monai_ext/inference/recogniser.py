"""What a glance at a scan tells: its contrast, whether the skull is there, which way up it lies, and how strange it is.

Plain figures of the image (how bright, how uneven and how edged it is, shell by shell from the middle outwards) go
through a small network, its coarsest picture through another that sees how the head lies. Both were trained on phantoms
alone by `tools/train_recogniser.py`; their weights and what was measured of them on unseen phantoms lie beside this
file. Nothing but numpy is needed.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.inference.coarse import Glance, cube
from monai_ext.modalities import MODALITIES

WEIGHTS = Path(__file__).with_name("recogniser.npz")
DARK = 1 / 12  # of the bright: less is background
SHELLS = (0.0, 0.45, 0.75, 1.05, 1.35, 1.75, 9.0)  # of the head's own radius along each axis
LEVELS = np.linspace(0, 1.2, 21)
SLOPES = np.linspace(0, 0.4, 7)
PERCENTILES = (2, 10, 25, 50, 75, 90, 98)
BLOCKS = 10  # along each side of the head's box, for its pose
LARGEST = 4.0  # standard deviations: figures further out are held there

# How a head may lie along (right, front, top): first mirrored along its front, along its top, then its axes exchanged.
# Along left and right it is nearly its own mirror image: which of the two it shows cannot be seen.
POSES = tuple((axes, front, top) for axes in permutations(range(3)) for front in (False, True) for top in (False, True))
UPRIGHT = 0
_AXES = ("left-right", "front-back", "head-foot")


def profile(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the figures of a cube, the same however it is turned by right angles.

    Args:
        image: (S, S, S), of `coarse.cube`; something in it must be brighter than DARK.

    Returns:
        (F,), six shells' worth, finite.
    """
    head = np.argwhere(image > DARK)
    middle, radius = head.mean(axis=0), head.std(axis=0) * np.sqrt(5) + 1e-6  # of a ball of that spread
    places = np.ogrid[tuple(map(slice, image.shape))]
    away = 1.35 * np.sqrt(sum(((x - m) / r) ** 2 for x, m, r in zip(places, middle, radius, strict=True)))
    shell = np.digitize(away, SHELLS) - 1
    slope = np.sqrt(sum(part**2 for part in np.gradient(image)))
    around = ndimage.uniform_filter(image, 3)
    figures: list[Any] = []
    for number in range(len(SHELLS) - 1):
        inside = shell == number
        values, near = image[inside], around[inside]
        detail = values - near
        spread, count = float(detail.std()) if values.size else 0.0, max(values.size, 1)
        varied = values.size and values.std() > 1e-6 and near.std() > 1e-6
        figures += [
            np.histogram(np.minimum(values, 1.19), LEVELS)[0] / count,
            np.percentile(values, PERCENTILES) if values.size else np.zeros(len(PERCENTILES)),
            np.histogram(np.minimum(slope[inside], 0.39), SLOPES)[0] / count,
            [
                np.corrcoef(values, near)[0, 1] if varied else 0.0,
                float((detail**3).sum()) / count / (spread**3 + 1e-6),
                float((values > DARK).sum()) / count,
                spread,
            ],
        ]
    return np.nan_to_num(np.concatenate(figures)).astype(np.float32)


def blocks(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average the head's box to a few blocks, whatever its size.

    Args:
        image: (S, S, S), of `coarse.cube`; something in it must be brighter than DARK.

    Returns:
        (BLOCKS, BLOCKS, BLOCKS)

    Raises:
        IndexError: nothing is brighter than DARK.
    """
    head = image > DARK
    result = image.astype(np.float64)
    for axis in range(3):
        filled = np.flatnonzero(head.any(axis=tuple({0, 1, 2} - {axis})))
        edges = np.linspace(filled[0], filled[-1] + 1, BLOCKS + 1)
        upright = np.moveaxis(result, axis, 0)
        sums = np.concatenate([np.zeros_like(upright[:1]), np.cumsum(upright, axis=0)])
        low = np.minimum(edges.astype(int), len(sums) - 2)
        share = (edges - low).reshape(-1, 1, 1)
        at_edges = sums[low] * (1 - share) + sums[low + 1] * share
        result = np.moveaxis(np.diff(at_edges, axis=0) / (edges[1] - edges[0]), 0, axis)
    return result.astype(np.float32)


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


Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Trained:
    """Two networks of dense layers, what their figures are normalised by, and what was measured of them."""

    looks: Layers
    lies: Layers
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    centres: NDArray[np.float32]  # (7, H): each contrast's phantoms in the last hidden layer
    precision: NDArray[np.float32]  # (H, H)
    farthest: float
    implausible: float  # probability of the true contrast that one unseen phantom in a thousand falls below
    sure_of_pose: float

    def look(self, figures: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Look at figures: which contrast, and whether the skull is there.

        Args:
            figures: (N, F), of `profile`.

        Returns:
            Logits (N, 7 + 1), the contrasts' in the order of `MODALITIES` and the skull's, and the last hidden layer
            (N, H).
        """
        hidden = np.clip((figures - self.mean) / self.spread, -LARGEST, LARGEST)
        for weight, bias in self.looks[:-1]:
            hidden = np.maximum(hidden @ weight.T + bias, 0)
        weight, bias = self.looks[-1]
        return hidden @ weight.T + bias, hidden

    def lie(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Look at pictures: which way up the head lies.

        Args:
            boxes: (N, BLOCKS, BLOCKS, BLOCKS), of `blocks`.

        Returns:
            Logits (N, 24), in the order of POSES.
        """
        hidden = boxes.reshape(len(boxes), -1)
        for weight, bias in self.lies[:-1]:
            hidden = np.maximum(hidden @ weight.T + bias, 0)
        weight, bias = self.lies[-1]
        return hidden @ weight.T + bias


def distances(
    hidden: NDArray[np.float32], centres: NDArray[np.float32], precision: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Measure how far figures are from the nearest of the centres (Mahalanobis).

    Args:
        hidden: (N, H), of `Trained.look`.
        centres: (C, H).
        precision: (H, H), the inverse of the covariance that all centres share.

    Returns:
        (N,), in standard deviations.
    """
    apart = (hidden[:, None] - centres[None]).astype(np.float64)
    return np.sqrt(np.einsum("ncf,fg,ncg->nc", apart, precision, apart).min(axis=1))


@lru_cache(maxsize=2)
def trained(path: Path = WEIGHTS) -> Trained:
    """Read a recogniser; the last two are kept.

    Args:
        path: an .npz of `tools/train_recogniser.py`.

    Returns:
        Its two networks and what was measured of them; nothing may change it.

    Raises:
        OSError: it is not there.
    """
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    about = json.loads(bytes(values.pop("about")).decode())
    values = {name: value.astype(np.float32) for name, value in values.items()}

    def layers(name: str) -> Layers:
        count = sum(key.startswith(f"{name}.weight") for key in values)
        return [(values[f"{name}.weight{n}"], values[f"{name}.bias{n}"]) for n in range(count)]

    return Trained(
        looks=layers("looks"),
        lies=layers("lies"),
        mean=values["mean"],
        spread=values["spread"],
        centres=values["centres"],
        precision=values["precision"],
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
    image = cube(glance.array, glance.head)
    logits, hidden = model.look(profile(image)[None])
    return Seen(
        contrasts={name: float(p) for name, p in zip(MODALITIES, softmax(logits[:, :-1])[0], strict=True)},
        skull=float(1 / (1 + np.exp(-np.clip(logits[0, -1], -50, 50)))),
        poses=softmax(model.lie(blocks(image)[None]))[0],
        distance=float(distances(hidden, model.centres, model.precision)[0] / model.farthest),
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Turn logits into probabilities.

    Args:
        logits: (N, C), finite.

    Returns:
        (N, C); each row adds up to 1.
    """
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
