"""What a glance at a scan tells: its contrast, whether the skull is there, which way up it lies, and how strange it is.

One small network sees how the head lies and whether its skull is there, in cubes of 4 mm; another tells the contrast by
slices of 2 mm across the head. They were trained on phantoms alone, with `tools/train_recogniser.py`; their weights and
what was measured of them on phantoms of people that they had not seen lie beside this file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_ext.data.volumes import Volume
from monai_ext.inference.coarse import SIDE, Glance, cube
from monai_ext.inference.fine import SHAPE, slices
from monai_ext.modalities import MODALITIES

WEIGHTS = Path(__file__).with_name("recogniser.npz")
CUBE_WIDTHS = (1, 12, 32, 64, 96)  # channels; all but the last stage halve the image
SLICE_WIDTHS = (9, 16, 32, 64, 96)  # the first: SHADES' steps
SHADES = (0.0, 0.35, 0.65, 0.85, 1.0, 1.15, 1.4, 1.8, 2.5, 4.0)  # of the brain's middle
PLACED = 12  # channels that keep where they are, for the pose
HIDDEN = 64

# How often hospitals scan what the phantoms, which have everything, all have as often: odds, to one
TWICE = 0.02  # that a patient's two scans, given as two contrasts, are of one
SELDOM = {"PD": 0.3, "T1C": 0.5}  # beside T2 and T1, which show nearly the same
WITHOUT = {("ADC", "DWI"): 0.1, ("DWI", "ADC"): 0.3}  # the first without the second: ADC is computed of a DWI

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


def upright_axes(pose: int) -> NDArray[np.int_]:
    """Tell where the right, the front and the top of a head are that lies in a pose.

    Args:
        pose: a number of POSES.

    Returns:
        (3, 3), whose columns point there along the lying array's axes.

    Example:
        >>> upright_axes(POSES.index(((0, 1, 2), False, True)))[:, 2].tolist()  # upside down
        [0, 0, -1]
    """
    axes, front, top = POSES[pose]
    turn = np.zeros((3, 3), dtype=int)
    for axis, mirrored in enumerate((False, front, top)):
        turn[axes.index(axis), axis] = -1 if mirrored else 1
    return turn


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


class Posture(nn.Module):
    """See cubes of a head: (B, 1, S, S, S), of `coarse.cube`, -> logits that its skull is there, (B,), and of POSES."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = _stages(CUBE_WIDTHS, nn.Conv3d, nn.BatchNorm3d)
        self.skull = nn.Sequential(nn.Linear(2 * CUBE_WIDTHS[-1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.places = nn.Conv3d(CUBE_WIDTHS[-1], PLACED, 1)
        places = PLACED * (SIDE // 8) ** 3
        self.lies = nn.Sequential(nn.Linear(places, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(POSES)))

    def forward(self, cubes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, S, S, S) -> (B,), (B, 24)."""
        x = self.stages(cubes)
        pooled = torch.cat([x.mean(dim=(2, 3, 4)), x.amax(dim=(2, 3, 4))], dim=1)
        return self.skull(pooled)[:, 0], self.lies(self.places(x).flatten(1))


class Reading(nn.Module):
    """See slices across a head, of `fine.slices`, any number of them -> each slice's figures and what they tell.

    A slice is first taken apart by its shades, for contrasts differ by which tissue has which. A head's figures are its
    slices' mean: strange scans lie far from all phantoms' there. The contrast's logits are linear in them, so that a
    head's are its slices' mean as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = _stages(SLICE_WIDTHS, nn.Conv2d, nn.BatchNorm2d)
        self.figures = nn.Sequential(nn.Linear(2 * SLICE_WIDTHS[-1], HIDDEN), nn.ReLU())
        self.shows = nn.Linear(HIDDEN, len(MODALITIES))

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, H, W) -> the slices' logits of contrasts in the order of MODALITIES, (B, N, 7); figures, (B, N, F)."""
        x = self.stages(shades(planes.reshape(-1, 1, *SHAPE)))
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        figures = self.figures(pooled).reshape(*planes.shape[:2], HIDDEN)
        return self.shows(figures), figures


def shades(planes: Tensor) -> Tensor:
    """Take an image apart by brightness, step by step.

    Args:
        planes: (N, 1, H, W), from SHADES' first to its last.

    Returns:
        (N, len(SHADES) - 1, H, W): each rises from 0 at a shade to 1 at the next.

    Example:
        >>> [round(step, 2) for step in shades(torch.tensor([[[[0.5]]]])).flatten().tolist()][:3]
        [1.0, 0.5, 0.0]
    """
    return torch.cat([(planes.clamp(low, high) - low) / (high - low) for low, high in pairwise(SHADES)], dim=1)


def _stages(widths: Sequence[int], convolution: type[nn.Module], norm: type[nn.Module]) -> nn.Sequential:
    """All but the last halve the image."""
    return nn.Sequential(
        *(
            nn.Sequential(
                convolution(a, b, 3, stride=1 if b == widths[-1] else 2, padding=1, bias=False), norm(b), nn.ReLU()
            )
            for a, b in pairwise(widths)
        )
    )


class Recogniser(nn.Module):
    """Both networks, whose weights lie in one file."""

    def __init__(self) -> None:
        super().__init__()
        self.posture = Posture()
        self.reading = Reading()


@dataclass(frozen=True)
class Trained:
    """The recogniser, and what was measured of it.

    Attributes:
        network: in eval mode; nothing may change it.
        centres: (7, H), where each contrast's phantoms lie.
        precision: (H, H), the inverse of the covariance that all contrasts share.
        farthest: the distance that 99 in 100 unseen phantoms keep below.
        implausible: the probability of what a scan is called below which it is hardly ever that: no more than one in
            a thousand unseen phantoms has less for what it is.
        sure_of_pose: the probability above which no more than one in a thousand unseen upright phantoms is seen to lie
            otherwise.
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
        figures: (N, H), of `Reading`, a head's mean.
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


def recognise(volume: Volume, glance: Glance) -> Seen:
    """Tell what is seen of a scan, by the recogniser that lies beside this file.

    Args:
        volume: the scan.
        glance: of it, of `coarse.glance`.

    Returns:
        Probabilities, and how far the scan is from phantoms.
    """
    model = trained()
    skull, lies = model.network.posture(torch.from_numpy(cube(glance.array, glance.head))[None, None])
    poses = lies[0].double().softmax(0).numpy()
    planes = slices(volume, glance, upright_axes(int(poses.argmax())))
    shows, figures = (part.mean(dim=1) for part in model.network.reading(torch.from_numpy(planes)[None]))
    contrasts = shows[0].double().softmax(0)
    return Seen(
        contrasts={name: float(p) for name, p in zip(MODALITIES, contrasts, strict=True)},
        skull=float(skull[0].double().sigmoid()),
        poses=poses,
        distance=float(distances(figures.numpy(), model.centres, model.precision)[0] / model.farthest),
    )


def together(scans: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Tell what each of a patient's scans shows by all of them: hardly two show one contrast, and ADC comes with DWI.

    Which scans are what they are called is judged one by one (`Seen.contrasts`): here a scan given twice, as two
    contrasts, would be taken for both.

    Args:
        scans: what each shows by itself, a probability a contrast; 0 where one is left out.

    Returns:
        The same given all of them, in their order.

    Example:
        >>> alone = {name: 0.0 for name in MODALITIES}
        >>> sure, unsure = {**alone, "FLAIR": 1.0}, {**alone, "FLAIR": 0.6, "T2": 0.4}
        >>> [max(one, key=one.get) for one in together([sure, unsure])]
        ['FLAIR', 'T2']
    """
    shares = np.array([[one.get(name, 0.0) * SELDOM.get(name, 1.0) for name in MODALITIES] for one in scans]) + 1e-9
    result = []
    for scan in range(len(scans)):
        weights = np.zeros(len(MODALITIES))
        for contrast in range(len(MODALITIES)):
            given = shares.copy()
            given[scan, np.arange(len(MODALITIES)) != contrast] = 0
            weights[contrast] = _weight(given)
        weights /= weights.sum()
        result.append({name: float(share) for name, share in zip(MODALITIES, weights, strict=True)})
    return result


def _weight(shares: NDArray[np.float64]) -> float:
    """(N, 7) -> the sum, over all that N scans may show, of how likely that is; a number's bits are contrasts there"""
    sets = np.arange(1 << len(MODALITIES))
    weights = (sets == 0).astype(float)
    for scan in shares:
        after = np.zeros_like(weights)
        for contrast, share in enumerate(scan):
            known = sets >> contrast & 1 == 1
            after[known] += share * (TWICE * weights[known] + weights[~known])  # by turns: each set with it, without it
        weights = after
    for (name, other), factor in WITHOUT.items():
        has, also = (sets >> MODALITIES.index(one) & 1 == 1 for one in (name, other))
        weights = weights * np.where(has & ~also, factor, 1.0)
    return float(weights.sum())
