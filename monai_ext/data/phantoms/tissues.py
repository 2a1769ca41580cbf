"""Relaxation of each tissue by field strength, how people differ, and how disease moves it towards water."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from monai_ext.data.phantoms.anatomy import CLASSES

RELAXIVITY = (4.3, 5.2)  # r1, r2 of a gadolinium chelate in blood at body heat: 1 / (mM s)


@dataclass(frozen=True)
class Tissue:
    """T1, T2, T2* in ms, water content (fluid = 1), diffusivity in 1e-3 mm^2/s, share of signal that magnetisation
    transfer can take, gadolinium taken up in mM; numbers, or tensors of one shape."""

    t1: float | Tensor
    t2: float | Tensor
    t2s: float | Tensor
    pd: float | Tensor
    d: float | Tensor
    mt: float | Tensor = 0.0
    gadolinium: float | Tensor = 0.0


# Typical of adults, from published relaxometry: T1 at 1.5 and 3 T, T2 at 1.5 and 3 T, T2* at 3 T, PD, D, MT, uptake.
_TABLE: dict[str, tuple[float, ...]] = {
    "ventricle": (4100, 4200, 2000, 1700, 500, 1.00, 3.00, 0.00, 0.0),
    "csf": (4000, 4100, 1700, 1400, 350, 1.00, 3.00, 0.00, 0.0),
    "gm": (1020, 1350, 98, 91, 52, 0.82, 0.85, 0.25, 0.012),
    "wm": (620, 850, 79, 74, 48, 0.70, 0.73, 0.40, 0.006),
    "deep": (880, 1180, 86, 78, 38, 0.77, 0.76, 0.32, 0.012),
    "blood": (1450, 1800, 110, 60, 25, 0.45, 1.50, 0.05, 2.5),
    "fat": (270, 370, 95, 85, 40, 0.80, 0.05, 0.02, 0.0),
    "muscle": (980, 1300, 38, 33, 25, 0.74, 1.40, 0.40, 0.08),
    "marrow": (330, 440, 75, 65, 20, 0.55, 0.10, 0.05, 0.02),
}


def tissues(tesla: float) -> dict[str, Tissue]:
    """Give the tissues at a field strength: T1 and T2 follow the power law through their values at 1.5 and 3 T.

    Args:
        tesla: 0.05 to 7.

    Returns:
        A tissue for each of CLASSES.

    Raises:
        ValueError: another field.
    """
    if not 0.05 <= tesla <= 7:
        raise ValueError(f"field must be 0.05 to 7 tesla, got {tesla}")
    place = float(np.log2(tesla / 1.5))
    table = {}
    for name, (t1, t1_3, t2, t2_3, t2s, pd, d, mt, uptake) in _TABLE.items():
        t2_here = t2 * (t2_3 / t2) ** place
        table[name] = Tissue(
            t1=t1 * (t1_3 / t1) ** place,
            t2=t2_here,
            t2s=min(t2s * 2 ** (0.6 * (1 - place)), 0.9 * t2_here),
            pd=pd,
            d=d,
            mt=mt,
            gadolinium=uptake,
        )
    return table


def vary(table: Mapping[str, Tissue], rng: np.random.Generator, *, spread: float) -> dict[str, Tissue]:
    """Draw one person's tissues: every property is off by a log-normal factor, water's by less.

    Args:
        table: of `tissues`.
        rng: of all that is drawn.
        spread: the standard deviation of T1's, T2's and T2*'s logarithms.

    Returns:
        A tissue for each of CLASSES.
    """
    shared = rng.normal(0, 0.5 * spread)  # a person's water content moves all tissues together

    def factor(weight: float = 1.0) -> float:
        return float(np.exp(shared * weight + rng.normal(0, spread * weight)))

    varied = {}
    for name in CLASSES:
        tissue = table[name]
        still = 0.4 if name in ("csf", "ventricle") else 1.0  # water is water: only flow and protein change it
        varied[name] = replace(
            tissue,
            t1=tissue.t1 * factor(still),
            t2=tissue.t2 * factor(still),
            t2s=tissue.t2s * factor(still),
            pd=min(tissue.pd * factor(0.3), 1.0),
            d=tissue.d * factor(0.7 * still),
            mt=tissue.mt * factor(),
            gadolinium=tissue.gadolinium * factor(4),
        )
    return varied


def wetter(tissue: Tissue, amount: float) -> Tissue:
    """Give the tissue more free water: longer T1 and T2, denser, more mobile.

    Args:
        tissue: numbers or tensors.
        amount: more water, as a fraction: 0 changes nothing.

    Returns:
        Another tissue; T2*, magnetisation transfer and uptake are the same.
    """
    return replace(
        tissue,
        t1=tissue.t1 * (1 + amount),
        t2=tissue.t2 * (1 + amount),
        pd=tissue.pd * (1 + 0.3 * amount),
        d=tissue.d * (1 + 0.7 * amount),
    )


def slower(tissue: Tissue, amount: float) -> Tissue:
    """Give the tissue a longer T2 at the same T1: less iron, fibres in another order.

    Args:
        tissue: numbers or tensors.
        amount: more T2, as a fraction: 0 changes nothing.

    Returns:
        Another tissue; T2* follows T2.
    """
    return replace(tissue, t2=tissue.t2 * (1 + amount), t2s=tissue.t2s * (1 + amount))


def diseased(table: Mapping[str, Tissue], t1: Tensor, t2: Tensor, diffusion: Tensor, gadolinium: Tensor) -> Tissue:
    """Diseased tissue from faint to fluid-like, voxel by voxel.

    Args:
        table: the person's tissues.
        t1: how far from white matter (0) to fluid (1) T1 and water content are, in logarithms.
        t2: the same for T2.
        diffusion: as a factor on what the same water content has when healthy: 0.5 in a fresh infarct.
        gadolinium: uptake in mM.

    Returns:
        A tissue of tensors of the maps' shape.
    """
    white, fluid = table["wm"], table["ventricle"]

    def between(name: str, share: Tensor) -> Tensor:
        low, high = float(getattr(white, name)), float(getattr(fluid, name))
        return low * torch.exp(share * float(np.log(high / low)))

    return Tissue(
        t1=between("t1", t1),
        t2=between("t2", t2),
        t2s=between("t2s", t2),
        pd=float(white.pd) + (float(fluid.pd) - float(white.pd)) * (1.5 * t1).clamp(max=1),
        d=between("d", t1) * diffusion,
        mt=float(white.mt) * (1 - 1.6 * t1).clamp(min=0),
        gadolinium=gadolinium,
    )
