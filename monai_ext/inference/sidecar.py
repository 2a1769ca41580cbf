"""The JSON beside a synthetic image: where it lies, what it says, and whether it would say the same now."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.data.datalist import Subject
from monai_ext.data.gridded import Grid
from monai_ext.data.resampling import to_ras
from monai_ext.data.volumes import Volume
from monai_ext.files import read_json, sha256, write_json
from monai_ext.inference.maker import Maker
from monai_ext.inference.subjects import SYNTHETIC
from monai_ext.provenance import software


@dataclass(frozen=True)
class PreparedSubject:
    """What is kept of a subject beside its image: whose it is, the grid and the way back, a record a source.

    Attributes:
        subject: whose it is.
        grid: the reference's and the network's.
        images: contrast -> what the sidecar says of the source.
        coverage: the share of the reference's head, or of the brain where that is cut out, that the network is given.
        maker: this subject's own.
    """

    subject: Subject
    grid: Grid
    images: Mapping[str, Mapping[str, Any]]
    coverage: float
    maker: Maker


def synthetic_file(output_dir: Path, subject: str, target: str) -> Path:
    """Say where the synthesis of a contrast for a subject lies; nothing is looked at.

    Args:
        output_dir: of the inference.
        subject: the subject's name.
        target: the contrast.

    Returns:
        The NIfTI's path, <output_dir>/<subject>/<target>, with what marks it as synthetic, and .nii.gz.
    """
    return output_dir / subject / f"{target}{SYNTHETIC}.nii.gz"


def sidecar(image: Path) -> Path:
    """Say where the JSON beside a NIfTI of ours is.

    Args:
        image: the NIfTI.

    Returns:
        Its path, whether it is there or not.
    """
    return beside(image, ".json")


def beside(image: Path, suffix: str) -> Path:
    """Give a file's path that is a NIfTI's but for the ending.

    Args:
        image: the NIfTI.
        suffix: such as ".png".

    Returns:
        Its path, whether it is there or not.
    """
    return image.with_name(image.name.removesuffix(".nii.gz") + suffix)


def write_sidecar(
    path: Path, prepared: PreparedSubject, target: str, *, engine: Mapping[str, str] | None = None
) -> None:
    """Write what an image is: made by whom, of which files, on which grid.

    Args:
        path: where the JSON goes.
        prepared: the subject.
        target: the contrast that the image shows.
        engine: what ran the network.
    """
    sources = {
        contrast: {"file": file.name, "sha256": sha256(file), **prepared.images[contrast]}
        for contrast, file in prepared.subject.images.items()
    }
    record = {
        **prepared.maker.sidecar(target),
        "subject": prepared.subject.name,
        "sources": sources,
        "reference": prepared.grid.contrast,
        "grid": {
            "shape": list(prepared.grid.shape),
            "spacing": [round(float(step), 4) for step in np.linalg.norm(prepared.grid.affine[:3, :3], axis=0)],
            "voxel_size": _voxel_size(prepared),
        },
        "coverage": round(prepared.coverage, 4),
        "engine": engine,
        "software": software(),
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def add_to_sidecar(image: Path, **facts: object) -> None:
    """Say more of an image that is written.

    Args:
        image: the NIfTI.
        facts: plain values, by key.

    Raises:
        OSError: there is no JSON beside it.
    """
    write_json(sidecar(image), {**read_json(sidecar(image)), **facts})


def says_the_same_now(image: Path, subject: Subject, maker: Maker) -> bool:
    """Tell whether an image that is there is what would be made now: of the same files, by the same weights.

    Args:
        image: the NIfTI.
        subject: whose files would be used.
        maker: this subject's own.

    Returns:
        False also where its JSON is missing or damaged.
    """
    try:
        record = json.loads(sidecar(image).read_text(encoding="utf-8"))
        digests = {contrast: source["sha256"] for contrast, source in record["sources"].items()}
        now = json.loads(json.dumps(maker.sidecar(record["target"])))
        same = all(record[key] == now[key] for key in now if key not in ("created", "warning"))
        return same and digests == {c: sha256(subject.images[c]) for c in maker.sources}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _voxel_size(prepared: PreparedSubject) -> str:
    """Whether the network was given voxels of the size that its weights know."""
    if prepared.maker.preset.trained_spacing is None:
        return "the weights do not say which they were trained at: the patient's own was used"
    grid = prepared.grid
    own = to_ras(Volume(np.broadcast_to(np.float32(0), grid.stored_shape), grid.stored_affine)).spacing
    same = np.allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), own, rtol=1e-3)
    return "the patient's own, near that of training" if same else "resampled to that of training, and back"
