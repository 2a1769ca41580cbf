"""One phantom: a warped and diseased template, scanned by a site's protocol."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from monai_ext.data import signal as mr
from monai_ext.data.anatomy import TISSUES, Template, grid_points, soft, template
from monai_ext.data.lesions import LESIONS, Lesions, apply_lesions, label_map, random_lesions
from monai_ext.data.sites import Site, available, protocol
from monai_ext.data.volumes import Volume
from monai_ext.data.warp import Maps, Warp, apply_matrix, noise_maps, random_rigid, random_warp
from monai_ext.modalities import MODALITIES

BRAIN = ("csf", "gm", "wm", "deep")
REFERENCES = ("T1", "DWI", *MODALITIES)  # the first of them that a subject has keeps still
FIELD_CENTRE = np.array([0.0, -16.0, 8.0])  # mm: the middle of every field of view
STRIPPED_CENTRE = np.array([0.0, -17.0, 5.0])
OLD = 0.3  # ageing beyond which white matter shows it
DIFFUSION_BLUR = 2.2  # mm: echo-planar readouts resolve no better


@dataclass(frozen=True)
class Phantom:
    """A subject's scans; `brain` and `label` lie where the reference contrast has them.

    `offsets` are 4x4 matrices in RAS mm: what the reference contrast shows at world point x, the other
    contrast shows at world point M x.
    """

    images: Mapping[str, Volume]
    label: Volume | None
    brain: Volume
    reference: str
    offsets: Mapping[str, np.ndarray]
    facts: Mapping[str, object]  # what was drawn, ready for JSON


@dataclass(frozen=True)
class _Anatomy:
    template: Template
    warp: Warp
    lesions: Lesions
    texture: Maps
    atrophy: float
    stripped: bool

    def fractions(self, points: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """World points -> each tissue's fraction, the local excess of water, and the brain's own share."""
        where = self.warp(points)
        tissue = {name: np.zeros(points.shape[:-1], dtype=np.float32) for name in TISSUES}
        tissue.update(zip(BRAIN, self.template.brain.at(where, padding="border"), strict=True))
        folds, layers, fine, coarse, vessels = self.texture.at(where, padding="border")
        brain = np.add.reduce([tissue[name] for name in BRAIN])
        # Sulci and cortex as wide as this person's: shift the balance, keep the sum.
        tissue["csf"] = tissue["csf"] * np.exp(self.atrophy + 0.4 * folds)
        tissue["gm"] = tissue["gm"] * np.exp(0.3 * layers)
        share = brain / np.maximum(np.add.reduce([tissue[name] for name in BRAIN]), 1e-6)
        for name in BRAIN:
            tissue[name] = tissue[name] * share
        flowing = tissue["csf"] * 0.6 * soft(vessels - 1.5, 0.12)  # arteries, veins, choroid plexus
        tissue["csf"] = tissue["csf"] - flowing
        tissue["blood"] = flowing
        apply_lesions(tissue, self.lesions.weights.at(where))
        if not self.stripped:
            head = zip(
                ("csf", "fat", "muscle", "marrow", "blood"), self.template.head.at(where, padding="border"), strict=True
            )
            room = 1 - brain
            for name, fraction in head:
                tissue[name] = tissue[name] + fraction * room
            streaks = 0.75 * tissue["muscle"] * soft(folds - 0.6, 0.3)  # fat between the muscles
            tissue["muscle"] = tissue["muscle"] - streaks
            tissue["fat"] = tissue["fat"] + streaks
        water = 0.02 * fine + 0.02 * coarse
        return tissue, water, brain


def generator(seed: int, site: Site, index: int, part: str) -> np.random.Generator:
    """Each part of each subject has its own numbers, whatever else is made."""
    return np.random.default_rng([seed, zlib.crc32(site.name.encode()), index, zlib.crc32(part.encode())])


def make_phantom(
    site: Site,
    *,
    index: int,
    seed: int = 0,
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
    contrasts: Sequence[str] | None = None,
    misalign: tuple[float, float] = (0.0, 0.0),
    randomize: bool = False,
) -> Phantom:
    """Subject number `index` of a site; `misalign` is the largest shift (mm) and turn (degrees)."""
    rng = generator(seed, site, index, "subject")
    tesla = float(rng.choice(site.fields))
    chosen = tuple(contrasts or available(site, generator(seed, site, index, "contrasts")))
    sequences = protocol(site, rng, tesla=tesla, randomize=randomize)
    spread = 0.12 if randomize else 0.04
    table = mr.vary(mr.tissues(tesla), rng, spread=spread)
    anatomy, ageing, kind = _anatomy(site, index=index, seed=seed, spacing=min(spacing), randomize=randomize)
    reference = next(name for name in REFERENCES if name in chosen)
    offsets = _offsets(site, chosen, reference, index=index, seed=seed, misalign=misalign)

    shape, affine, factors = _grid(site, spacing)
    images: dict[str, Volume] = {}
    label, brain = None, None
    groups: dict[bytes, list[str]] = {}
    for name in chosen:
        groups.setdefault(offsets[name].tobytes(), []).append(name)
    for key, names in groups.items():  # contrasts in one pose share their anatomy
        pose = np.frombuffer(key).reshape(4, 4)
        tissue, water, inside = _scan_anatomy(anatomy, shape, affine, factors, pose)
        stack = np.stack([tissue[name] for name in TISSUES])
        mask = inside > 0.5
        if reference in names:
            brain = mask
            label = label_map(tissue, anatomy.lesions) if anatomy.lesions.labels else None
        for name in names:
            rng = generator(seed, site, index, f"noise {_scan_of(name)}")
            array = _scan(name, stack, water, mask, site, table, sequences, spacing, rng, randomize)
            images[name] = Volume(array, affine)
    assert brain is not None
    facts = {
        "site": site.name, "seed": seed, "index": index, "randomized": randomize, "field_tesla": tesla,
        "lesion": kind, "ageing": round(ageing, 3), "skull_stripped": site.stripped,
        "sequences": {name: asdict(sequences[name]) for name in chosen},
        "tissues": {name: asdict(table[name]) for name in TISSUES},
    }  # fmt: skip
    return Phantom(
        images={name: images[name] for name in chosen},
        label=None if label is None else Volume(label.astype(np.float32), affine),
        brain=Volume(brain.astype(np.float32), affine),
        reference=reference,
        offsets=offsets,
        facts=facts,
    )


def _anatomy(site: Site, *, index: int, seed: int, spacing: float, randomize: bool) -> tuple[_Anatomy, float, str]:
    rng = generator(seed, site, index, "anatomy")
    kind = str(rng.choice(LESIONS)) if randomize else site.lesion
    ageing = float(rng.uniform(*((0.2, 1) if randomize else site.ageing)))
    base = template(spacing)
    lesions = random_lesions(rng, base, kind=kind, ageing=ageing if ageing > OLD and kind != "plaques" else 0.0)
    warp = random_warp(rng, base, strength=1.3 if randomize else 1.0, ventricles=6.0 * ageing, masses=lesions.masses)
    anatomy = _Anatomy(
        template=base,
        warp=warp,
        lesions=lesions,
        texture=noise_maps(rng, fwhms=(14.0, 12.0, 9.0, 40.0, 8.0)),
        atrophy=float(rng.normal(0.1, 0.2) + 0.9 * ageing),
        stripped=site.stripped,
    )
    return anatomy, ageing, kind


def _scan_of(name: str) -> str:
    """ADC is computed from the DWI scan: one pose, one coil, one resolution, the same noise."""
    return "DWI" if name == "ADC" else name


def _offsets(
    site: Site, chosen: Sequence[str], reference: str, *, index: int, seed: int, misalign: tuple[float, float]
) -> dict[str, np.ndarray]:
    """The reference keeps still."""
    poses = {}
    for name in chosen:
        scan = _scan_of(name)
        if name == reference or scan == reference:
            poses[name] = np.eye(4)
            continue
        rng = generator(seed, site, index, f"offset {scan}")
        poses[name] = random_rigid(rng, millimetres=misalign[0], degrees=misalign[1])
    return poses


def _grid(site: Site, spacing: tuple[float, float, float]) -> tuple[tuple[int, ...], np.ndarray, tuple[int, ...]]:
    """The image's shape and affine, and into how many parts a thick voxel is cut to average over it."""
    step = np.array(spacing)
    shape = tuple(int(n) for n in np.maximum(np.rint(np.array(site.extent) / step), 1))
    centre = STRIPPED_CENTRE if site.stripped else FIELD_CENTRE
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = centre - step * (np.array(shape) - 1) / 2
    factors = tuple(int(f) for f in np.maximum(np.rint(step / step.min()), 1))
    return shape, affine, factors


def _scan_anatomy(
    anatomy: _Anatomy, shape: tuple[int, ...], affine: np.ndarray, factors: tuple[int, ...], pose: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Fractions on the image's grid with the head moved by `pose`, averaged over each voxel's parts."""
    step = np.diag(affine)[:3]
    total: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray] | None = None
    parts = list(np.ndindex(*factors))
    still = np.linalg.inv(pose)
    for part in parts:
        shift = ((np.array(part) + 0.5) / np.array(factors) - 0.5) * step
        points = grid_points(shape, affine[:3, 3] + shift, step)
        if not np.array_equal(pose, np.eye(4)):
            points = apply_matrix(still, points)
        tissue, water, inside = anatomy.fractions(points)
        if total is None:
            total = tissue, water, inside
        else:
            total = {n: total[0][n] + f for n, f in tissue.items()}, total[1] + water, total[2] + inside
    assert total is not None
    if len(parts) > 1:
        total = {n: f / len(parts) for n, f in total[0].items()}, total[1] / len(parts), total[2] / len(parts)
    return total


def _scan(
    name: str,
    stack: np.ndarray,
    water: np.ndarray,
    mask: np.ndarray,
    site: Site,
    table: Mapping[str, mr.Tissue],
    sequences: Mapping[str, mr.Sequence],
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    randomize: bool,
) -> np.ndarray:
    """One contrast as the scanner stores it; the same `rng` gives ADC the very image that DWI is."""
    sequence = sequences[name]
    wide = (lambda low, high: float(np.exp(rng.uniform(np.log(low), np.log(high))))) if randomize else None
    blur = np.zeros(3)
    if sequence.b:
        blur = np.sqrt(np.maximum(DIFFUSION_BLUR**2 - np.array(spacing) ** 2, 0))
    if randomize and rng.uniform() < 0.5:  # another resolution, thicker slices in any plane
        blur = np.maximum(blur, rng.uniform(0, 1.5, 3))
        blur[rng.integers(3)] = max(blur.max(), rng.uniform(1, 5))
    bias_strength = site.bias * (wide(0.3, 3) if wide else 1)
    white = abs(mr.signal(table["wm"], sequence))
    sigma = site.noise * np.sqrt(0.2 * white) * (wide(0.3, 3) if wide else 1)  # brighter contrasts are cleaner
    bias = mr.bias_field(rng, shape=mask.shape, strength=bias_strength)

    def receive(played: mr.Sequence) -> np.ndarray:
        clean = mr.mix(stack, water, table, played)
        if blur.any():
            clean = ndimage.gaussian_filter(clean, blur / 2.355 / np.array(spacing), mode="nearest")
        return mr.rician(clean * bias, rng, sigma=sigma)

    weighted = receive(sequence)
    level = site.level.get(name, 400.0)
    if name == "ADC":
        unweighted = receive(mr.replace(sequence, b=0.0))
        shown = unweighted > 8 * sigma
        image = level * mr.apparent_diffusion(unweighted, weighted, sequence.b) * shown
    else:
        spread = 0.6 if randomize else site.level_spread
        image = weighted * (level * float(np.exp(rng.normal(0, spread))) / white)
    if site.stripped:
        image = image * mask
    return image.astype(np.float32)
