"""What a synthesised image says of itself: that it is synthetic, and which weights made it from what.

The words stand here once, for NIfTI headers, for the JSON beside each file and for whatever else carries an image.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import nn

from monai_ext.checkpoints import load_weights, sha256
from monai_ext.data.datalist import absolute
from monai_ext.data.gridded import PERCENTILE
from monai_ext.data.presets import PRESETS, REGISTRATIONS, Preset
from monai_ext.modalities import canonical

WARNING = (
    "This image is SYNTHETIC: a neural network computed it from other images. It was not acquired, can show what is "
    "not there and miss what is, and is not to be used clinically."
)
UNTRAINED = "untrained"
DESCRIP_BYTES = 79  # NIfTI's field has 80, of which some readers want the last to be zero


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
    reference: str | None = None,
) -> Maker:
    """Put the weights into the network and say who it is now, so that no output can name other weights than its own.

    `weights` None or "untrained" leaves the network as it is, which the outputs say. `preset` is the one that the weights'
    training data were prepared with, unless a preset's name or its fields are given; `register` ("none", "rigid") and
    `reference`, the contrast whose grid the output is on, change it.
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
        about = load_weights(network, path)
        digest = about.get("sha256") or sha256(path)
        for key, asked in (("sources", wanted), ("target", targets)):
            if key in about and tuple(about[key]) != asked:
                made = f"{','.join(about['target'])} from {','.join(about['sources'])}"
                raise ValueError(f"{path} synthesises {made}; asked for was {key} {','.join(asked)}")
    return Maker(
        bundle=about.get("bundle") or root.name,
        version=about.get("version") or _version(root),
        weights=digest,
        sources=wanted,
        target=targets,
        preset=_preset(preset if preset is not None else about.get("preset"), wanted, register, reference),
    )


def _preset(
    given: str | Mapping[str, Any] | None, sources: Sequence[str], register: str | None, reference: str | None
) -> Preset:
    if isinstance(given, str):
        if given not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, or a preset's fields, got {given!r}")
        preset = PRESETS[given]
    else:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in (given or {}).items()
        }
        unknown = sorted(set(fields) - set(asdict(Preset())))
        if unknown:
            raise ValueError(f"a preset has {', '.join(asdict(Preset()))}, got {unknown[0]!r}")
        preset = Preset(**fields)
    changed: dict[str, Any] = asdict(preset)
    if register is not None:
        if register not in REGISTRATIONS:
            raise ValueError(f"register must be one of {', '.join(REGISTRATIONS)}, got {register!r}")
        changed["register"] = register
    if reference is not None:
        if canonical(reference) not in sources:
            raise ValueError(f"reference must be one of the sources {', '.join(sources)}, got {reference!r}")
        changed["reference"] = (canonical(reference),)
    # The grid of training may have come from the target, which a new patient has not: then the first source's serves.
    changed["reference"] = tuple(dict.fromkeys([*(c for c in changed["reference"] if c in sources), *sources]))
    return Preset(**changed)


def _version(bundle_root: Path) -> str:
    try:
        return str(json.loads((bundle_root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"bundle_root {bundle_root} holds no bundle: its configs/metadata.json has no version"
        ) from error
