"""Phantoms scanned anew every time, as hospitals do, so that a network sees no two of them alike."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from monai_ext.data.volumes import Volume, read_volume
from monai_ext.files import read_json
from monai_ext.inference import coarse
from monai_ext.inference.coarse import SIDE, cube, foreground, scaled
from monai_ext.inference.fine import APART, COUNT, FIRST, SHAPE, STEP, levelled
from monai_ext.modalities import MODALITIES

ECHO_PLANAR = frozenset({"DWI", "ADC"})  # soft, their fat saturated
CANVAS = (96, 112)  # of the pools, at 2 mm
FINER = round(coarse.STEP / STEP)  # slices' steps along a cube
KEPT = 22  # slices of a phantom, from the top of its head downwards
KEPT_APART = APART // 2  # steps
READ = 4  # of them at a time
TILTS = np.array([0.3, 0.12, 0.12])  # rad: how people lie, chins up or down, leaning, and turned
CANONICAL = 0.12  # how often they are of the sharp protocol that targets have


class Scans:
    """Phantoms of hospitals' protocols, scanned anew each time that they are asked for."""

    def __init__(self, folders: list[Path]) -> None:
        self.phantoms = [phantom_of(folder) for folder in tqdm(folders, desc="reading")]

    def __len__(self) -> int:
        return len(self.phantoms)

    def cubes(
        self, which: int, contrast: int, rng: np.random.Generator, *, tilts: bool = False
    ) -> tuple[np.ndarray, bool]:
        """What is seen of a contrast of a phantom at 4 mm, upright; and whether its skull is there."""
        phantom = self.phantoms[which]
        image, brain = phantom.cubes[contrast].astype(np.float32), phantom.brain
        if tilts:
            image, near = tilted([image, brain.near.astype(np.float32)], rng)
            brain = Brain(near, ends_of(near > 0.5))
        return scan_of(image, brain, rng, contrast=MODALITIES[contrast], skull=phantom.skull)

    def slices(
        self, which: int, contrast: int, rng: np.random.Generator, *, everywhere: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Some slices of a contrast of a phantom, or those that a scan is read by; and where their head's middle is."""
        phantom = self.phantoms[which]
        stripped = not phantom.skull or bool(rng.uniform() < 0.3)
        box = phantom.brain.ends if stripped else phantom.ends
        top = round((phantom.ends[2][1] - box[2][1]) * FINER / KEPT_APART)
        first = top + FIRST // KEPT_APART
        if everywhere:
            kept = first + int(rng.integers(-1, 2)) + APART // KEPT_APART * np.arange(COUNT)
        else:
            kept = first + np.sort(rng.choice(APART // KEPT_APART * COUNT, READ, replace=False))
        kept = np.clip(kept, 0, KEPT - 1)
        images = phantom.targets if not everywhere and rng.uniform() < CANONICAL else phantom.slices
        planes = images[contrast][kept].astype(np.float32)
        planes = slices_of(
            planes, phantom.brains[kept], rng, contrast=MODALITIES[contrast], skull=phantom.skull, stripped=stripped
        )
        if rng.uniform() < 0.08:  # the field of view ends within the head
            planes[:, : FINER * box[0][0] + int(rng.integers(4, 14))] = 0
        middle = np.array([(sum(box[axis]) + 1) * FINER / 2 - CANVAS[axis] / 2 for axis in (0, 1)])
        if rng.uniform() < 0.5:
            planes = planes[:, ::-1]
            middle[0] *= -1
        return np.ascontiguousarray(planes), middle


@dataclass(frozen=True)
class Brain:
    """A phantom's brain: `near` is 1 in it and falls to 0 around it; its first and last voxel along each axis."""

    near: np.ndarray
    ends: tuple[tuple[int, int], ...]

    def before_brain(self, rng: np.random.Generator) -> np.ndarray:
        """What defacing takes: beyond an oblique plane before and below the brain."""
        front, floor = self.ends[1][1] + rng.integers(0, 3), self.ends[2][0] + rng.integers(0, 8)
        angle = rng.uniform(0.3, 1.2)
        j, k = np.ogrid[: self.near.shape[1], : self.near.shape[2]]
        away = (j - front) * np.cos(angle) - (k - floor) * np.sin(angle)
        gone = (away > rng.uniform(-10, -2)) & (j > front - rng.integers(6, 24)) & (k < floor + rng.integers(0, 8))
        return gone[None] & (self.near < 0.15)


@dataclass(frozen=True)
class Phantom:
    """What a phantom's scans are made of: its contrasts in cubes and in slices, and where its head and brain are.

    Attributes:
        cubes: (7, I, J, K) of `coarse.STEP` mm.
        slices: (7, KEPT, I, J) of `slices.STEP` mm, from the top of the head downwards.
        targets: as `slices`, by the sharp protocol of targets.
        brains: (KEPT, I, J), where the brain is in `slices`.
        brain: in cubes.
        ends: the head's first and last cube along each axis.
        skull: whether it is there.
    """

    cubes: np.ndarray
    slices: np.ndarray
    targets: np.ndarray
    brains: np.ndarray
    brain: Brain
    ends: tuple[tuple[int, int], ...]
    skull: bool


def phantom_of(folder: Path) -> Phantom:
    """Read a phantom of 2 mm."""
    volumes = [read_volume(folder / f"{name}.nii", allow_constant=True) for name in MODALITIES]
    brain = read_volume(folder / "brain.nii")
    cubes = np.stack([averaged(volume) for volume in volumes]).astype(np.float16)
    ends = ends_of(foreground(cubes[MODALITIES.index("T2")].astype(np.float32)))
    levels = FINER * ends[2][1] - KEPT_APART * np.arange(KEPT)

    def kept(volume: Volume) -> np.ndarray:
        return volume.array[:, :, np.maximum(levels, 0)].transpose(2, 0, 1) * (levels >= 0)[:, None, None]

    targets = [read_volume(folder / f"{name}_target.nii", allow_constant=True) for name in MODALITIES]
    return Phantom(
        cubes=cubes,
        slices=np.stack([kept(volume) for volume in volumes]).astype(np.float16),
        targets=np.stack([kept(volume) for volume in targets]).astype(np.float16),
        brains=kept(brain) > 0.5,
        brain=brain_of(averaged(brain) > 0.5),
        ends=ends,
        skull=bool(facts_of(folder)["skull"]),
    )


def facts_of(folder: Path) -> dict[str, object]:
    """What was drawn of a phantom."""
    return dict(read_json(folder / "phantom.json"))


def averaged(volume: Volume) -> np.ndarray:
    """Whole voxels averaged to cubes of coarse.STEP mm."""
    counts = [round(coarse.STEP / float(side)) for side in volume.spacing]
    kept = [side // count * count for side, count in zip(volume.shape, counts, strict=True)]
    blocks = [part for side, count in zip(kept, counts, strict=True) for part in (side // count, count)]
    return volume.array[: kept[0], : kept[1], : kept[2]].reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32)


def scan_of(
    image: np.ndarray, person: "Brain", rng: np.random.Generator, *, contrast: str, skull: bool
) -> tuple[np.ndarray, bool]:
    """One image as it may come from a hospital: stripped or with its skull, defaced, cut, noisy; and whether skull."""
    whole, skull = skull, skull and bool(rng.uniform() < 0.7)
    image += rng.uniform(-0.8, 0.8) * (image - ndimage.gaussian_filter(image, 0.7))
    if rng.uniform() < 0.25:  # blurred along one axis, as thick slices are
        ndimage.uniform_filter1d(image, 2, axis=int(rng.integers(3)), output=image)
    image = np.maximum(image, 0) ** float(np.exp(np.clip(rng.normal(0, 0.12), -0.3, 0.3)))
    if skull:
        if rng.uniform() < 0.35:
            image[person.before_brain(rng)] = 0
        image *= scalp(np.minimum(1.5 * person.near.astype(np.float32), 1), rng, contrast=contrast)
        choice = rng.uniform()
        if choice < 0.3:
            image[image < 0.06] = 0
        elif contrast == "ADC" and choice < 0.6:  # where there is no signal, its ratio is anything
            air = image < 0.06
            image[air] = rng.uniform(0, rng.uniform(0.1, 1), int(air.sum()))
        elif choice < 0.75:
            image += rng.uniform(0, 0.03) * np.abs(rng.standard_normal(image.shape, dtype=np.float32))
    elif whole:
        bumps = rng.standard_normal([n // 6 + 2 for n in image.shape], dtype=np.float32) * rng.uniform(0, 0.25)
        uneven = bumps.repeat(6, 0).repeat(6, 1).repeat(6, 2)[tuple(map(slice, image.shape))]
        image[person.near + uneven < rng.uniform(0.2, 0.65)] = 0
    _cut(image, person, rng, skull=skull)
    if rng.uniform() < 0.5:
        image = image[::-1]
    head = foreground(np.ascontiguousarray(image))
    if not head.any():  # all of it was cut off
        head[:] = True
    return cube(scaled(image, head), head), skull


def tilted(images: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Images of one shape, turned alike by angles of TILTS about their middle, on SIDE cubes: (N, SIDE, SIDE, SIDE)."""
    turn = Rotation.from_rotvec(rng.normal(0, TILTS)).as_matrix()
    scale = SIDE / np.array(images[0].shape)
    matrix = np.zeros((1, 3, 4))
    matrix[0, :, :3] = (turn * scale[:, None])[::-1, ::-1]
    grid = functional.affine_grid(torch.from_numpy(matrix).float(), [1, 1, SIDE, SIDE, SIDE], align_corners=False)
    return functional.grid_sample(torch.from_numpy(np.stack(images))[None], grid, align_corners=False)[0].numpy()


def scalp(near: np.ndarray, rng: np.random.Generator, *, contrast: str) -> np.ndarray | float:
    """By what an image is multiplied so that fat is brighter than phantoms', or saturated; nothing in the brain."""
    if rng.uniform() < 0.4:
        return 1.0
    factor = float(np.exp(rng.uniform(np.log(0.15), 0 if contrast in ECHO_PLANAR else np.log(4))))
    return factor + (1 - factor) * near


def brain_of(brain: np.ndarray) -> Brain:
    near = ndimage.gaussian_filter(brain.astype(np.float32), 1.0)
    return Brain(near.astype(np.float16), ends_of(brain))


def ends_of(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The first and the last voxel of a mask along each axis."""
    lines = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple((int(line[0]), int(line[-1])) for line in lines)


def _cut(image: np.ndarray, person: Brain, rng: np.random.Generator, *, skull: bool) -> None:
    """The field of view: often it ends with the brain, sometimes within it."""
    low, high = person.ends[2]
    if skull and rng.uniform() < 0.7:  # how much of the neck
        image[:, :, : max(low - int(rng.integers(-4, 10)), 0)] = 0
    if rng.uniform() < 0.25:
        image[:, :, high + int(rng.integers(-4, 5)) :] = 0
    for axis in (0, 1):
        if rng.uniform() < 0.15:
            first, last = person.ends[axis]
            view = image.swapaxes(0, axis)
            view[: max(first + int(rng.integers(-6, 4)), 0)] = 0
            view[last + int(rng.integers(-3, 7)) :] = 0


def slices_of(
    planes: np.ndarray, brain: np.ndarray, rng: np.random.Generator, *, contrast: str, skull: bool, stripped: bool
) -> np.ndarray:
    """Slices as they may come from a hospital: `skull` says whether it was there, `stripped` whether it may be kept."""
    planes = planes / max(float(planes[brain].mean()) if brain.any() else 1.0, 1e-6)
    near = ndimage.uniform_filter(brain.astype(np.float32), (0, 5, 5))
    if not stripped:
        planes *= scalp(np.minimum(1.5 * near, 1), rng, contrast=contrast)
    elif skull:
        planes *= near + uneven(len(planes), rng.uniform(0, 0.15), rng) > rng.uniform(0.2, 0.65)
    elif rng.uniform() < 0.2:  # stripped more closely than phantoms are
        planes *= near + uneven(len(planes), rng.uniform(0, 0.1), rng) > rng.uniform(0.3, 0.8)
    if rng.uniform() < 0.5:
        width = rng.uniform(0.5, 1.2)
        sharper = rng.uniform(-1, 0.2) if contrast in ECHO_PLANAR else rng.uniform(-0.7, 1)
        planes += sharper * (planes - ndimage.gaussian_filter(planes, (0, width, width), truncate=2.5))
    planes = np.maximum(planes, 0)
    if contrast != "ADC":  # its values are measured; others' tissues may differ less than phantoms' do
        planes **= float(np.exp(np.clip(rng.normal(-0.12, 0.2), -0.6, 0.35)))
    if rng.uniform() < 0.3:  # coils see what is near them better
        i, j = (np.linspace(-1, 1, n, dtype=np.float32) for n in planes.shape[1:])
        a, b, c, d = rng.normal(0, 0.12, 4).astype(np.float32)
        planes *= np.exp(a * i + c * i * i)[:, None] * np.exp(b * j + d * j * j)
    if brain.any() and rng.uniform() < 0.12:
        planes = np.minimum(planes, max(float(np.percentile(planes[brain], rng.uniform(92, 99.5))), 0.5))
    if rng.uniform() < 0.15:
        noise = rng.standard_normal((2, *planes.shape), dtype=np.float32) * rng.uniform(0, 0.08)
        planes = np.sqrt((planes + noise[0]) ** 2 + noise[1] ** 2)
        if stripped:
            planes *= near > 0.1
    choice = rng.uniform()
    if not stripped and choice < 0.35:
        planes[planes < rng.uniform(0.05, 0.2)] = 0
    elif not stripped and contrast == "ADC" and choice < 0.6:  # where there is no signal, its ratio is anything
        air = planes < 0.12
        planes[air] = rng.uniform() * rng.uniform(0, 2, int(air.sum()))
    return planes


def uneven(count: int, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth random bumps on so many slices of a phantom."""
    bumps = torch.from_numpy(rng.standard_normal((1, count, 16, 16), dtype=np.float32) * amplitude)
    return functional.interpolate(bumps, size=CANVAS, mode="bilinear", align_corners=True)[0].numpy()


def placed(planes: list[np.ndarray], middles: list[np.ndarray], rng: np.random.Generator) -> Tensor:
    """Cut slices to SHAPE round their heads' middles, which are turned and stretched a little, and level them."""
    there, here = np.array(CANVAS) / 2, np.array(SHAPE) / 2
    moves = np.zeros((len(planes), 2, 3))
    for move, middle in zip(moves, middles, strict=True):
        angle, size, shape = rng.normal(0, 0.1), rng.normal(0, 0.07), rng.normal(0, 0.04)
        sides = np.exp([size + shape, size - shape])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * sides
        matrix = turn * here / there[:, None]  # of (i, j), each from -1 to 1
        move[:, :2], move[:, 2] = matrix[::-1, ::-1], ((middle + rng.normal(0, (2, 3))) / there)[::-1]
    images = torch.from_numpy(np.stack(planes))
    grid = functional.affine_grid(torch.from_numpy(moves).float(), [*images.shape[:2], *SHAPE], align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False).numpy()
    return torch.from_numpy(np.stack([levelled(head) for head in moved]))
