"""Pathology in template space: gliomas, infarcts, plaques, as maps that the brain's warp carries along."""

from dataclasses import dataclass

import numpy as np
import torch

from monai_ext.data.anatomy import TISSUES, Maps, Template, grid_points, soft
from monai_ext.data.warp import apply_matrix, smooth_noise

LESIONS = ("none", "glioma", "stroke", "plaques")
CHANNELS = TISSUES[8:]  # oedema, necrosis, rim, infarct, plaque
SPACING = 2.0
ORIGIN, SHAPE = np.array([-88.0, -124.0, -72.0]), (89, 105, 85)

# How much of a host tissue each lesion takes over: tumour destroys, oedema spreads along white matter.
_HOSTS = {
    "oedema": {"wm": 0.85, "deep": 0.45, "gm": 0.3},
    "necrosis": {"csf": 0.9, "gm": 1.0, "wm": 1.0, "deep": 1.0},
    "rim": {"csf": 0.6, "gm": 1.0, "wm": 1.0, "deep": 1.0},
    "infarct": {"gm": 0.95, "wm": 0.9, "deep": 0.95},
    "plaque": {"wm": 0.95, "gm": 0.4, "deep": 0.7},
}


@dataclass(frozen=True)
class Lesions:
    """Weights (0 to 1) of each lesion tissue, which of them the label map shows, and the masses that push."""

    weights: Maps
    labels: tuple[tuple[str, int], ...]
    masses: tuple[tuple[np.ndarray, float, float], ...] = ()


def random_lesions(rng: np.random.Generator, template: Template, *, kind: str, ageing: float = 0.0) -> Lesions:
    """`kind` is one of LESIONS; `ageing` (0 to 1) adds the unlabelled white-matter changes of age."""
    if kind not in LESIONS:
        raise ValueError(f"lesions are one of {', '.join(LESIONS)}, got {kind!r}")
    points = grid_points(SHAPE, ORIGIN, SPACING)
    weights = dict.fromkeys(CHANNELS, np.zeros(SHAPE, dtype=np.float32))
    labels: tuple[tuple[str, int], ...] = ()
    masses: tuple[tuple[np.ndarray, float, float], ...] = ()
    if kind == "glioma":
        labels = (("oedema", 2), ("necrosis", 1), ("rim", 3))  # as BraTS 2023 numbers them
        masses = _glioma(rng, template, points, weights)
    elif kind == "stroke":
        labels = (("infarct", 1),)
        _infarct(rng, points, weights)
    elif kind == "plaques":
        labels = (("plaque", 1),)
        weights["plaque"] = _plaques(rng, template, points, count=int(rng.integers(8, 36)), radius=2.6)
    if ageing:
        distance = template.guide.at(points, padding="border")[2]
        bumps = smooth_noise(rng, shape=SHAPE, fwhm=14 / SPACING)
        caps = 0.6 * soft(5 * ageing - distance + 1.5 * bumps, 1.5) * (distance < 25)
        spots = _plaques(rng, template, points, count=int(20 * ageing), radius=1.7)
        weights["plaque"] = np.maximum(weights["plaque"], np.maximum(caps, 0.8 * spots))
    stacked = np.stack([weights[name] for name in CHANNELS]).astype(np.float32)
    return Lesions(Maps(torch.from_numpy(stacked), ORIGIN, SPACING), labels, masses)


def apply_lesions(fractions: dict[str, np.ndarray], weights: np.ndarray) -> None:
    """Turn healthy tissue into diseased, in place: the sum of fractions stays."""
    for name, weight in zip(CHANNELS, weights, strict=True):
        if not weight.any():
            continue
        for host, share in _HOSTS[name].items():
            taken = np.float32(share) * weight * fractions[host]
            fractions[host] -= taken
            fractions[name] += taken


def label_map(fractions: dict[str, np.ndarray], lesions: Lesions) -> np.ndarray:
    """The label of each voxel that is mostly (oedema: clearly) diseased, 0 elsewhere."""
    label = np.zeros(next(iter(fractions.values())).shape, dtype=np.uint8)
    core = sum(fractions[name] for name, _ in lesions.labels if name != "oedema")
    for name, value in lesions.labels:
        if name == "oedema":
            label[fractions[name] > 0.35] = value
        else:
            label[(core > 0.5) & (fractions[name] >= 0.5 * core)] = value
    return label


def _distance(points: np.ndarray, centre: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """From the centre in mm, along axes stretched by `stretch` (rows: directions times length)."""
    return np.linalg.norm(apply_matrix(stretch.T, points - centre.astype(np.float32)), axis=-1)


def _stretch(rng: np.random.Generator, *, amount: float) -> np.ndarray:
    """A random ellipsoid of unit volume, as the matrix that makes it a ball."""
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    lengths = np.exp(rng.normal(0, amount, 3))
    return turn @ np.diag(lengths / np.prod(lengths) ** (1 / 3)) @ turn.T


def _place(rng: np.random.Generator, template: Template, chance: np.ndarray) -> np.ndarray:
    """A point of the guide's grid, drawn by chance, and jittered within its cell."""
    flat = np.cumsum(chance.ravel(), dtype=np.float64)
    index = np.unravel_index(np.searchsorted(flat, rng.uniform() * flat[-1]), chance.shape)
    guide = template.guide
    return guide.origin + guide.spacing * (np.array(index) + rng.uniform(-0.5, 0.5, 3))


def _glioma(
    rng: np.random.Generator, template: Template, points: np.ndarray, weights: dict[str, np.ndarray]
) -> tuple[tuple[np.ndarray, float, float], ...]:
    """Necrosis in an irregular enhancing rim in oedema; one in six is diffuse and does not enhance."""
    wm, _, _, depth = template.guide.values.numpy()
    height = grid_points(wm.shape, template.guide.origin, template.guide.spacing)[..., 2]
    centre = _place(rng, template, wm * (depth > 12) * (depth < 34) * (height > -8))
    radius = rng.uniform(9, 21)
    spread = rng.uniform(7, 20)
    lumps = 0.22 * radius * smooth_noise(rng, shape=SHAPE, fwhm=0.8 * radius / SPACING)
    lumps += 1.0 * smooth_noise(rng, shape=SHAPE, fwhm=5 / SPACING)
    fingers = smooth_noise(rng, shape=SHAPE, fwhm=16 / SPACING)
    inwards = radius - _distance(points, centre, _stretch(rng, amount=0.2)) + lumps
    weights["oedema"] = soft(inwards + spread + 5 * fingers, 2.2)
    if rng.uniform() < 1 / 6:
        return ((centre, radius + spread, rng.uniform(0.5, 2.0)),)
    wall = rng.uniform(2.5, 5.0)
    hollow = soft(inwards - wall - 1.3 * smooth_noise(rng, shape=SHAPE, fwhm=7 / SPACING), 0.8)
    body = soft(inwards, 0.9)
    weights["necrosis"], weights["rim"] = body * hollow, body * (1 - hollow)
    weights["oedema"] = weights["oedema"] * (1 - body)
    return ((centre, radius + 4, rng.uniform(1.5, 5.0)),)


def _infarct(rng: np.random.Generator, points: np.ndarray, weights: dict[str, np.ndarray]) -> None:
    """One artery's territory, or part of it, sometimes with small emboli beside it."""
    side = rng.choice([-1.0, 1.0])
    places = (
        ((46, -12, 18), (16, 32)),  # middle cerebral artery, a large part
        ((42, -20, 28), (7, 15)),  # one of its branches
        ((26, -4, 8), (5, 9)),  # its perforators: putamen, capsule
        ((18, -78, 6), (9, 20)),  # posterior cerebral artery
        ((24, -62, -40), (8, 16)),  # cerebellum
    )
    (x, y, z), radii = places[rng.choice(len(places), p=(0.34, 0.3, 0.14, 0.12, 0.1))]
    centre = np.array([side * x, y, z]) + rng.normal(0, 6, 3)
    radius = rng.uniform(*radii)
    lumps = 0.2 * radius * smooth_noise(rng, shape=SHAPE, fwhm=0.9 * radius / SPACING)
    lumps += 0.8 * smooth_noise(rng, shape=SHAPE, fwhm=6 / SPACING)
    level = radius - _distance(points, centre, _stretch(rng, amount=0.25)) + lumps
    for _ in range(rng.poisson(1.2)):
        embolus = centre + radius * rng.normal(0, 0.9, 3)
        small = rng.uniform(2, 5) - _distance(points, embolus, _stretch(rng, amount=0.3))
        level = np.maximum(level, small)
    same_side = soft(side * points[..., 0] - 1.5, 1.0)  # arteries do not cross the falx
    weights["infarct"] = soft(level, 1.1) * same_side


def _plaques(
    rng: np.random.Generator, template: Template, points: np.ndarray, *, count: int, radius: float
) -> np.ndarray:
    """Ovoid lesions of white matter, most beside the ventricles and pointing away from them."""
    wm, _, away, depth = template.guide.values.numpy()
    near = wm**2 * (0.15 * (depth > 4) + 2 * np.exp(-away / 5)) * (depth > 4)
    weight = np.zeros(SHAPE, dtype=np.float32)
    outline = 0.9 * smooth_noise(rng, shape=SHAPE, fwhm=5 / SPACING)
    for _ in range(count):
        centre = _place(rng, template, near)
        size = min(radius * np.exp(rng.normal(0, 0.45)), 9.0)
        corner = np.clip(np.rint((centre - ORIGIN) / SPACING).astype(int) - 9, 0, np.array(SHAPE) - 1)
        box = tuple(slice(low, low + 19) for low in corner)
        outwards = centre - (np.sign(centre[0]) * 14, np.clip(centre[1], -40, 20), 14)
        outwards /= np.linalg.norm(outwards) + 1e-6
        lengthen = np.eye(3) - 0.4 * np.outer(outwards, outwards)  # a finger along the vein
        level = size - _distance(points[box], centre, lengthen @ _stretch(rng, amount=0.15)) + outline[box]
        weight[box] = np.maximum(weight[box], rng.uniform(0.65, 1.0) * soft(level, 0.7))
    return weight
