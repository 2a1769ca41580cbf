"""The anatomy that needs no files: nilearn's MNI152 maps, with a head built around them."""

from functools import lru_cache

import numpy as np
import torch

from monai_ext.data.anatomy import grid_points, template
from monai_ext.data.phantoms.anatomy import CLASSES, STEP, Anatomy, assembled, halved


@lru_cache(maxsize=2)
def template_anatomy(step: float = STEP) -> Anatomy:
    """The template at `step` 1 or 2 mm: an average of 152 people, so its folds are no one's."""
    if step == 2 * STEP:
        return halved(template_anatomy(STEP))
    maps = template(STEP)
    origin = maps.head.origin
    shape = tuple(int((n - 1) * maps.head.spacing / STEP) + 1 for n in maps.head.values.shape[1:])
    points = grid_points(shape, origin, STEP)
    csf, gm, wm, deep = maps.brain.at(points)
    brain = csf + gm + wm + deep
    room = np.clip(1 - brain, 0, 1)
    around, fat, muscle, marrow, blood = maps.head.at(points)
    ventricle = csf * np.clip(2 * maps.guide.at(points)[1], 0, 1)
    shares = {
        "ventricle": ventricle, "csf": csf - ventricle + around * room, "gm": gm, "wm": wm, "deep": deep,
        "blood": blood * room, "fat": fat * room, "muscle": muscle * room, "marrow": marrow * room,
    }  # fmt: skip
    stored = np.stack([np.rint(255 * np.clip(shares[name], 0, 1)).astype(np.uint8) for name in CLASSES])
    return assembled("MNI152", torch.from_numpy(stored), brain > 0.5)
