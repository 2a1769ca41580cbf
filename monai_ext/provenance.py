"""What a synthesised image says of itself: that it is synthetic, and which weights made it from what.

The words stand here once, for NIfTI headers, for the JSON beside each file and for whatever else carries an image.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ignite
import monai
import torch
from torch import nn

from monai_ext import __version__
from monai_ext.data.gridded import PERCENTILE
from monai_ext.data.presets import MASKS, PRESETS, REGISTRATIONS, Preset
from monai_ext.data.volumes import DESCRIP_BYTES
from monai_ext.files import absolute, sha256
from monai_ext.inference.resolution import OWN, Resolution
from monai_ext.modalities import canonical
from monai_ext.weights import about_weights, load_weights

WARNING = (
    "This image is SYNTHETIC: a neural network computed it from other images. It was not acquired, can show what is "
    "not there and miss what is, and is not to be used clinically."
)
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Maker:
    """Which bundle and weights synthesise which contrasts from which, and how its training data were prepared.

    `weights` is the sha256 of the file, or "untrained".
    """

    bundle: str
    version: str
    weights: str
    sources: tuple[str, ...]
    target: tuple[str, ...]
    preset: Preset
    resolution: Resolution = OWN

    def descrip(self, target: str) -> str:
        """For the 80 bytes of a NIfTI header: the one word first, then what has room."""
        weights = self.weights if self.weights == UNTRAINED else f"weights {self.weights[:12]}"
        text = f"SYNTHETIC {target} by {self.bundle} {self.version} from {','.join(self.sources)}, {weights}"
        return text.encode("ascii", "replace")[:DESCRIP_BYTES].decode()

    def sidecar(self, target: str) -> dict[str, Any]:
        """What the JSON beside an image says, whoever the subject is."""
        return {
            "synthetic": True,
            "warning": WARNING,
            "target": target,
            "bundle": self.bundle,
            "version": self.version,
            "weights_sha256": self.weights,
            "intensities": f"0 to 1 without a unit; 1 is the {PERCENTILE}th percentile of {target}'s foreground",
            "preset": asdict(self.preset),
            "resolution": asdict(self.resolution),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def load_maker(
    network: nn.Module,
    weights: Path | str | None,
    *,
    bundle_root: Path | str,
    sources: Sequence[str],
    target: str | Sequence[str],
    preset: str | Mapping[str, Any] | None = None,
    register: str | None = None,
    brain_mask: str | None = None,
    reference: str | None = None,
    scale: float = 1.0,
    spacing: float | None = None,
) -> Maker:
    """Put the weights into the network and say who it is now, so that no output can name other weights than its own.

    `weights` None or "untrained" leaves the network as it is, which the outputs say. `preset` is the one that the
    weights' training data were prepared with, unless a preset's name or its fields are given. Three options change it:
    `register` ("none", "rigid"), `brain_mask` ("none", "zero", "otsu" or the pattern of a file) for scans that come
    with or without their skull, and `reference`, the source whose grid the output is on. `scale` or `spacing` asks for
    another resolution of that grid (`monai_ext.inference.resolution`).
    """
    root = absolute(Path(bundle_root))
    wanted = tuple(canonical(contrast) for contrast in sources)
    targets = tuple(canonical(contrast) for contrast in ([target] if isinstance(target, str) else target))
    about: dict[str, Any] = {}
    digest = UNTRAINED
    if weights not in (None, UNTRAINED):
        assert weights is not None
        path = absolute(Path(weights))
        if not path.is_file():
            raise ValueError(f"{path}: there are no weights; train first, or say with weights where they are")
        about = about_weights(path)
        made_from, makes = tuple(about.get("sources", wanted)), tuple(about.get("target", targets))
        if (made_from, makes) != (wanted, targets):
            asked = f"{','.join(targets)} from {','.join(wanted)}"
            raise ValueError(f"{path} synthesises {','.join(makes)} from {','.join(made_from)}; asked for was {asked}")
        load_weights(network, path)
        digest = about.get("sha256") or sha256(path)
    return Maker(
        bundle=about.get("bundle") or root.name,
        version=about.get("version") or _version(root),
        weights=digest,
        sources=wanted,
        target=targets,
        preset=_changed(
            _preset(preset if preset is not None else about.get("preset")),
            sources=wanted,
            register=register,
            brain_mask=brain_mask,
            reference=reference,
        ),
        resolution=Resolution(scale, spacing),
    )


def _preset(given: str | Mapping[str, Any] | None) -> Preset:
    if isinstance(given, str):
        if given not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, or a preset's fields, got {given!r}")
        return PRESETS[given]
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (given or {}).items()
    }
    unknown = sorted(set(values) - {field.name for field in fields(Preset)})
    if unknown:
        raise ValueError(f"a preset has {', '.join(field.name for field in fields(Preset))}, got {unknown[0]!r}")
    return Preset(**values)


def _changed(
    preset: Preset, *, sources: Sequence[str], register: str | None, brain_mask: str | None, reference: str | None
) -> Preset:
    """The preset for a new patient, whose grid can come from a source only: the target is not there."""
    if register is not None:
        if register not in REGISTRATIONS:
            raise ValueError(f"register must be one of {', '.join(REGISTRATIONS)}, got {register!r}")
        preset = replace(preset, register=register)
    if brain_mask is not None:
        if brain_mask not in ("none", *MASKS) and "{" not in brain_mask:
            known = ", ".join(("none", *MASKS))
            raise ValueError(f"brain_mask must be one of {known}, or a file with {{name}} in it, got {brain_mask!r}")
        preset = replace(preset, brain_mask="" if brain_mask == "none" else brain_mask)
    if reference is not None and canonical(reference) not in sources:
        raise ValueError(f"reference must be one of the sources {', '.join(sources)}, got {reference!r}")
    wanted = preset.reference if reference is None else (canonical(reference),)
    return replace(preset, reference=tuple(dict.fromkeys([*(c for c in wanted if c in sources), *sources])))


def _version(bundle_root: Path) -> str:
    try:
        return str(json.loads((bundle_root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"bundle_root {bundle_root} holds no bundle: its configs/metadata.json has no version"
        ) from error


def software() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "monai_ext": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "monai": monai.__version__,
        "ignite": ignite.__version__,
    }
