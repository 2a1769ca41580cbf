"""Everything drawn of one phantom: a person, bent and diseased, tissues of its own, how each contrast is scanned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_ext.data.phantoms.acquisition import Acquisition, Grid, Stripping, draw_acquisition, draw_stripping
from monai_ext.data.phantoms.anatomy import Anatomy
from monai_ext.data.phantoms.lesions import KINDS, Lesions, draw_lesions
from monai_ext.data.phantoms.protocols import CANONICAL, USUAL, Echoes, draw_protocol
from monai_ext.data.phantoms.sequences import Sequence as Played
from monai_ext.data.phantoms.shapes import Placement, draw_placement, lattice_noise
from monai_ext.data.phantoms.tissues import Tissue, tissues, vary


@dataclass(frozen=True)
class Subject:
    """Everything drawn of one phantom; `render` adds no randomness.

    `poses` are rigid 4x4 matrices in mm about the grid's middle: a contrast that is among them shows at M x what the
    others, which keep still, show at x.
    """

    anatomy: Anatomy
    grid: Grid
    placement: Placement
    lesions: Lesions
    table: Mapping[str, Tissue]
    tesla: float
    protocol: Mapping[str, Played]
    acquisitions: Mapping[str, Acquisition]
    stripping: Stripping | None
    texture: tuple[Tensor, ...]  # water, smooth and fine; where sulci are wider; T2, smooth and fine
    atrophy: float
    contrasts: tuple[str, ...]
    facts: Mapping[str, object]
    poses: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    canonical: Mapping[str, Played] = field(default_factory=lambda: CANONICAL)  # what the targets are played by


def draw_subject(
    rng: np.random.Generator,
    anatomy: Anatomy,
    *,
    grid: Grid,
    contrasts: Sequence[str],
    masks: tuple[Path, ...] = (),
    kind: str | None = None,
    skull: bool | None = None,
    wide: bool | None = None,
    registered: bool = False,
    echoes: Echoes = USUAL,
) -> Subject:
    """Draw one subject.

    Args:
        rng: all of its randomness.
        anatomy: the person.
        grid: what it is written on.
        contrasts: those to make, names of MODALITIES.
        masks: files of real infarcts.
        kind: its disease, one of KINDS, drawn where None.
        skull: whether the head is there, drawn where None.
        wide: whether protocols go beyond what hospitals play, drawn where None.
        registered: whether all contrasts lie on each other; else half of the subjects' are apart by up to 3 mm.
        echoes: of the target's FLAIR and of T2-weighted sources.

    Returns:
        All that `render` needs, and in `facts` what a sidecar says of it.

    Raises:
        ValueError: another kind, or a mask that cannot be read.
    """
    kind = kind or str(rng.choice(KINDS, p=(0.12, 0.4, 0.3, 0.18)))
    head = bool(rng.uniform() < 0.5) if skull is None else skull
    wide = bool(rng.uniform() < 0.3) if wide is None else wide
    ageing = float(rng.beta(0.8, 1.4))
    lesions = draw_lesions(rng, anatomy, kind=kind, ageing=ageing if kind != "plaques" else 0.3 * ageing, masks=masks)
    low_field = bool(rng.uniform() < 0.08)
    tesla = float(np.exp(rng.uniform(np.log(0.06), np.log(1.0)))) if low_field else float(rng.choice((1.5, 3.0)))
    table = vary(tissues(tesla), rng, spread=0.1 if wide else 0.06)
    protocol = draw_protocol(rng, table, tesla=tesla, wide=wide, shortest_t2=echoes.t2)
    free = np.maximum(grid.extent - anatomy.size_mm * 0.95, 0)
    shift = rng.uniform(-1, 1, 3) * np.minimum(0.4 * free, (20, 22, 14))
    placement = draw_placement(
        rng, extent=np.array(grid.rendered) * grid.step, masses=tuple(lesions.masses), shift=shift
    )
    acquisitions, measured = _draw_acquisitions(rng, grid, contrasts, low_field=low_field, registered=registered)
    texture = draw_texture(rng, grid)
    facts = {
        "anatomy": anatomy.name, "lesion": kind, "ageing": round(ageing, 3), "skull": head, "wide": wide,
        "field_tesla": round(tesla, 3), **measured, "t1": protocol["T1"].kind,
        "target_flair_echo_ms": echoes.flair, "shortest_t2_echo_ms": echoes.t2,
    }  # fmt: skip
    return Subject(
        anatomy=anatomy,
        grid=grid,
        placement=placement,
        lesions=lesions,
        table=table,
        tesla=tesla,
        protocol=protocol,
        acquisitions=acquisitions,
        stripping=None if head else draw_stripping(rng, shape=grid.rendered, spacing=grid.step),
        texture=texture,
        atrophy=draw_atrophy(rng, ageing=ageing),
        contrasts=tuple(contrasts),
        facts=facts,
        canonical=echoes.canonical,
    )


def draw_texture(rng: np.random.Generator, grid: Grid) -> tuple[Tensor, ...]:
    """Draw how a tissue varies from place to place.

    Args:
        rng: of all that is random.
        grid: of the images.

    Returns:
        Water, smooth and fine, where sulci are wider, and T2, smooth and fine, as `Subject` has them.
    """
    widths = (28.0, 3.5, 14.0, 10.0, 3.5)  # mm
    return tuple(lattice_noise(rng, shape=grid.rendered, fwhm=fwhm / grid.step) for fwhm in widths)


def draw_atrophy(rng: np.random.Generator, *, ageing: float) -> float:
    """Draw how much fluid there is around a brain.

    Args:
        rng: of all that is random.
        ageing: 0 to 1.

    Returns:
        The logarithm of the factor on an anatomy's own.
    """
    return float(rng.normal(-0.6, 0.25) + 0.9 * ageing)


def _draw_acquisitions(
    rng: np.random.Generator, grid: Grid, contrasts: Sequence[str], *, low_field: bool, registered: bool
) -> tuple[dict[str, Acquisition], dict[str, object]]:
    """How each contrast is scanned, all of them by one scanner, and the facts of it."""
    apart = float(rng.choice((0.0, 1.0, 3.0), p=(0.5, 0.35, 0.15))) * (not registered)
    noisy = float(np.exp(rng.normal(np.log(0.03), 0.6))) * (2.5 if low_field else 1)
    uneven = float(np.exp(rng.normal(np.log(0.12), 0.7)))
    same_plane = int(rng.choice(3, p=(0.1, 0.15, 0.75)))
    acquisitions: dict[str, Acquisition] = {}
    for name in contrasts:
        if name == "ADC" and "DWI" in acquisitions:  # computed from that very scan
            acquisitions[name] = acquisitions["DWI"]
            continue
        diffusion = name in ("DWI", "ADC")
        drawn = draw_acquisition(
            rng,
            spacing=grid.spacing,
            noise=noisy * float(np.exp(rng.normal(0, 0.3))) * (1.5 if diffusion else 1),
            bias=uneven * float(np.exp(rng.normal(0, 0.4))),
            misregistered=apart,
            blur=2.5 if diffusion or low_field else 1.3,
            plane=same_plane if rng.uniform() < 0.7 else None,
        )
        acquisitions[name] = drawn
        if name == "DWI" and "ADC" in acquisitions:
            acquisitions["ADC"] = drawn
    thickest = {name: round(max(a.width for a in drawn.axes), 2) for name, drawn in acquisitions.items()}
    facts = {"misregistered_mm": apart, "noise": round(noisy, 4), "bias": round(uneven, 3), "slices_mm": thickest}
    return acquisitions, facts
