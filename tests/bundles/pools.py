"""A pool of a few small phantoms, as tests use it: every contrast is another mix of the same two shapes."""

import json
from pathlib import Path

import numpy as np

from monai_ext.data.volumes import Volume, write_volume

CONTRASTS = ("T1", "T2", "PD", "T1C", "FLAIR", "DWI", "ADC")
SHAPE = (40, 32, 6)


def write_pool(root: Path, *, training: int = 3, validation: int = 2, shape: tuple[int, int, int] = SHAPE) -> Path:
    """The datalist of subjects with images, targets, a brain and a lesion in slice 3 alone."""
    entries = [
        _write_subject(root, f"s{number:03d}", seed=number, shape=shape) for number in range(training + validation)
    ]
    splits = {"training": entries[:training], "validation": entries[training:], "test": []}
    path = root / "datalist.json"
    path.write_text(json.dumps({"name": "phantoms", "root": ".", **splits}))
    return path


def _write_subject(root: Path, name: str, *, seed: int, shape: tuple[int, int, int]) -> dict:
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    brain = i**2 + j**2 < 0.5 * (1 - 0.3 * k**2)
    core = i**2 + (j - rng.uniform(-0.2, 0.2)) ** 2 < 0.1
    lesion = (np.abs(i - 0.4) < 0.12) & (np.abs(j) < 0.12) & (np.arange(shape[2]) == 3)
    folder = root / name
    folder.mkdir(parents=True)
    for number, contrast in enumerate(CONTRASTS):
        target = np.where(brain, 0.2 + 0.04 * number, 0) + 0.2 * core - 0.2 * (number % 2) * core + 0.3 * lesion
        noisy = np.where(brain, target + rng.normal(0, 0.02, shape), 0).clip(0, 1)
        for suffix, image in (("", noisy), ("_target", target)):
            volume = Volume(image.astype(np.float32), np.eye(4))
            write_volume(folder / f"{contrast}{suffix}.nii", volume, dtype=np.uint16, slope=1 / 65535)
    for what, mask in (("brain", brain), ("lesion", lesion & brain)):
        write_volume(folder / f"{what}.nii", Volume(mask, np.eye(4)), dtype=np.uint8)
    return {
        "subject": name,
        **{contrast: f"{name}/{contrast}.nii" for contrast in CONTRASTS},
        "targets": {contrast: f"{name}/{contrast}_target.nii" for contrast in CONTRASTS},
        "masks": {what: f"{name}/{what}.nii" for what in ("brain", "lesion")},
    }
