"""The anatomy that needs no files: nilearn's MNI152 maps, and a head built around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from monai_ext.data.phantoms.anatomy import CLASSES, STEP, Anatomy, assembled, halved, read_anatomy, step_for

SHARPEN = 2.4  # the power that undoes some of the template's averaging


@dataclass(frozen=True)
class Maps:
    """Several maps on one grid: values (channels, I, J, K), and the grid's first voxel and spacing in mm."""

    values: Tensor
    origin: NDArray[np.float64]
    spacing: float

    def at(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Read the maps at places, trilinear.

        Args:
            points: (..., 3), mm in the maps' space.

        Returns:
            (channels, ...), 0 outside of the grid.
        """
        size = np.array(self.values.shape[1:])
        unit = (points - self.origin.astype(np.float32)) * (2 / self.spacing / (size - 1)).astype(np.float32) - 1
        grid = torch.from_numpy(np.ascontiguousarray(unit[..., ::-1], dtype=np.float32)).reshape(1, 1, 1, -1, 3)
        out = functional.grid_sample(self.values[None], grid, align_corners=True)
        return out.numpy().reshape(-1, *points.shape[:-1])


def grid_points(shape: tuple[int, ...], origin: NDArray[np.float64], spacing: float) -> NDArray[np.float32]:
    """Give the positions of a grid's voxels.

    Args:
        shape: three numbers.
        origin: (3,), mm of the first voxel.
        spacing: mm, along each axis.

    Returns:
        (I, J, K, 3), mm.
    """
    axes = [origin[a] + spacing * np.arange(shape[a]) for a in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


def anatomy_by_lot(rng: np.random.Generator, anatomies: Sequence[Path], *, spacing: Sequence[float]) -> Anatomy:
    """Choose a label map by lot, or the template where there are none.

    Args:
        rng: of the lot.
        anatomies: label maps.
        spacing: of the voxels that are made of it, in mm.

    Returns:
        The anatomy at 1 or 2 mm, by `step_for`; the lot is drawn even where there is nothing to choose.

    Raises:
        ValueError: as `read_anatomy` and `template_anatomy`.
    """
    which, step = int(rng.integers(max(len(anatomies), 1))), step_for(spacing)
    return read_anatomy(anatomies[which], step) if anatomies else template_anatomy(step)


@lru_cache(maxsize=2)
def template_anatomy(step: float = STEP) -> Anatomy:
    """Make the template's anatomy: an average of 152 people, so its folds are no one's.

    Args:
        step: mm, 1 or 2.

    Returns:
        The anatomy.

    Raises:
        ValueError: nilearn, whose maps these are, is not installed.
    """
    if step == 2 * STEP:
        return halved(template_anatomy(STEP))
    tissue, inside = _brain()
    head, ventricles = _head(inside, tissue.origin), _ventricles(tissue, inside)
    i, j, k = (int((n - 1) * head.spacing / STEP) + 1 for n in head.values.shape[1:])
    stored, brain = np.empty((len(CLASSES), i, j, k), dtype=np.uint8), np.empty((i, j, k), dtype=bool)
    for plane in range(i):  # one after the other stays in the processor's cache
        points = grid_points((1, j, k), head.origin + np.array([plane * STEP, 0, 0]), STEP)
        shares, brain[plane] = _shares(*(maps.at(points)[:, 0] for maps in (tissue, head, ventricles)))
        for number, name in enumerate(CLASSES):
            stored[number, plane] = np.rint(255 * np.clip(shares[name], 0, 1))
    return assembled("MNI152", torch.from_numpy(stored), brain)


def _shares(
    tissue: NDArray[np.float32], head: NDArray[np.float32], ventricles: NDArray[np.float32]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """The share of each of CLASSES, the head's where the brain leaves room, and where the brain is."""
    csf, gm, wm, deep = tissue
    around, fat, muscle, marrow, blood = head
    brain = csf + gm + wm + deep
    room = np.clip(1 - brain, 0, 1)
    ventricle = csf * np.clip(2 * ventricles[0], 0, 1)
    shares = {
        "ventricle": ventricle, "csf": csf - ventricle + around * room, "gm": gm, "wm": wm, "deep": deep,
        "blood": blood * room, "fat": fat * room, "muscle": muscle * room, "marrow": marrow * room,
    }  # fmt: skip
    return shares, brain > 0.5


def _brain() -> tuple[Maps, NDArray[np.bool_]]:
    """Shares of csf, gm, wm and deep at 1 mm, and where the brain is."""
    t1, grey, white, origin = _mni()
    inside = t1 > 0
    # Air all round but below, where the template is cut through the cord.
    box = tuple(slice(max(int(a.min()) - 2, 0), int(a.max()) + 3) for a in np.nonzero(inside))
    t1, grey, white = t1[box], grey[box], white[box]
    inside = inside[box]
    origin = origin + [side.start for side in box]
    # An average of 152 heads blurs the sulci: where its T1 is darker than grey matter there was CSF in most.
    csf = np.maximum(1 - grey - white, np.clip((150 - t1) / 80, 0, 1))
    tissue = np.stack([csf, grey, white]) ** np.float32(SHARPEN)
    tissue *= inside / np.maximum(tissue.sum(axis=0), 1e-6)
    x, y, z = np.ogrid[tuple(slice(0, n) for n in inside.shape)]
    x, y, z = np.abs(x + origin[0]) - 16, y + origin[1] - 4, z + origin[2]
    nuclei = 1 - np.sqrt((x / 17) ** 2 + (y / 26) ** 2 + (z / 17) ** 2, dtype=np.float32)  # caudate to thalamus
    deep = tissue[1] * _soft(nuclei, 0.06)
    maps = np.concatenate([tissue, deep[None]])
    maps[1] -= deep
    return Maps(torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32)), origin, 1.0), inside


def _mni() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """T1 (0 to 255, 0 outside the brain), grey and white fraction at 1 mm, and the first voxel's position."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ValueError("brain phantoms need nilearn's MNI152 maps: pip install monai-ext[phantom]") from error
    images = [
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    ]
    t1, grey, white = (image.get_fdata(dtype=np.float32) for image in images)
    return 255 * t1 / t1.max(), grey / grey.max(), white / white.max(), images[0].affine[:3, 3]


def _head(inside: NDArray[np.bool_], origin: NDArray[np.float64]) -> Maps:
    """Meninges, skull, marrow, scalp, face and neck, as shells around the closed brain, at 2 mm."""
    start = np.array([-104.0, -138.0, -112.0])
    shape = (105, 125, 115)
    points = grid_points(shape, start, 2.0)
    nearest = np.clip(np.rint(points - origin).astype(int), 0, np.array(inside.shape) - 1)
    brain = inside[nearest[..., 0], nearest[..., 1], nearest[..., 2]]  # below the template the cord goes on
    x, y, z = points[..., 0], points[..., 1], points[..., 2]

    def outward(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        signed = ndimage.distance_transform_edt(~mask, sampling=2.0)
        return signed - ndimage.distance_transform_edt(mask, sampling=2.0)

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> NDArray[np.floating]:
        """How far outside, in mm, about."""
        scaled = [(points[..., a] - centre[a]) / radii[a] for a in range(3)]
        return (np.sqrt(sum(s**2 for s in scaled)) - 1) * min(radii)

    cranial = outward(outward(brain & (z > -74)) < 14) + 14  # closed: fissures and the hollows of the base filled
    cord = outward(brain)
    shell = np.where(z > -60, np.minimum(cranial, cord), cord)
    skull = _soft(shell - 1.5) * _soft(8 - shell)
    marrow = 0.9 * _soft(shell - 3.2) * _soft(6.2 - shell)
    face = ellipsoid((0, 42, -62), (62, 50, 62))
    neck = np.maximum(ellipsoid((0, -42, -100), (66, 64, 400)), z + 40)
    outside = np.minimum(np.minimum(cranial - 14, face), neck)  # below 0 inside the head
    outside = ndimage.gaussian_filter(outside, 2.0)
    head = _soft(-outside)
    skin = _soft(-outside) * _soft(outside + 5)
    air = np.zeros(shape)
    for centre, radii in (
        ((0, 72, -42), (14, 16, 26)),  # nose and ethmoid cells
        ((30, 58, -70), (14, 16, 14)),  # maxillary sinuses
        ((-30, 58, -70), (14, 16, 14)),
        ((0, 78, -8), (20, 5, 9)),  # frontal sinus
        ((0, 30, -88), (13, 30, 9)),  # pharynx
    ):
        air = np.maximum(air, _soft(-ellipsoid(centre, radii)))
    eyes = np.maximum(*(_soft(-ellipsoid((side * 33, 66, -36), (12, 12, 12))) for side in (1, -1)))
    orbits = np.maximum(*(_soft(-ellipsoid((side * 31, 56, -36), (17, 26, 16))) for side in (1, -1)))

    not_brain = 1 - ndimage.gaussian_filter(brain.astype(np.float32), 0.6)
    csf = not_brain * _soft(1.5 - shell)
    free = head * (1 - _soft(1.5 - shell)) * (1 - skull)  # inside the head, outside the skull
    sinus = _soft(2.6 - np.abs(x)) * _soft(shell + 1) * _soft(4.5 - shell) * _soft(z + 25) * _soft(20 - y)
    fat = free * np.maximum(skin, 0.85 * orbits)
    muscle = free * (1 - np.maximum(skin, 0.85 * orbits))
    fat, muscle = (m * (1 - air) * (1 - eyes) for m in (fat, muscle))
    csf = np.maximum(csf * (1 - sinus), free * eyes)
    blood = not_brain * sinus
    values = np.stack([csf, fat, muscle, marrow * head * (1 - sinus), blood]).astype(np.float32)
    values /= np.maximum(values.sum(axis=0), 1)
    values[values < 1e-4] = 0  # a tail of denormal numbers would slow down all that is done with them
    return Maps(torch.from_numpy(values), start, 2.0)


def _ventricles(brain: Maps, inside: NDArray[np.bool_]) -> Maps:
    """Fluid deep within the brain, about the middle, at 4 mm."""
    coarse = slice(None, None, 4)
    csf, mask = (ndimage.uniform_filter(m, 4)[coarse, coarse, coarse] for m in (brain.values[0].numpy(), inside * 1.0))
    depth = ndimage.distance_transform_edt(mask > 0.5, sampling=4.0)
    points = grid_points(csf.shape, brain.origin, 4.0)
    within = (np.abs(points - (0, -20, 12)) < (36, 52, 22)).all(axis=-1) & (depth > 20)
    return Maps(torch.from_numpy(np.where(within, csf, 0).astype(np.float32))[None], brain.origin, 4.0)


def _soft(level: NDArray[np.floating], width: float = 0.7) -> NDArray[np.floating]:
    """1 where the level (mm) is well above 0, 0 well below, smooth between."""
    return 1 / (1 + np.exp(np.clip(level / -width, -30, 30)))
