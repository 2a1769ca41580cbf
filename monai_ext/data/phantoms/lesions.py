"""Disease as maps on an anatomy: how much of a voxel is diseased, how watery, how restricted, how it enhances."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from monai_ext.data.phantoms.anatomy import BRAIN, COARSE, STEP, Anatomy
from monai_ext.data.phantoms.shapes import Mass, enlarged, lattice_noise, soft
from monai_ext.data.volumes import read_volume

KINDS = ("none", "plaques", "glioma", "stroke")
CHANNELS = ("weight", "t1", "t2", "diffusion", "gadolinium")  # all but the first are premultiplied by it

# How much of a healthy tissue each kind of disease takes over.
_HOSTS = {
    "plaque": {"wm": 1.0, "deep": 0.7, "gm": 0.45},
    "halo": {"wm": 1.0, "deep": 0.3},
    "oedema": {"wm": 0.95, "deep": 0.5, "gm": 0.35},
    "tumour": {"wm": 1.0, "deep": 1.0, "gm": 1.0, "csf": 0.6, "ventricle": 0.5},
    "infarct": {"wm": 0.95, "deep": 1.0, "gm": 1.0},
}


@dataclass
class Lesions:
    """Maps (5, I, J, K) of CHANNELS on the anatomy's grid, labels by what they are, and what pushes."""

    maps: NDArray[np.float32]
    kind: str
    masses: list[Mass] = field(default_factory=list)
    label: NDArray[np.uint8] | None = None

    def put(
        self,
        box: tuple[slice, ...],
        weight: NDArray[np.float32],
        *,
        t1: float | NDArray[np.float32],
        t2: float | NDArray[np.float32],
        diffusion: float = 1.0,
        gadolinium: float | NDArray[np.float32] = 0.0,
    ) -> None:
        """Lay a lesion over what is in the box; what was there stays by 1 - weight.

        Args:
            box: a slice of the anatomy's voxels along each axis.
            weight: how much of each voxel is diseased, 0 to 1, of the box's shape.
            t1: how far T1 and water content are from white matter's (0) to fluid's (1), in logarithms.
            t2: the same for T2.
            diffusion: a factor on what tissue of that water content has when healthy.
            gadolinium: uptake in mM.
        """
        for channel, value in zip(self.maps, (1.0, t1, t2, diffusion, gadolinium), strict=True):
            part = channel[box]
            part *= 1 - weight
            part += weight * value


class Host:
    """An anatomy as lesions see it: shares of tissue in a box, places to begin at.

    Args:
        anatomy: at 1 or 2 mm; it is only read.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.step = anatomy.step
        self.shape = tuple(anatomy.stored.shape[1:])

    def room(self, kind: str, box: tuple[slice, ...]) -> NDArray[np.float32]:
        """Give the share of each voxel that a kind of disease can take over.

        Args:
            kind: plaque, halo, oedema, tumour or infarct.
            box: of `box`.

        Returns:
            0 to 1, of the box's shape.
        """
        total = np.zeros(tuple(s.stop - s.start for s in box), dtype=np.float32)
        for tissue, share in _HOSTS[kind].items():
            total += share / 255 * self.anatomy.stored[BRAIN.index(tissue)][box].numpy()
        return np.minimum(total, 1)

    def place(self, rng: np.random.Generator, weight: NDArray[np.float32]) -> NDArray[np.float64]:
        """Draw a place in the anatomy, by a weight on the guide's grid.

        Args:
            rng: of the lot.
            weight: of the guide's shape; what is below 0 counts as 0. Where none is above it, white matter is drawn
                from.

        Returns:
            (3,), a place in voxels of the anatomy, not rounded.
        """
        flat = np.maximum(weight, 0).ravel().astype(np.float64)
        if not flat.any():
            flat = (self.anatomy.guide.white > 0.3).ravel().astype(np.float64)
        index = np.searchsorted(np.cumsum(flat), rng.uniform() * flat.sum(), side="right")
        voxel = np.array(np.unravel_index(min(int(index), flat.size - 1), weight.shape))
        return ((voxel + rng.uniform(0, 1, 3)) * COARSE * STEP / self.step) - 0.5

    def box(self, centre: NDArray[np.float64], reach: float) -> tuple[slice, ...]:
        """Give the voxels near a place, inside the grid.

        Args:
            centre: (3,), in voxels.
            reach: mm to each side.

        Returns:
            A slice along each axis.
        """
        return tuple(
            slice(max(int(c - reach / self.step), 0), min(int(c + reach / self.step) + 2, n))
            for c, n in zip(centre, self.shape, strict=True)
        )

    def offsets(self, box: tuple[slice, ...], centre: NDArray[np.float64]) -> list[NDArray[np.float32]]:
        """Measure the mm from a place along each axis.

        Args:
            box: of `box`.
            centre: (3,), in voxels of the anatomy.

        Returns:
            Three arrays that broadcast to the box's shape, signed.
        """
        return [
            ((np.arange(s.start, s.stop, dtype=np.float32) - np.float32(c)) * np.float32(self.step)).reshape(
                [-1 if a == axis else 1 for a in range(3)]
            )
            for axis, (s, c) in enumerate(zip(box, centre, strict=True))
        ]


def draw_lesions(
    rng: np.random.Generator, anatomy: Anatomy, *, kind: str, ageing: float = 0.0, masks: tuple[Path, ...] = ()
) -> Lesions:
    """Draw one subject's disease.

    Args:
        rng: of all that is drawn.
        anatomy: whose grid the maps are on.
        kind: one of KINDS.
        ageing: 0 to 1, adds halos of the ventricles and spots of white matter, whatever the disease.
        masks: files of real infarcts on an MNI-like grid, of which some are warped in where `kind` is stroke.

    Returns:
        The maps, the label and what pushes.

    Raises:
        ValueError: another kind, or a mask that cannot be read.
    """
    if kind not in KINDS:
        raise ValueError(f"lesions are one of {', '.join(KINDS)}, got {kind!r}")
    host = Host(anatomy)
    lesions = Lesions(np.zeros((len(CHANNELS), *host.shape), dtype=np.float32), kind)
    if ageing > 0.05:
        _halo(rng, host, lesions, reach=4 * ageing, depth=float(rng.uniform(0.06, 0.28)))
        _spots(rng, host, lesions, count=int(rng.poisson(25 * ageing)), radius=1.8)
    if kind == "plaques":
        if rng.uniform() < 0.5:
            _halo(rng, host, lesions, reach=float(rng.uniform(0.5, 4)), depth=float(rng.uniform(0.1, 0.35)))
        count = int(np.exp(rng.uniform(np.log(6), np.log(90))))
        _spots(rng, host, lesions, count=count, radius=float(rng.uniform(1.6, 4.0)), plaques=True)
    elif kind == "glioma":
        for _ in range(1 if rng.uniform() < 0.85 else 2):
            _glioma(rng, host, lesions)
    elif kind == "stroke":
        for _ in range(int(rng.choice((1, 1, 1, 2, 3)))):
            if masks and rng.uniform() < 0.6:
                _real_infarct(rng, host, lesions, masks[int(rng.integers(len(masks)))])
            else:
                _infarct(rng, host, lesions)
    return lesions


def _noise(rng: np.random.Generator, host: Host, box: tuple[slice, ...], fwhm: float) -> NDArray[np.float32]:
    shape = tuple(s.stop - s.start for s in box)
    return enlarged(lattice_noise(rng, shape=shape, fwhm=fwhm / host.step), shape).numpy()


def _ellipsoid(
    rng: np.random.Generator, offsets: list[NDArray[np.float32]], radii: NDArray[np.float64]
) -> NDArray[np.float32]:
    """mm below the surface of a randomly turned ellipsoid, about; negative outside."""
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    total: NDArray[np.float32] | float = 0.0
    for row, radius in zip(turn, radii, strict=True):
        total = total + ((row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2]) / np.float32(radius)) ** 2
    return ((1 - np.sqrt(total)) * float(np.min(radii))).astype(np.float32)


def _depths(rng: np.random.Generator, *, low: float, high: float) -> tuple[float, float]:
    """How watery a lesion is by T1 and by T2, which go together but not quite."""
    t1 = float(rng.uniform(low, high))
    return t1, _t2_of(rng, t1)


def _t2_of(rng: np.random.Generator, t1: float) -> float:
    """T2 lags behind T1 until all is fluid: a plaque is clearly dark on T1 where FLAIR is half as bright again."""
    return float(np.clip(t1**1.45 * np.exp(rng.normal(0.0, 0.2)), 0, 1))


def _spots(
    rng: np.random.Generator, host: Host, lesions: Lesions, *, count: int, radius: float, plaques: bool = False
) -> None:
    """Ovoid lesions of white matter: most at the ventricles, some under the cortex, some confluent."""
    guide = host.anatomy.guide
    inside = guide.depth > 4
    deep = guide.white**2 * inside
    at_ventricles = deep * np.exp(-np.maximum(guide.away - 2, 0) / 5)
    under_cortex = guide.white * (1 - guide.white) * inside * (guide.depth < 16)
    for _ in range(count):
        weight = (at_ventricles, deep, under_cortex)[
            int(rng.choice(3, p=(0.5, 0.25, 0.25) if plaques else (0.35, 0.5, 0.15)))
        ]
        centre = host.place(rng, weight)
        size = float(np.clip(radius * np.exp(rng.normal(0, 0.55)), 0.9, 16))
        radii = size * np.exp(rng.normal(0, 0.3, 3))
        box = host.box(centre, 1.7 * float(radii.max()) + 3)
        level = _ellipsoid(rng, host.offsets(box, centre), radii)
        level = level + 0.35 * size * _noise(rng, host, box, fwhm=max(1.6 * size, 2.5))
        shown = float(rng.uniform(0.55, 1.0)) * soft(level, float(rng.uniform(0.35, 1.0))) * host.room("plaque", box)
        t1, t2 = _depths(rng, low=0.08, high=0.62) if rng.uniform() < 0.9 else _depths(rng, low=0.6, high=0.95)
        core = soft(level - 0.35 * size, 1.0)
        deeper = (0.75 + 0.4 * core).astype(np.float32)
        enhancing = 0.0
        if plaques and rng.uniform() < 0.08:
            enhancing = float(rng.uniform(0.1, 0.6))
        lesions.put(box, shown, t1=np.minimum(t1 * deeper, 1), t2=np.minimum(t2 * deeper, 1), gadolinium=enhancing)


def _halo(rng: np.random.Generator, host: Host, lesions: Lesions, *, reach: float, depth: float) -> None:
    """Watery white matter around the ventricles, thicker at some places than at others."""
    whole = tuple(slice(0, n) for n in host.shape)
    away = torch.from_numpy(host.anatomy.guide.away)
    fine = functional.interpolate(away[None, None], scale_factor=COARSE * STEP / host.step, mode="trilinear")[0, 0]
    distance = np.full(host.shape, 99, dtype=np.float32)
    cut = tuple(slice(min(a, b)) for a, b in zip(host.shape, fine.shape, strict=True))
    distance[cut] = fine.numpy()[cut]
    bumps = _noise(rng, host, whole, fwhm=16)
    weight = soft(reach + 1.5 - distance + 0.6 * reach * bumps, 1.2) * host.room("halo", whole)
    weight[weight < 0.02] = 0
    lesions.put(whole, weight, t1=depth, t2=_t2_of(rng, depth))


def _glioma(rng: np.random.Generator, host: Host, lesions: Lesions) -> None:
    """A tumour, solid or necrotic with a rim, enhancing or not, in oedema that spreads along white matter."""
    guide = host.anatomy.guide
    size = float(np.exp(rng.uniform(np.log(5), np.log(32))))
    spread = float(rng.uniform(1.0, 2.6))
    centre = host.place(rng, guide.white * (guide.depth > 6))
    radii = size * np.exp(rng.normal(0, 0.22, 3))
    box = host.box(centre, min(spread * 1.5 * float(radii.max()) + 8, 75))
    level = _ellipsoid(rng, host.offsets(box, centre), radii)
    bumps = _noise(rng, host, box, fwhm=max(0.9 * size, 5))
    fine = _noise(rng, host, box, fwhm=max(0.35 * size, 3))
    watery = 0.85 + 0.2 * _noise(rng, host, box, fwhm=9)
    level = level + 0.3 * size * bumps + 0.12 * size * fine
    t1, t2 = _depths(rng, low=0.22, high=0.58)
    border = level + (spread - 1) * size * (1 + 0.4 * bumps)
    oedema = soft(border, float(rng.uniform(0.8, 3.5))) * host.room("oedema", box) * float(rng.uniform(0.7, 1))
    lesions.put(box, oedema, t1=np.clip(t1 * watery, 0, 1), t2=np.clip(t2 * watery, 0, 1))
    solid = soft(level, float(rng.uniform(0.5, 1.5))) * host.room("tumour", box)
    t1, t2 = _depths(rng, low=0.15, high=0.5)
    enhancing = bool(rng.uniform() < 0.65)
    necrotic = bool(rng.uniform() < 0.6)
    uptake = float(rng.uniform(0.25, 1.0)) if enhancing else 0.0
    patchy = np.clip(0.8 + 0.35 * fine, 0, 1.5) if enhancing else 1.0
    lesions.put(box, solid, t1=np.clip(t1 * watery, 0, 1), t2=np.clip(t2 * watery, 0, 1), gadolinium=uptake * patchy)
    core = np.zeros_like(solid)
    if necrotic:
        rim = float(rng.uniform(1.5, 5.0))
        core = soft(level - rim - 1.2 * fine, 0.8) * host.room("tumour", box)
        t1, t2 = _depths(rng, low=0.5, high=0.97)
        lesions.put(box, core, t1=np.clip(t1 * watery, 0, 1), t2=np.clip(t2 * watery, 0, 1), gadolinium=0.03)
    if lesions.label is None:
        lesions.label = np.zeros(host.shape, dtype=np.uint8)
    label = lesions.label[box]  # as BraTS 2023 numbers them
    label[oedema > 0.35] = 2
    label[solid > 0.5] = 3 if enhancing else 1
    label[core > 0.5] = 1
    middle = (centre - host.anatomy.centre) * host.step
    lesions.masses.append(Mass(middle, 1.1 * size, float(rng.uniform(0.1, 0.45)) * min(size, 20)))


def _infarct(rng: np.random.Generator, host: Host, lesions: Lesions) -> None:
    """A territory of noise: wedge-like, from a lacune to most of a hemisphere."""
    guide = host.anatomy.guide
    size = float(np.exp(rng.uniform(np.log(1.8), np.log(42))))
    centre = host.place(rng, (guide.depth > 1).astype(np.float32) * (0.15 + guide.white))
    radii = size * np.exp(rng.normal(0, 0.3, 3))
    box = host.box(centre, min(1.6 * float(radii.max()) + 4, 80))
    level = _ellipsoid(rng, host.offsets(box, centre), radii) + 0.45 * size * _noise(rng, host, box, fwhm=max(size, 3))
    middle = (host.anatomy.centre[0] - centre[0]) * host.step
    side = host.offsets(box, host.anatomy.centre)[0] * -np.sign(middle)
    level = np.minimum(level, side + 1)  # arteries keep to their side
    _stroke(rng, host, lesions, box, level, size)


def _real_infarct(rng: np.random.Generator, host: Host, lesions: Lesions, path: Path) -> None:
    """A person's own infarct, its mask fitted to the brain by the two brains' extents, deformed, flipped or not."""
    level_mni, first, spacing = _mask_level(path)
    # the brain of an MNI-like grid spans these mm in the world
    low, high = np.array([-71.0, -106.0, -68.0]), np.array([71.0, 72.0, 82.0])
    scale = host.anatomy.size_mm / (high - low)
    centre, middle = host.anatomy.centre, (low + high) / 2
    grow = float(np.exp(rng.normal(0, 0.12)))
    flip = -1.0 if rng.uniform() < 0.5 else 1.0
    shape = np.array(level_mni.shape)
    world = first + (np.array([[0, 0, 0], shape - 1])) * spacing
    world[:, 0] *= flip
    ends = np.sort(centre + (world - middle * [flip, 1, 1]) * scale / host.step, axis=0)
    box = tuple(slice(max(int(a), 0), min(int(b) + 2, n)) for a, b, n in zip(ends[0], ends[1], host.shape, strict=True))
    if any(s.stop - s.start < 2 for s in box):
        return
    axes = []
    for axis, part in enumerate(box):
        mm = (np.arange(part.start, part.stop) - centre[axis]) * host.step / scale[axis]
        mm = (mm + middle[axis] * (flip if axis == 0 else 1)) * (flip if axis == 0 else 1)
        axes.append(((mm - first[axis]) / spacing[axis]).astype(np.float32))
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    level = ndimage.map_coordinates(level_mni, points, order=1, mode="nearest")
    level = level + 1.2 * _noise(rng, host, box, fwhm=6) + 2.5 * np.log(grow)
    _stroke(rng, host, lesions, box, level.astype(np.float32), 10.0)


def _mask_level(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """mm inside the mask about its own box, the box's first voxel in the world, its spacing."""
    from monai_ext.data.resampling import to_ras

    volume = to_ras(read_volume(path, allow_constant=True))
    mask = volume.array > 0.5
    if not mask.any():
        raise ValueError(f"{path}: the mask of a lesion marks nothing")
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    filled = np.nonzero(mask)
    box = tuple(slice(max(int(a.min()) - 5, 0), int(a.max()) + 6) for a in filled)
    part = mask[box]
    level = ndimage.distance_transform_edt(part, sampling=spacing) - ndimage.distance_transform_edt(
        ~part, sampling=spacing
    )
    first = volume.affine[:3, :3] @ np.array([s.start for s in box]) + volume.affine[:3, 3]
    return level.astype(np.float32), first, spacing


def _stroke(
    rng: np.random.Generator,
    host: Host,
    lesions: Lesions,
    box: tuple[slice, ...],
    level: NDArray[np.float32],
    size: float,
) -> None:
    """Fresh (restricted, hardly watery), days or weeks old (watery), or a cavity."""
    age = float(rng.uniform())
    watery = np.clip(1 + 0.25 * _noise(rng, host, box, fwhm=max(0.5 * size, 4)), 0.4, 1.5).astype(np.float32)
    weight = soft(level, float(rng.uniform(0.4, 1.6))) * host.room("infarct", box) * float(rng.uniform(0.75, 1))
    if age < 0.65:
        t1, t2 = _depths(rng, low=0.05, high=0.4)
        diffusion = float(rng.uniform(0.32, 0.62)) * float(np.exp(-1.2 * t1))
    elif age < 0.85:
        t1, t2 = _depths(rng, low=0.3, high=0.6)
        diffusion = float(rng.uniform(0.7, 1.1))
    else:
        t1, t2 = _depths(rng, low=0.55, high=0.97)
        diffusion = 1.0
    lesions.put(
        box, weight, t1=np.clip(t1 * watery, 0, 1), t2=np.clip(t2 * watery, 0, 1), diffusion=diffusion,
        gadolinium=float(rng.uniform(0, 0.25)) if 0.5 < age < 0.85 else 0.0,
    )  # fmt: skip
    if lesions.label is None:
        lesions.label = np.zeros(host.shape, dtype=np.uint8)
    lesions.label[box][weight > 0.4] = 1
