"""A site's phantom made of a label map: the site's contrasts, disease, grid and grey scale, this folder's physics."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from monai_ext.data.phantoms.acquisition import Grid
from monai_ext.data.phantoms.anatomy import STEP, read_anatomy
from monai_ext.data.phantoms.rendering import draw_subject, render
from monai_ext.data.phantoms.sequences import signal
from monai_ext.data.rendering import REFERENCES, Phantom, generator
from monai_ext.data.sites import Site, available
from monai_ext.data.volumes import Volume


def phantom_of_labels(
    site: Site,
    *,
    anatomies: Sequence[Path],
    masks: Sequence[Path] = (),
    index: int,
    seed: int = 0,
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
    contrasts: Sequence[str] | None = None,
    randomize: bool = False,
) -> Phantom:
    """Subject number `index` of a site, all of whose contrasts lie on each other.

    Args:
        anatomies: label maps, one of which is drawn.
        masks: masks of real infarcts.
        randomize: any disease, and protocols beyond what hospitals play.
    """
    rng = generator(seed, site, index, "label map")
    chosen = tuple(contrasts or available(site, generator(seed, site, index, "contrasts")))
    step = 2 * STEP if min(spacing) >= 1.75 else STEP
    anatomy = read_anatomy(Path(anatomies[int(rng.integers(len(anatomies)))]), step)
    i, j, k = (max(round(length / size), 1) for length, size in zip(site.extent, spacing, strict=True))
    grid = Grid((i, j, k), spacing)
    drawn = draw_subject(
        rng,
        anatomy,
        grid=grid,
        contrasts=chosen,
        masks=tuple(masks),
        kind=None if randomize else site.lesion,
        skull=not site.stripped,
        wide=randomize,
        registered=True,
    )
    rendered = render(drawn)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [grid.positions(axis)[0] for axis in range(3)]

    def volume(image: torch.Tensor) -> Volume:
        return Volume(np.ascontiguousarray(image.numpy(), dtype=np.float32), affine)

    images = {}
    for name in chosen:
        level = site.level.get(name, 400.0)
        if name != "ADC":  # which has a unit
            white = abs(float(signal(drawn.table["wm"], drawn.protocol[name]))) ** drawn.acquisitions[name].gamma
            level *= float(np.exp(rng.normal(0, site.level_spread))) / white
        images[name] = volume(rendered.images[name] * level)
    facts = {"site": site.name, "seed": seed, "index": index, "randomized": randomize, "skull_stripped": site.stripped}
    return Phantom(
        images=images,
        label=None if drawn.facts["lesion"] == "none" else volume(rendered.label.float()),
        brain=volume(rendered.brain.float()),
        reference=next(name for name in REFERENCES if name in chosen),
        offsets={name: np.eye(4) for name in chosen},
        facts={**facts, **drawn.facts},
    )
