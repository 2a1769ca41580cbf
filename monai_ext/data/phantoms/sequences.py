"""The signal that a sequence gives of a tissue, from the Bloch equations' known solutions."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from monai_ext.data.phantoms.tissues import RELAXIVITY, Tissue


@dataclass(frozen=True)
class Sequence:
    """Times in ms. `kind`: se (spin echo and its trains), ir (one with inversion), spgr, mprage.

    `b` in s/mm^2; `fat`: the share of fat's signal that is left; `mt`: how much of what magnetisation transfer
    can take it takes; `flow`: the share of moving fluid that no inversion reached; `inversion`: its efficiency.
    """

    kind: str
    tr: float
    te: float
    ti: float = 0.0
    flip: float = 90.0
    b: float = 0.0
    contrast_agent: bool = False
    fat: float = 1.0
    mt: float = 0.0
    flow: float = 0.0
    inversion: float = 0.97
    train: int = 176  # readouts of an mprage
    echo_spacing: float = 7.5


def signal(tissue: Tissue, sequence: Sequence) -> Tensor:
    """Compute what one voxel of a tissue gives; negative where still inverted.

    Args:
        tissue: numbers, or tensors of one shape.
        sequence: se, ir, spgr or mprage; its `fat` is not applied here.

    Returns:
        float32 of the tissue's shape, in shares of what fully relaxed fluid gives.

    Raises:
        KeyError: another kind of sequence.
    """
    t1, t2, t2s, pd, d = (
        torch.as_tensor(value, dtype=torch.float32) for value in (tissue.t1, tissue.t2, tissue.t2s, tissue.pd, tissue.d)
    )
    if sequence.contrast_agent:
        uptake = torch.as_tensor(tissue.gadolinium, dtype=torch.float32)
        t1 = 1 / (1 / t1 + 1e-3 * RELAXIVITY[0] * uptake)
        t2 = 1 / (1 / t2 + 1e-3 * RELAXIVITY[1] * uptake)
        t2s = 1 / (1 / t2s + 1e-3 * RELAXIVITY[1] * uptake)
    along = {"se": _spin_echo, "ir": _inversion_recovery, "spgr": _spoiled, "mprage": _mprage}[sequence.kind](
        t1, sequence
    )
    decay = torch.exp(-sequence.te / (t2s if sequence.kind in ("spgr", "mprage") else t2))
    if sequence.b:
        decay = decay * torch.exp(-1e-3 * sequence.b * d)
    taken = 1 - sequence.mt * torch.as_tensor(tissue.mt, dtype=torch.float32)
    return pd * along * decay * taken


def _spin_echo(t1: Tensor, sequence: Sequence) -> Tensor:
    return 1 - torch.exp(-sequence.tr / t1)


def _inversion_recovery(t1: Tensor, sequence: Sequence) -> Tensor:
    left = (1 + sequence.inversion) * torch.exp(-sequence.ti / t1)
    return 1 - left + sequence.inversion * torch.exp(-sequence.tr / t1)


def _spoiled(t1: Tensor, sequence: Sequence) -> Tensor:
    """Ernst's steady state."""
    angle = np.deg2rad(sequence.flip)
    left = torch.exp(-sequence.tr / t1)
    return np.sin(angle) * (1 - left) / (1 - np.cos(angle) * left)


def _mprage(t1: Tensor, sequence: Sequence) -> Tensor:
    """Inversion, recovery, a train of small flips centred on TI, recovery: the steady state of the cycle.

    Each part maps longitudinal magnetisation m to a m + b, so the cycle has one fixed point.
    """
    angle = np.deg2rad(sequence.flip)
    half = sequence.train // 2
    before = max(sequence.ti - half * sequence.echo_spacing, 5.0)
    after = max(sequence.tr - before - 2 * half * sequence.echo_spacing, 5.0)

    def recover(time: float) -> tuple[Tensor, Tensor]:
        left = torch.exp(-time / t1)
        return left, 1 - left

    def then(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return first[0] * second[0], second[0] * first[1] + second[1]

    step, gain = recover(sequence.echo_spacing)
    share = step * float(np.cos(angle))
    fixed = gain / (1 - share)  # a pulse, then an interval
    readouts = share**half, fixed * (1 - share**half)
    inverted = torch.full_like(t1, -sequence.inversion), torch.zeros_like(t1)
    to_centre = then(then(inverted, recover(before)), readouts)
    cycle = then(then(to_centre, readouts), recover(after))
    start = cycle[1] / (1 - cycle[0])
    return float(np.sin(angle)) * (to_centre[0] * start + to_centre[1])


def nulling_time(tissue: Tissue, *, tr: float, inversion: float = 0.97) -> float:
    """Compute the inversion time at which a tissue gives no signal.

    Args:
        tissue: whose T1 is a number.
        tr: repetition time in ms.
        inversion: its efficiency, 0 to 1.

    Returns:
        ms

    Example:
        >>> fluid = Tissue(t1=4200.0, t2=1700.0, t2s=500.0, pd=1.0, d=3.0)
        >>> round(nulling_time(fluid, tr=9000.0))  # of a FLAIR at 3 T
        2395
    """
    t1 = float(tissue.t1)
    return float(t1 * np.log((1 + inversion) / (1 + inversion * np.exp(-tr / t1))))


def fresh(sequence: Sequence) -> Sequence:
    """Give the sequence for spins that came in after the inversion.

    Args:
        sequence: any.

    Returns:
        The same without inversion, a spin echo, where it is an "ir"; else itself.
    """
    return replace(sequence, kind="se") if sequence.kind == "ir" else sequence
