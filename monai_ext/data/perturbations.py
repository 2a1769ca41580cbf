"""What robustness runs do to one source of a subject: displaced, turned, moved in during the scan, or noisy.

Randomness is drawn once for a subject and holds for all levels, which only scale it: a curve over the levels then
shows the level's effect and nothing else. Slice k's draw depends on the seed, the subject, the contrast and k alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from monai_ext.modalities import canonical

UNITS = {"none": "", "translate": "px", "displace": "px", "rotate": "deg", "motion": "px", "noise": "of the range"}
LEVELS = {
    "none": (0.0,),
    "translate": (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0),  # AGI-Net, Fig. 3
    "displace": (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
    "rotate": (0.0, 2.0, 4.0, 6.0, 8.0, 10.0),
    "motion": (0.0, 1.0, 2.0, 3.0, 4.0, 5.0),
    "noise": (0.0, 0.02, 0.04, 0.06, 0.08, 0.1),
}
MOVES = 6  # times that a patient moves while one slice is scanned


@dataclass(frozen=True)
class Perturbation:
    """One kind of harm to one source, at each of several levels; 0 is none at all.

    translate  every slice by a random length of up to `level` pixels along either axis of the plane: AGI-Net's "random
               translation with a range" (Fig. 3)
    displace   every slice by `level` pixels, no less, each in a random direction of the plane
    rotate     every slice by `level` degrees about its middle, each to a random side
    motion     between the k-space lines of a slice the patient moves MOVES times, each time to a random place up to
               `level` pixels and `level` degrees away: ghosts and blur (HMF-MambaINR, Table 5)
    noise      Rician, of standard deviation `level` where there is much signal; a background that is exactly 0,
               because it was cut away, stays 0

    Attributes:
        kind: one of the above, or "none".
        contrast: the source that is harmed.
        levels: how much, each at least 0 and given once.

    Raises:
        ValueError: a kind, a contrast or a level that may not be.
    """

    kind: str
    contrast: str = ""
    levels: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.kind not in UNITS:
            raise ValueError(f"kind must be one of {', '.join(UNITS)}, got {self.kind!r}")
        if self.kind != "none":
            object.__setattr__(self, "contrast", canonical(self.contrast))
        elif self.contrast or tuple(self.levels) not in ((), (0,)):
            raise ValueError(f"kind 'none' has no contrast and no levels, got {self.contrast!r}, {self.levels}")
        levels = tuple(float(level) for level in self.levels) or LEVELS[self.kind]
        if not all(0 <= level < math.inf for level in levels):
            raise ValueError(f"levels must be finite and at least 0, got {list(levels)}")
        if len(set(levels)) < len(levels):
            raise ValueError(f"levels must differ, got {list(levels)}")
        object.__setattr__(self, "levels", levels)

    def described(self) -> dict[str, Any]:
        """Describe it as a run's protocol does.

        Returns:
            "kind", "contrast", "levels" and "unit", plain values.
        """
        return {"kind": self.kind, "contrast": self.contrast, "levels": list(self.levels), "unit": UNITS[self.kind]}


class Harm(NamedTuple):
    """The random part for a volume (I, J, K), at level 1; what a kind does not use is empty.

    Attributes:
        poses: (P, K, 3), shift along i and j in pixels and turn in degrees, P of them for motion, else one.
        held: (K, J), which pose each k-space line was acquired in.
        noise: (2, I, J, K), normal deviates.
    """

    poses: Tensor
    held: Tensor
    noise: Tensor


def randomize(perturbation: Perturbation, shape: tuple[int, int, int], *, seed: int, subject: str) -> Harm:
    """Draw all that is random about a perturbation of one subject, whatever the level.

    Args:
        perturbation: what is done.
        shape: of the volume, (I, J, K).
        seed: of the evaluation.
        subject: whose name makes the draw its own.

    Returns:
        Tensors on the CPU, the same for the same four arguments.
    """
    identity = f"{perturbation.kind}/{perturbation.contrast}/{subject}".encode()
    rng = np.random.default_rng([seed, *identity])
    width, height, depth = shape
    poses, held = np.zeros((0, depth, 3)), np.zeros((0, height), dtype=np.int64)
    noise = np.zeros((2, 0, 0, 0), dtype=np.float32)
    if perturbation.kind == "translate":
        poses = np.concatenate([rng.uniform(-1, 1, (depth, 2)), np.zeros((depth, 1))], axis=1)[None]
    elif perturbation.kind == "displace":
        direction = 2 * np.pi * rng.random(depth)
        poses = np.stack([np.cos(direction), np.sin(direction), np.zeros(depth)], axis=-1)[None]
    elif perturbation.kind == "rotate":
        side = np.where(rng.random(depth) < 0.5, -1.0, 1.0)
        poses = np.stack([np.zeros(depth), np.zeros(depth), side], axis=-1)[None]
    elif perturbation.kind == "motion":
        poses, held = _motion(rng, height, depth)
    elif perturbation.kind == "noise":
        normal = rng.standard_normal((depth, 2, width, height), dtype=np.float32)
        noise = np.moveaxis(normal, 0, -1)
    return Harm(*(torch.from_numpy(np.ascontiguousarray(values)) for values in (poses, held, noise)))


def apply(perturbation: Perturbation, volume: Tensor, draw: Harm, *, level: float) -> Tensor:
    """Perturb one volume; at level 0 it keeps the very same values.

    Args:
        perturbation: what is done.
        volume: (I, J, K) in [0, 1].
        draw: of `randomize`.
        level: how much, which need not be one of the perturbation's own levels.

    Returns:
        (I, J, K) in [0, 1].
    """
    if level == 0:
        return volume
    if perturbation.kind == "noise":
        real, imaginary = level * draw.noise.to(volume)
        noisy = torch.hypot(volume + real, imaginary)
        return torch.where(volume > 0, noisy, volume).clamp(0, 1)
    images = volume.movedim(-1, 0)
    poses = level * draw.poses.to(volume)
    if perturbation.kind == "motion":
        perturbed = _scanned(images, poses, draw.held.to(volume.device))
    else:
        perturbed = _moved(images, poses[0])
    return perturbed.movedim(0, -1).clamp(0, 1)


def perturb(perturbation: Perturbation, image: Tensor, draw: Harm, *, level: float, sources: Sequence[str]) -> Tensor:
    """Perturb the one source that the perturbation names; the others stay as they are.

    Args:
        perturbation: what is done.
        image: (M, I, J, K) in [0, 1].
        draw: of `randomize`, for (I, J, K).
        level: how much.
        sources: the contrasts of the M channels.

    Returns:
        (M, I, J, K), another tensor.

    Example:
        >>> shifted = Perturbation("translate", contrast="T2", levels=(0, 2))
        >>> image = torch.rand(2, 16, 16, 3)
        >>> draw = randomize(shifted, (16, 16, 3), seed=0, subject="IXI012")
        >>> harmed = perturb(shifted, image, draw, level=2.0, sources=["T1", "T2"])
        >>> bool((harmed[0] == image[0]).all()), bool((harmed[1] == image[1]).all())
        (True, False)
    """
    channel = list(sources).index(perturbation.contrast)
    changed = image.clone()
    changed[channel] = apply(perturbation, image[channel], draw, level=level)
    return changed


def _motion(rng: np.random.Generator, height: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses and the times of the moves: lines are acquired one after another, along j.

    The pose in which the middle of k-space is acquired is the one that the image shows, so it is the true one: what
    is left is ghosts and blur and hardly a displacement, which `displace` is for.
    """
    drawn = rng.random((depth, MOVES + 1, 4))
    distance, direction = np.sqrt(drawn[..., 0]), 2 * np.pi * drawn[..., 1]  # evenly over the disc
    turn = 2 * drawn[..., 2] - 1
    poses = np.stack([distance * np.cos(direction), distance * np.sin(direction), turn], axis=-1)
    moves = np.sort(drawn[:, :MOVES, 3], axis=1)  # as a share of the acquisition
    lines = (np.arange(height) + 0.5) / height
    held = (lines[None, :, None] > moves[:, None, :]).sum(-1)
    middle = held[:, height // 2]
    poses[np.arange(depth), middle] = 0
    return poses.transpose(1, 0, 2), held


def _scanned(images: Tensor, poses: Tensor, held: Tensor) -> Tensor:
    """(K, I, J), (P, K, 3), (K, J) -> (K, I, J): the magnitude of k-space whose lines saw different poses"""
    held = torch.fft.ifftshift(held, dim=1)[:, None]  # acquired from the most negative frequency to the most positive
    space = torch.zeros(images.shape, dtype=torch.complex64, device=images.device)
    for number, pose in enumerate(poses):
        lines = held == number
        if lines.any():
            # only the phase-encoded axis is transformed: along the other one all of a line sees the same pose
            space += torch.fft.fft(_moved(images, pose), dim=2) * lines
    return torch.fft.ifft(space, dim=2).abs()


def _moved(images: Tensor, poses: Tensor) -> Tensor:
    """(K, I, J), (K, 3) -> (K, I, J): turned about the middle, then shifted; cubic, 0 from outside the image"""
    _, width, height = images.shape
    shift_i, shift_j, degrees = poses.unbind(-1)
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    # Where each voxel's value comes from: R^-1 (x - shift), in units of half the image as grid_sample takes them,
    # j first
    half_i, half_j = (width - 1) / 2, (height - 1) / 2
    back_j, back_i = -(cos * shift_j - sin * shift_i) / half_j, -(sin * shift_j + cos * shift_i) / half_i
    rows = [
        torch.stack([cos, -sin * half_i / half_j, back_j], dim=-1),
        torch.stack([sin * half_j / half_i, cos, back_i], dim=-1),
    ]
    grid = affine_grid(torch.stack(rows, dim=1), [len(images), 1, width, height], align_corners=True)
    return grid_sample(images[:, None], grid, mode="bicubic", align_corners=True)[:, 0]
