"""What is to be known of weights that are trained: by what, from which data. It is stored in the JSON beside them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.data.datalist import read_datalist
from monai_ext.data.presets import Preset
from monai_ext.data.selection import Datalists, named_datalists
from monai_ext.files import absolute, read_json, sha256
from monai_ext.modalities import canonical
from monai_ext.provenance import software

logger = logging.getLogger(__name__)


def describe(
    *,
    sources: Sequence[str],
    target: Sequence[str],
    datalist: Datalists,
    sites: Sequence[str] = (),
    coarser: float = 1.0,
    canvas: int | None = None,
    bundle_root: Path | str | None = None,
    network_def: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe weights for the JSON beside them: what made them, and from which data.

    Args:
        sources, target: contrasts, by any of their names.
        datalist: one or several, as `select_subjects` takes them.
        sites: those that the network tells apart, in the order of their numbers.
        coarser: how many times as coarse in the plane as the datalist's images the network's sources are.
        canvas: rows and columns of the planes that the network learns from, whole; None where they are cut to heads.
        bundle_root: the bundle's folder, whose name and version are told.
        network_def: the network's "target" and "arguments"; null in a config, where the workflow puts them in.

    Returns:
        Plain values by key.

    Raises:
        ValueError: `bundle_root` is no bundle, or a datalist is not there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "T1.nii").write_bytes(b"an image")
        >>> _ = (folder / "datalist.json").write_text(
        ...     '{"name": "ixi", "test": [{"subject": "IXI012", "T1": "T1.nii"}]}'
        ... )
        >>> about = describe(sources=["t1w"], target=["flair"], datalist=folder / "datalist.json")
        >>> about["sources"], about["target"], about["preset"], len(about["datalist_sha256"])
        (['T1'], ['FLAIR'], None, 64)
    """
    made_with: dict[str, Any] = {}
    if bundle_root is not None:
        root = absolute(Path(bundle_root))
        metadata = root / "configs" / "metadata.json"
        if not metadata.is_file():
            raise ValueError(
                f"{root} is no bundle, it has no configs/metadata.json: name its folder with --bundle_root"
            )
        made_with |= {"bundle": root.name, "version": read_json(metadata)["version"]}
    if network_def is not None:
        made_with["network_def"] = {"_target_": network_def["target"], **network_def["arguments"]}
    paths = [path for _, path in named_datalists(datalist)]
    presets = [prepared_as(path) for path in paths]
    if any(preset != presets[0] for preset in presets):
        logger.warning("the datalists were not all prepared alike; inference prepares as the first, %s", paths[0])
    if presets[0] is not None:
        step = presets[0]["trained_spacing"]
        presets[0]["trained_spacing"] = [round(coarser * step[0], 4), round(coarser * step[1], 4), step[2]]
    digests = [sha256(path) for path in paths]
    return {
        **made_with,
        "sources": [canonical(name) for name in sources],
        "target": [canonical(name) for name in target],
        **({"sites": list(sites)} if sites else {}),
        **({"canvas": round(canvas / coarser)} if canvas is not None else {}),
        "preset": presets[0],
        "datalist_sha256": digests if len(digests) > 1 else digests[0],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "software": software(),
    }


def prepared_as(datalist: Path | str) -> dict[str, Any] | None:
    """Find the preset that a datalist's images were prepared with: inference has to do the same.

    Args:
        datalist: its path.

    Returns:
        The preset's fields, `trained_spacing` the median voxel size of their grids; None if they were not prepared.
    """
    sidecars = [
        next(iter(subject.images.values())).with_name("prepared.json") for subject in read_datalist(datalist).subjects
    ]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sidecars if path.is_file()]
    if not records:
        return None
    parameters = records[0]["parameters"]
    spacings = np.array([np.linalg.norm(np.array(r["grid"]["affine"])[:3, :3], axis=0) for r in records])
    preset = {field.name: parameters[field.name] for field in fields(Preset) if field.name in parameters}
    return {**preset, "trained_spacing": [round(float(step), 4) for step in np.median(spacings, axis=0)]}
