"""MR physics: the signal of each tissue by sequence and field strength, and what a receiver adds to it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from monai_ext.data.anatomy import TISSUES
from monai_ext.data.warp import smooth_noise

RELAXIVITY = (4.3, 5.2)  # r1, r2 of a gadolinium chelate in blood at body heat: 1 / (mM s)


@dataclass(frozen=True)
class Tissue:
    """T1, T2 in ms, proton density (water = 1), diffusivity in 1e-3 mm^2/s, gadolinium taken up in mM."""

    t1: float
    t2: float
    pd: float
    d: float
    gadolinium: float = 0.0


@dataclass(frozen=True)
class Sequence:
    """Times in ms; with `ti` an inversion recovery; b in s/mm^2; `fat`: the share of fat's signal left."""

    tr: float
    te: float
    ti: float | None = None
    b: float = 0.0
    contrast_agent: bool = False
    fat: float = 1.0


# Typical of adults, from published relaxometry; (T1 at 1.5 T, at 3 T), (T2 at 1.5 T, at 3 T), PD, D, uptake.
_TABLE: dict[str, tuple[tuple[float, float], tuple[float, float], float, float, float]] = {
    "csf": ((4100, 4200), (2000, 1700), 1.00, 3.00, 0.0),
    "gm": ((1050, 1400), (101, 96), 0.82, 0.85, 0.012),
    "wm": ((620, 850), (79, 72), 0.70, 0.73, 0.006),
    "deep": ((880, 1180), (86, 77), 0.78, 0.76, 0.012),
    "fat": ((270, 370), (95, 85), 0.80, 0.05, 0.0),
    "muscle": ((980, 1300), (38, 33), 0.72, 1.40, 0.08),
    "marrow": ((330, 440), (75, 65), 0.45, 0.10, 0.02),
    "blood": ((1450, 1800), (110, 80), 0.40, 1.50, 2.5),
    "oedema": ((1400, 1750), (190, 180), 0.90, 1.45, 0.0),
    "necrosis": ((2300, 2700), (330, 300), 0.94, 2.00, 0.03),
    "rim": ((1250, 1550), (125, 115), 0.84, 1.10, 0.55),
    "infarct": ((1150, 1450), (125, 118), 0.84, 0.42, 0.0),
    "plaque": ((1300, 1650), (180, 172), 0.87, 1.15, 0.0),
}


def tissues(field: float) -> dict[str, Tissue]:
    """The tissues at 1.5 or 3 T."""
    if field not in (1.5, 3.0):
        raise ValueError(f"field must be 1.5 or 3.0 tesla, got {field}")
    column = 0 if field == 1.5 else 1
    return {name: Tissue(t1[column], t2[column], pd, d, uptake) for name, (t1, t2, pd, d, uptake) in _TABLE.items()}


def vary(table: Mapping[str, Tissue], rng: np.random.Generator, *, spread: float) -> dict[str, Tissue]:
    """One subject's tissues: every property off by a factor, log-normal with standard deviation `spread`."""
    shared = rng.normal(0, 0.5 * spread)  # a person's water content moves all tissues together

    def factor(weight: float = 1.0) -> float:
        return float(np.exp(shared * weight + rng.normal(0, spread * weight)))

    varied = {}
    for name in TISSUES:
        tissue = table[name]
        still = 0.4 if name == "csf" else 1.0  # water is water: only flow and protein change it
        varied[name] = replace(
            tissue,
            t1=tissue.t1 * factor(still),
            t2=tissue.t2 * factor(still),
            pd=min(tissue.pd * factor(0.3), 1.0),
            d=tissue.d * factor(0.7 * still),
            gadolinium=tissue.gadolinium * factor(4),
        )
    return varied


def wetter(tissue: Tissue, amount: float) -> Tissue:
    """The tissue with `amount` more free water, as a fraction: longer T1 and T2, denser, more mobile."""
    return replace(
        tissue,
        t1=tissue.t1 * (1 + amount),
        t2=tissue.t2 * (1 + amount),
        pd=tissue.pd * (1 + 0.3 * amount),
        d=tissue.d * (1 + 0.7 * amount),
    )


def signal(tissue: Tissue, sequence: Sequence) -> float:
    """A spin echo, with or without inversion, gadolinium and diffusion weighting; negative while still inverted."""
    t1, t2 = tissue.t1, tissue.t2
    if sequence.contrast_agent:
        t1 = 1 / (1 / t1 + 1e-3 * RELAXIVITY[0] * tissue.gadolinium)
        t2 = 1 / (1 / t2 + 1e-3 * RELAXIVITY[1] * tissue.gadolinium)
    recovery = 1 - np.exp(-sequence.tr / t1)
    if sequence.ti is not None:
        recovery = 1 - 2 * np.exp(-sequence.ti / t1) + np.exp(-sequence.tr / t1)
    decay = np.exp(-sequence.te / t2 - 1e-3 * sequence.b * tissue.d)
    return float(tissue.pd * recovery * decay)


def nulling_time(tissue: Tissue, tr: float) -> float:
    """The inversion time at which a tissue gives no signal."""
    return float(tissue.t1 * np.log(2 / (1 + np.exp(-tr / tissue.t1))))


def mix(fractions: np.ndarray, water: np.ndarray, table: Mapping[str, Tissue], sequence: Sequence) -> np.ndarray:
    """Partial volume: each voxel's signal is the sum of its tissues', signed; (tissues, ...) -> (...).

    The magnitude is the receiver's, after all that mixes: inverted fluid cancels the brain beside it.
    `water` is the local variation of water content, a small fraction, taken to first order.
    """
    total = np.zeros(fractions.shape[1:], dtype=np.float32)
    slope = np.zeros_like(total)
    for name, fraction in zip(TISSUES, fractions, strict=True):
        share = sequence.fat if name in ("fat", "marrow") else 1.0
        level = share * signal(table[name], sequence)
        total += np.float32(level) * fraction
        if name not in ("csf", "fat", "blood"):
            slope += np.float32((share * signal(wetter(table[name], 0.01), sequence) - level) / 0.01) * fraction
    total += water * slope
    return total


def apparent_diffusion(unweighted: np.ndarray, weighted: np.ndarray, b: float) -> np.ndarray:
    """ADC in 1e-3 mm^2/s from the mono-exponential model, weighted = unweighted exp(-b ADC)."""
    floor = max(1e-6, 1e-4 * float(unweighted.max()))
    ratio = np.maximum(unweighted, floor) / np.maximum(weighted, floor)
    return np.clip(1e3 / b * np.log(ratio), 0, 4.5).astype(np.float32)


def bias_field(rng: np.random.Generator, *, shape: tuple[int, ...], strength: float) -> np.ndarray:
    """A receive coil's smooth gain about 1: e to the `strength` times a field of standard deviation 1."""
    coarse = smooth_noise(rng, shape=(12, 12, 12), fwhm=6)[2:9, 2:9, 2:9]
    axes = [np.linspace(0, 6, size, dtype=np.float32) for size in shape]
    for axis, where in enumerate(axes):  # separable, so a cubic spline along one axis after the other
        left = np.clip(np.floor(where).astype(int), 0, 5)
        coarse = _spline(np.moveaxis(coarse, axis, 0), left, where - left, axis)
    return np.exp(np.float32(strength) * coarse)


def _spline(values: np.ndarray, left: np.ndarray, t: np.ndarray, axis: int) -> np.ndarray:
    """Catmull-Rom along the first axis, which goes back to `axis`."""
    near = [values[np.clip(left + k, 0, len(values) - 1)] for k in (-1, 0, 1, 2)]
    t = t.reshape(-1, 1, 1)
    weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    return np.moveaxis(sum(0.5 * w * v for w, v in zip(weights, near, strict=True)), 0, axis)


def rician(image: np.ndarray, rng: np.random.Generator, *, sigma: float) -> np.ndarray:
    """The magnitude of the image with Gaussian noise in both receive channels."""
    real, imaginary = (rng.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    real *= np.float32(sigma)
    real += image
    imaginary *= np.float32(sigma)
    return np.hypot(real, imaginary)
