"""A patient of one of the sites: an anatomy, bent and diseased, scanned as the site scans; every contrast's place."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from monai_ext.data.phantoms.acquisition import GRID, Acquisition, Axis, Grid, Stripping
from monai_ext.data.phantoms.anatomy import Anatomy
from monai_ext.data.phantoms.drawing import Subject, draw_atrophy, draw_subject, draw_texture
from monai_ext.data.phantoms.lesions import draw_lesions
from monai_ext.data.phantoms.rendering import render
from monai_ext.data.phantoms.sequences import Sequence as Played
from monai_ext.data.phantoms.sequences import signal
from monai_ext.data.phantoms.shapes import draw_placement, draw_rigid
from monai_ext.data.phantoms.sites import Site, available, site_protocol
from monai_ext.data.phantoms.template import anatomy_by_lot
from monai_ext.data.phantoms.tissues import tissues, vary
from monai_ext.data.volumes import Volume
from monai_ext.modalities import MODALITIES

REFERENCES = ("T1", "DWI", *MODALITIES)  # the first of them that a subject has keeps still
OLD = 0.3  # ageing beyond which white matter shows it
DIFFUSION_BLUR = 2.2  # mm: echo-planar readouts resolve no better
GAIN_LEFT = 0.35  # of the spread of a coil's control points is left between them


@dataclass(frozen=True)
class Phantom:
    """A patient's scans; `brain` and `label` lie where the reference contrast has them.

    `offsets` are 4x4 matrices in RAS mm: what the reference contrast shows at world point x, the other
    contrast shows at world point M x.
    """

    images: Mapping[str, Volume]
    label: Volume | None
    brain: Volume
    reference: str
    offsets: Mapping[str, NDArray[np.float64]]
    facts: Mapping[str, object]  # what was drawn, ready for JSON


def make_phantom(
    site: Site,
    *,
    index: int,
    seed: int = 0,
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
    contrasts: Sequence[str] | None = None,
    misalign: tuple[float, float] = (0.0, 0.0),
    randomize: bool = False,
    anatomies: Sequence[Path] = (),
    masks: Sequence[Path] = (),
    device: torch.device | str = "cpu",
) -> Phantom:
    """Make patient number `index` of a site: the same for a seed, whoever else is made.

    Args:
        site: whose contrasts, disease, scanner and protocol.
        index: from 0.
        seed: of all that is random.
        spacing: voxels in mm; from 1.75 mm on the patient is the same whatever it is.
        contrasts: in place of the site's own.
        misalign: the largest shift in mm and turn in degrees of a contrast against the reference.
        randomize: any disease, and protocols and scanners beyond what hospitals have.
        anatomies: label maps, one of which is drawn; the MNI152 template without any.
        masks: of real infarcts, one of which may be a stroke's.
        device: where it is rendered, on any to 1e-4 the same.

    Returns:
        The scans, the truth, and what was drawn.

    Raises:
        ValueError: a label map or a mask that is none, or no template where there are no label maps.

    Example:
        >>> from monai_ext.data.phantoms.sites import SITES
        >>> phantom = make_phantom(SITES["stroke"], index=0, spacing=(8.0, 8.0, 8.0))
        >>> sorted(phantom.images), phantom.reference, phantom.brain.shape
        (['ADC', 'DWI', 'FLAIR'], 'DWI', (25, 29, 21))
    """
    chosen = tuple(contrasts or available(site, _generator(seed, site, index, "contrasts")))
    anatomy = anatomy_by_lot(_generator(seed, site, index, "head"), anatomies, spacing=spacing)
    i, j, k = (max(round(length / size), 1) for length, size in zip(site.extent, spacing, strict=True))
    grid = Grid((i, j, k), spacing)
    if randomize:
        rng = _generator(seed, site, index, "subject")
        drawn = draw_subject(
            rng, anatomy, grid=grid, contrasts=chosen, masks=tuple(masks), skull=not site.stripped, wide=True,
            registered=True,
        )  # fmt: skip
    else:
        drawn = _patient(site, anatomy, index=index, seed=seed, grid=grid, contrasts=chosen, masks=tuple(masks))

    reference = next(name for name in REFERENCES if name in chosen)
    poses: dict[str, NDArray[np.float64]] = {}
    for name in chosen:
        if any(misalign) and _scan_of(name) != _scan_of(reference):
            rng = _generator(seed, site, index, f"offset {_scan_of(name)}")
            poses[name] = draw_rigid(rng, millimetres=misalign[0], degrees=misalign[1], centre=drawn.placement.shift)
    rendered = render(replace(drawn, poses=poses), device=device, targets=False)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [grid.positions(axis)[0] for axis in range(3)]

    def volume(image: torch.Tensor) -> Volume:
        return Volume(np.ascontiguousarray(image.cpu().numpy(), dtype=np.float32), affine)

    facts = {
        "site": site.name, "seed": seed, "index": index, "randomized": randomize, "skull_stripped": site.stripped,
        **drawn.facts,
        "sequences": {name: asdict(drawn.protocol[name]) for name in chosen},
        "tissues": {name: asdict(tissue) for name, tissue in drawn.table.items()},
    }  # fmt: skip
    return Phantom(
        images={
            name: volume(image * _level(site, name, drawn, _generator(seed, site, index, f"level {_scan_of(name)}")))
            for name, image in rendered.images.items()
        },
        label=None if drawn.lesions.kind == "none" else volume(rendered.label),
        brain=volume(rendered.brain),
        reference=reference,
        offsets={name: poses.get(name, np.eye(4)) for name in chosen},
        facts=facts,
    )


def _generator(seed: int, site: Site, index: int, part: str) -> np.random.Generator:
    """Each part of each patient has its own numbers, whatever else is made."""
    return np.random.default_rng([seed, zlib.crc32(site.name.encode()), index, zlib.crc32(part.encode())])


def _scan_of(name: str) -> str:
    """ADC is computed from the DWI scan: one pose, one coil, the same noise."""
    return "DWI" if name == "ADC" else name


def _patient(
    site: Site,
    anatomy: Anatomy,
    *,
    index: int,
    seed: int,
    grid: Grid,
    contrasts: tuple[str, ...],
    masks: tuple[Path, ...],
) -> Subject:
    """One of those that the site sees, with its protocol."""
    rng = _generator(seed, site, index, "subject")
    tesla = float(rng.choice(site.fields))
    protocol = site_protocol(site, rng, tesla=tesla)
    table = vary(tissues(tesla), rng, spread=0.04)

    rng = _generator(seed, site, index, "anatomy")
    ageing = float(rng.uniform(*site.ageing))
    shown = ageing if ageing > OLD and site.lesion != "plaques" else 0.0  # a plaque's label is to show plaques alone
    lesions = draw_lesions(rng, anatomy, kind=site.lesion, ageing=shown, masks=masks)
    extent = np.array(site.extent)
    largest = min(1.05, 0.99 * float((extent / anatomy.size_mm).min()))
    placement = draw_placement(
        rng,
        extent=extent,
        masses=tuple(lesions.masses),
        turn=4,
        scale=(min(0.94, 0.95 * largest), largest),
        shift=rng.uniform(-1, 1, 3) * np.minimum(0.25 * np.maximum(extent - 1.05 * anatomy.size_mm, 0), (4, 5, 3)),
    )
    atrophy = draw_atrophy(rng, ageing=ageing)
    return Subject(
        anatomy=anatomy,
        grid=grid,
        placement=placement,
        lesions=lesions,
        table=table,
        tesla=tesla,
        protocol=protocol,
        acquisitions={
            name: _acquisition(_generator(seed, site, index, f"scan {_scan_of(name)}"), site, grid, protocol[name])
            for name in contrasts
        },
        stripping=Stripping(0.0, torch.zeros(4, 4, 4)) if site.stripped else None,
        texture=draw_texture(_generator(seed, site, index, "texture"), grid),
        atrophy=atrophy,
        contrasts=contrasts,
        facts={"anatomy": anatomy.name, "lesion": site.lesion, "ageing": round(ageing, 3), "field_tesla": tesla},
    )


def _acquisition(rng: np.random.Generator, site: Site, grid: Grid, played: Played) -> Acquisition:
    """As sharp as the grid, but for diffusion."""
    widths = [max(size, DIFFUSION_BLUR) if played.b else size for size in grid.spacing]
    i, j, k = (Axis(width, width) for width in widths)
    return Acquisition(
        axes=(i, j, k),
        noise=site.noise,
        gain=torch.from_numpy(site.bias / GAIN_LEFT * rng.standard_normal((GRID,) * 3).astype(np.float32)),
        gamma=1.0,
        seed=int(rng.integers(2**62)),
    )


def _level(site: Site, name: str, drawn: Subject, rng: np.random.Generator) -> float:
    """What an image is multiplied by for white matter to have the site's stored value."""
    level = site.level.get(name, 400.0)
    if name == "ADC":  # which has a unit
        return level
    white = abs(float(signal(drawn.table["wm"], drawn.protocol[name]))) ** drawn.acquisitions[name].gamma
    return level * float(np.exp(rng.normal(0, 0.6 if drawn.facts.get("wide") else site.level_spread))) / white
