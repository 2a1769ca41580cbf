"""What an evaluation's record says of how it was made."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_ext import __version__
from monai_ext.data.selection import Datalists, named_datalists
from monai_ext.files import absolute, sha256
from monai_ext.provenance import software
from monai_ext.runtime import device_name, wanted_dtype
from monai_ext.weights import about_weights


def describe_run(
    *,
    name: str,
    split: str,
    datalist: Datalists,
    weights: Path | str,
    network: nn.Module,
    amp: bool | str,
    device: torch.device,
    site: str | None = None,
) -> dict[str, Any]:
    """Describe what runs and on what, for an evaluation's record.

    Args:
        name: of the run.
        split: of the datalists.
        datalist: one or several.
        weights: their file.
        network: as it runs.
        amp: its precision.
        device: where it runs.
        site: whose look every subject was given, "none" for nobody's; None where each has that of its own dataset, or
            the network tells no sites apart.

    Returns:
        What `Evaluation` takes as `about`.
    """
    about = about_weights(weights)
    file = absolute(Path(weights))
    return {
        "bundle": about.get("bundle", ""),
        "name": name,
        "version": about.get("version", __version__),
        "split": split,
        "datalist_sha256": _of_all([path for _, path in named_datalists(datalist)]),
        "weights": {"file": file.name, "sha256": sha256(file)},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "amp": str(wanted_dtype(device, amp) or torch.float32).removeprefix("torch."),
        "device": device_name(device),
        "site": site,
        "software": software(),
    }


def _of_all(datalists: Sequence[Path]) -> str:
    """One datalist's sha256; of several, that of theirs in their order."""
    digests = [sha256(path) for path in datalists]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
