"""A collection of bundles in a folder of its own, with the smallest weights: what tests install."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from running import BUNDLES, smallest_weights

AFFINE = np.array([[5.0, 0, 0, -60], [0, 5.0, 0, -70], [0, 0, 6.0, -30], [0, 0, 0, 1]])


def collection(folder: Path, *names: str, **tasks: list[str]) -> Path:
    """The bundles, all of them, of which the named have weights: "agi_net" by its config's own task."""
    for bundle in BUNDLES:
        shutil.copytree(bundle / "configs", folder / bundle.name / "configs")
        if bundle.name in names:
            smallest_weights(folder / bundle.name, folder / bundle.name / "models", **tasks)
    return folder


def say_more(weights: Path, **facts: object) -> None:
    """Put more into the JSON beside weights."""
    path = weights.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def scan(path: Path, *, seed: int = 0, affine: np.ndarray = AFFINE) -> Path:
    """An ellipsoid of noise, 24 x 28 x 10 voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 28, 10)), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    shades = np.random.default_rng(seed).uniform(300, 900, inside.shape)
    nib.save(nib.Nifti1Image(np.where(inside, shades, 0).astype(np.float32), affine), path)
    return path
