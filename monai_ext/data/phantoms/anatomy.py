"""Where each tissue is in a head: a label map in FreeSurfer's numbering becomes shares of tissue at 1 mm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from monai_ext.data.resampling import to_ras
from monai_ext.data.volumes import read_volume

# Every tissue that a voxel may hold a share of; what is left is air and cortical bone, which give no signal.
CLASSES = ("ventricle", "csf", "gm", "wm", "deep", "blood", "fat", "muscle", "marrow")
BRAIN = CLASSES[:5]
STEP = 1.0  # mm between the voxels of an anatomy
LARGE = 1.75  # mm: voxels from here on are made of anatomies at twice the step, an eighth of the work
EDGE = 0.55  # mm: what a border of labels is smoothed with, for a label is all or nothing and a voxel is not
FAR = 12.0  # mm: beyond it the distance to the brain's surface is not kept
COARSE = 4  # the guide's voxel, in those of the anatomy
LARGEST = 2035  # of FreeSurfer's numbers in use
MOST_UNKNOWN = 0.02  # of a head, in labels that are in no table
LEAST_BRAIN = 300  # mL
MOST_CUT = 200  # voxels of brain in a grid's last slice
HULL = 5.0  # mm: sulci narrower than twice this belong to the brain's inside

_SIDES: dict[str, tuple[int, ...]] = {
    "wm": (2, 41, 77, 78, 79, 251, 252, 253, 254, 255, 85),
    "gm": (3, 42, 17, 53, 18, 54, 19, 55, 20, 56, 80),
    "ventricle": (4, 43, 5, 44, 14, 15, 31, 63, 72, 213, 221),
    "cerebellar white": (7, 46),
    "cerebellar cortex": (8, 47),
    "thalamus": (9, 48, 10, 49),
    "striatum": (11, 50, 12, 51, 26, 58),
    "pallidum": (13, 52),
    "brainstem": (16,),
    "ventral": (28, 60),
    "csf": (24, 257),
    "blood": (30, 62, 502, 514),
    "lost": (25, 57),  # a lesion that the map's person has
    "choroid": (136, 163, 137, 164),
    "eye": (506,),
    "soft": (507, 508, 512, 530),
    "mucosa": (509,),
    "skin": (511, 258),
    "marrow": (516,),
    "bone": (515, 259),
    "air": (0,),
}
_MADE_OF: dict[str, dict[str, float]] = {
    "cerebellar white": {"wm": 0.92, "gm": 0.08},
    "cerebellar cortex": {"gm": 0.82, "wm": 0.10, "csf": 0.08},
    "thalamus": {"deep": 0.65, "wm": 0.35},
    "striatum": {"deep": 0.95, "gm": 0.05},
    "pallidum": {"deep": 0.4, "wm": 0.6},
    "brainstem": {"wm": 0.8, "gm": 0.2},
    "ventral": {"wm": 0.75, "deep": 0.25},
    "lost": {"wm": 1.0},
    "choroid": {"ventricle": 0.6, "blood": 0.4},
    "eye": {"csf": 0.95},
    "soft": {"muscle": 0.75, "fat": 0.2},
    "mucosa": {"muscle": 0.8, "csf": 0.1},
    "skin": {"fat": 0.7, "muscle": 0.25},
    "marrow": {"marrow": 0.9},
    "bone": {},
    "air": {},
}
MATERIALS = {label: name for name, labels in _SIDES.items() for label in labels}
_IN_BRAIN = {
    "wm", "gm", "ventricle", "cerebellar white", "cerebellar cortex", "thalamus", "striatum", "pallidum",
    "brainstem", "ventral", "lost", "choroid",
}  # fmt: skip


@dataclass(frozen=True)
class Guide:
    """Where lesions may be, at COARSE voxels: shares of white matter, mm to a ventricle, mm below the surface."""

    white: NDArray[np.float32]
    away: NDArray[np.float32]
    depth: NDArray[np.float32]


@dataclass(frozen=True)
class Anatomy:
    """Shares of CLASSES in 255ths and, last, mm above FAR outside the brain's hull, in 255ths of 2 FAR: uint8
    (10, I, J, K), RAS.

    `step` is the voxel in mm, `brain` the box of the brain in voxels, first and last along each axis.
    """

    name: str
    stored: Tensor
    step: float
    brain: NDArray[np.int64]
    guide: Guide

    @property
    def centre(self) -> NDArray[np.float64]:
        """The brain's middle, in voxels."""
        return self.brain.mean(axis=0)

    @property
    def size_mm(self) -> NDArray[np.float64]:
        """The brain's extent."""
        return (self.brain[1] - self.brain[0] + 1) * self.step

    def channels(self, *, head: bool, device: torch.device | str = "cpu") -> Tensor:
        """Give the anatomy as maps to resample, each 0 far from the head.

        Args:
            head: True for the shares of CLASSES, False for those of BRAIN, the first five of them.
            device: where the maps are to be.

        Returns:
            float32 (10, I, J, K) with the head, (6, I, J, K) without: shares from 0 to 1 and, last, mm below the
            brain's
            hull + FAR, from 0 to 2 FAR.
        """
        count = len(CLASSES) if head else len(BRAIN)
        selected = torch.cat([self.stored[:count], self.stored[-1:]]).to(device)
        maps = selected.float().div_(255)
        maps[-1].mul_(2 * FAR)
        return maps


_remembered: dict[tuple[Path, float], Anatomy] = {}


def step_for(spacing: Sequence[float]) -> float:
    """Choose what an anatomy is read at.

    Args:
        spacing: of the voxels that are made of it, in mm.

    Returns:
        STEP or twice that.
    """
    return 2 * STEP if min(spacing) >= LARGE else STEP


def remember(path: Path, step: float, anatomy: Anatomy) -> None:
    """Let `read_anatomy` give this one, which another process has read.

    Args:
        path, step: what `read_anatomy` will be asked for.
        anatomy: what it is to give.
    """
    _remembered[path, step] = anatomy


def read_anatomy(path: Path, step: float = STEP) -> Anatomy:
    """Give the anatomy in a label map; a file is read once in a process.

    Args:
        path: a label map in FreeSurfer's and SynthSeg's numbers, of any orientation and voxel size.
        step: mm, 1 or 2.

    Returns:
        The anatomy, the same object at every call: nothing may change it.

    Raises:
        ValueError: the file is no map of a head, with what is wrong with it.
    """
    if (path, step) not in _remembered:
        whole = _read(path)
        _remembered[path, step] = halved(whole) if step == 2 * STEP else whole
    return _remembered[path, step]


def _read(path: Path) -> Anatomy:
    labels = read_labels(path)
    try:
        return from_labels(labels, name=path.name.split(".")[0])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_labels(path: Path) -> NDArray[np.int32]:
    """Read a label map at 1 mm along RAS, by nearest neighbour where the file has other voxels.

    Args:
        path: a NIfTI file of whole numbers from 0 up.

    Returns:
        (I, J, K)

    Raises:
        ValueError: it cannot be read as an image, holds other numbers, or has voxels above 4 mm.
    """
    volume = to_ras(read_volume(path, allow_constant=True))
    if np.any(volume.array != np.rint(volume.array)) or volume.array.min() < 0:
        raise ValueError(f"{path}: a label map holds whole numbers from 0 up")
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    array = volume.array.astype(np.int32)
    if np.allclose(spacing, STEP, atol=0.02):
        return array
    if spacing.max() > 4:
        voxel = " x ".join(f"{s:.3g}" for s in spacing)
        raise ValueError(f"{path}: voxels of {voxel} mm are too coarse for an anatomy, which takes up to 4 mm")
    shape = np.maximum(np.rint(np.array(array.shape) * spacing / STEP).astype(int), 1)
    index = [
        np.clip(np.rint((np.arange(n) + 0.5) * STEP / spacing[axis] - 0.5), 0, array.shape[axis] - 1).astype(int)
        for axis, n in enumerate(shape)
    ]
    return array[np.ix_(*index)]


def from_labels(labels: NDArray[np.int32], *, name: str) -> Anatomy:
    """Make the anatomy of a label map: each label's tissues, smoothed over its borders.

    Args:
        labels: (I, J, K) at 1 mm along RAS, FreeSurfer's and SynthSeg's numbers.
        name: of the anatomy, which a phantom's sidecar says.

    Returns:
        The anatomy at 1 mm, cut to the head.

    Raises:
        ValueError: labels that are unknown, or no whole brain.
    """
    if labels.max() > LARGEST:
        raise ValueError(f"has label {labels.max()}, where FreeSurfer's and SynthSeg's end at {LARGEST}")
    counts = np.bincount(labels.ravel(), minlength=LARGEST + 1)
    _check_known(counts)
    materials = list(_SIDES)
    table = np.full(LARGEST + 1, materials.index("soft"), dtype=np.uint8)  # a few strange ones are tissue
    for label, material in MATERIALS.items():
        table[label] = materials.index(material)
    kinds = table[labels]
    in_brain = np.isin(np.arange(len(materials)), [materials.index(name) for name in _IN_BRAIN])
    brain = in_brain[kinds]
    _check_whole(brain)
    box = _box(kinds != materials.index("air"), margin=6)
    kinds, brain = np.ascontiguousarray(kinds[box]), brain[box]
    stored = np.zeros((len(CLASSES), *kinds.shape), dtype=np.uint8)
    for number, tissue in enumerate(CLASSES):
        parts = np.array([_MADE_OF.get(name, {name: 1.0}).get(tissue, 0.0) for name in materials], dtype=np.float32)
        stored[number] = np.rint(255 * ndimage.gaussian_filter(parts[kinds], EDGE / STEP, truncate=2.5))
    return assembled(name, torch.from_numpy(stored), brain)


def assembled(name: str, shares: Tensor, brain: NDArray[np.bool_]) -> Anatomy:
    """Put an anatomy together, with what follows from where the brain is: depth below its hull, the lesions' guide.

    Args:
        name: of the anatomy.
        shares: (9, I, J, K), uint8, of CLASSES in 255ths, at 1 mm along RAS.
        brain: (I, J, K), where the brain is; not empty.

    Returns:
        The anatomy at 1 mm.
    """
    depth = hull_depth(brain)
    last = np.rint(255 * (np.clip(depth, -FAR, FAR) + FAR) / (2 * FAR)).astype(np.uint8)
    white, ventricle = (shares[CLASSES.index(tissue)].numpy() for tissue in ("wm", "ventricle"))
    stored = torch.cat([shares, torch.from_numpy(last)[None]])
    return Anatomy(name, stored, STEP, _ends(brain), _guide(white, ventricle, depth))


def _check_known(counts: NDArray[np.int64]) -> None:
    unknown = {label: int(n) for label, n in enumerate(counts) if n and label not in MATERIALS}
    share = sum(unknown.values()) / max(int(counts[1:].sum()), 1)
    if share > MOST_UNKNOWN:
        listed = ", ".join(
            f"{label} ({n} voxels)" for label, n in sorted(unknown.items(), key=lambda item: -item[1])[:8]
        )
        raise ValueError(
            f"{share:.0%} of the head has labels that are not FreeSurfer's or SynthSeg's, "
            f"up to {MOST_UNKNOWN:.0%} is taken for soft tissue: {listed}; renumber them"
        )


def _check_whole(brain: NDArray[np.bool_]) -> None:
    """The brain is there, and ends before the grid does; below, where necks are cut, it may go on."""
    millilitres = brain.sum() * STEP**3 / 1000
    if millilitres < LEAST_BRAIN:
        raise ValueError(
            f"holds {millilitres:.0f} mL of brain, where a head has at least {LEAST_BRAIN}: "
            "empty, cut off or no label map"
        )
    for axis, ends in ((0, ("left", "right")), (1, ("back", "front")), (2, (None, "top"))):
        for side, end in zip((0, -1), ends, strict=True):
            if end and brain.take(side, axis=axis).sum() > MOST_CUT:
                raise ValueError(f"the brain is cut off at the {end}: take a map of a whole one")


def halved(anatomy: Anatomy) -> Anatomy:
    """Give an anatomy at twice the step: what phantoms of 2 mm are made from, in an eighth of the time.

    Args:
        anatomy: at 1 mm; the last plane of an odd side is left out.

    Returns:
        Another one, with the same guide.
    """
    stored = torch.stack([
        functional.avg_pool3d(channel[None, None].float(), 2).round().to(torch.uint8)[0, 0]
        for channel in anatomy.stored
    ])  # fmt: skip
    ends = anatomy.brain // 2
    return Anatomy(anatomy.name, stored, 2 * anatomy.step, ends, anatomy.guide)


def hull_depth(brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Measure how deep a voxel is inside the brain with its sulci filled; found at half the resolution.

    Args:
        brain: (I, J, K) at 1 mm, where the brain is; not empty.

    Returns:
        mm, (I, J, K): positive inside, negative outside, -FAR or less where the brain is far off.
    """
    reach = int(FAR + HULL) + 3
    ends = _ends(brain)
    low, high = np.maximum(ends[0] - reach, 0), ends[1] + reach
    high += (high - low) % 2
    part = brain[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    part = np.pad(part, [(0, int(n - m)) for n, m in zip(high - low, part.shape, strict=True)])
    shape = [n for size in part.shape for n in (size // 2, 2)]
    small = part.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32) >= 0.5
    grown = ndimage.distance_transform_edt(~small, sampling=2.0) <= HULL
    closed = ndimage.distance_transform_edt(grown, sampling=2.0) > HULL
    closed = ndimage.binary_fill_holes(closed | small)
    signed = ndimage.distance_transform_edt(closed, sampling=2.0) - ndimage.distance_transform_edt(
        ~closed, sampling=2.0
    )
    signed = ndimage.gaussian_filter(signed.astype(np.float32), 0.6)
    fine = functional.interpolate(torch.from_numpy(signed)[None, None], scale_factor=2, mode="trilinear")[0, 0].numpy()
    depth = np.full(brain.shape, -FAR, dtype=np.float32)
    inside = tuple(slice(a, min(b, n)) for a, b, n in zip(low, high, brain.shape, strict=True))
    depth[inside] = fine[tuple(slice(s.stop - s.start) for s in inside)]
    return depth


def _guide(white: NDArray[np.uint8], ventricle: NDArray[np.uint8], depth: NDArray[np.float32]) -> Guide:
    def coarse(values: NDArray[Any]) -> NDArray[Any]:
        pooled = functional.avg_pool3d(torch.from_numpy(values)[None, None].float(), COARSE, ceil_mode=True)
        return pooled[0, 0].numpy()

    away = ndimage.distance_transform_edt(coarse(ventricle) < 0.3 * 255, sampling=COARSE * STEP)
    return Guide((coarse(white) / 255).astype(np.float32), away.astype(np.float32), coarse(depth))


def _box(mask: NDArray[np.bool_], *, margin: int) -> tuple[slice, ...]:
    ends = _ends(mask)
    return tuple(
        slice(max(int(low) - margin, 0), int(high) + margin + 1) for low, high in zip(ends[0], ends[1], strict=True)
    )


def _ends(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first and the last filled voxel along each axis: (2, 3)."""
    lines = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return np.array([[line[0] for line in lines], [line[-1] for line in lines]])


def label_maps(folder: Path) -> list[Path]:
    """Find the label maps in a folder.

    Args:
        folder: whose own files are looked at, not those of folders in it.

    Returns:
        Its *.nii and *.nii.gz, sorted by name.

    Raises:
        ValueError: it holds none.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise ValueError(f"{folder} holds no label map (*.nii, *.nii.gz)")
    return files
