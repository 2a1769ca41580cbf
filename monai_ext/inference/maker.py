"""Who synthesises: a bundle's weights put into its network, with all that an image is to say of them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import nn

from monai_ext.data.datalist import Subject
from monai_ext.data.gridded import PERCENTILE
from monai_ext.data.presets import DIFFERING, MASKS, PRESETS, REGISTRATIONS, Preset
from monai_ext.data.volumes import DESCRIP_BYTES
from monai_ext.files import absolute, sha256
from monai_ext.inference.resolution import OWN, Resolution
from monai_ext.modalities import Task, canonical, make_task
from monai_ext.networks import PMMSynth
from monai_ext.networks.adapters import personalized_network
from monai_ext.provenance import UNTRAINED, warning
from monai_ext.weights import about_weights, load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maker:
    """Which bundle and weights synthesise which contrasts from which, and how its training data were prepared.

    Attributes:
        bundle, version: of the bundle.
        weights: the sha256 of the file, or "untrained".
        sources, target: all that `task` may use and make, until `of` says which are a subject's.
        preset: how the training data were prepared.
        resolution: of the output's grid.
        task: what is asked of the network.
        site: for which a network that tells sites apart is personalised; None for none.
        adapters: the sha256 of the files that taught it more of them.
    """

    bundle: str
    version: str
    weights: str
    sources: tuple[str, ...]
    target: tuple[str, ...]
    preset: Preset
    resolution: Resolution = OWN
    task: Task | None = None
    site: str | None = None
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.task is None:
            object.__setattr__(self, "task", make_task(self.sources, self.target))

    @property
    def channels(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The contrasts of the network's input and of its output."""
        assert self.task is not None
        return self.task.inputs, self.task.outputs

    def of(self, subject: Subject) -> "Maker":
        """Give the maker of this subject: with the sources that it has, and the targets that are made of them.

        Args:
            subject: whose contrasts count.

        Returns:
            The same maker with this subject's sources and targets, which may be empty where `task` takes what there is.
        """
        assert self.task is not None
        sources, target = self.task.of(subject.images)
        if self.task.every_source:
            sources = self.sources
        preset = replace(self.preset, reference=tuple(c for c in self.preset.reference if c in sources))
        return replace(self, sources=sources, target=target, preset=preset)

    def descrip(self, target: str) -> str:
        """Say what an image of `target` is in the 80 bytes of a NIfTI header: the one word first, then what has
        room.

        Args:
            target: the contrast that the image shows.

        Returns:
            ASCII of at most DESCRIP_BYTES characters; what does not fit is cut off.
        """
        weights = self.weights if self.weights == UNTRAINED else f"weights {self.weights[:12]}"
        text = f"SYNTHETIC {target} by {self.bundle} {self.version} from {','.join(self.sources)}, {weights}"
        return text.encode("ascii", "replace")[:DESCRIP_BYTES].decode()

    def sidecar(self, target: str) -> dict[str, Any]:
        """Give what the JSON beside an image of `target` says, whoever the subject is.

        Args:
            target: the contrast that the image shows.

        Returns:
            Plain values, with the time in UTC.
        """
        fixed = self.task is None or self.task.every_source
        over = f"{target}'s foreground" if self.preset.percentile_of == "foreground" else f"{target}'s whole volume"
        return {
            "synthetic": True,
            "warning": warning(target),
            "target": target,
            "bundle": self.bundle,
            "version": self.version,
            "weights_sha256": self.weights,
            "intensities": f"0 to 1 without a unit; 1 is the {PERCENTILE}th percentile of {over}",
            "preset": asdict(self.preset),
            "resolution": asdict(self.resolution),
            **({} if fixed else {"site": self.site, "adapters_sha256": list(self.adapters)}),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def load_maker(
    network: nn.Module,
    weights: Path | str | None,
    *,
    task: Task,
    bundle_root: Path | str,
    preset: str | Mapping[str, Any] | None = None,
    register: str | None = None,
    brain_mask: str | None = None,
    reference: str | None = None,
    scale: float = 1.0,
    spacing: float | None = None,
    adapters: Path | str | Sequence[Path | str] | None = None,
    site: str | None = None,
) -> Maker:
    """Put the weights into the network and say who it is now, so that no output can name other weights than its own.

    Training data that lie on each other are prepared with `register` "none". That is not inherited: a patient's scan
    on another grid than the reference is registered rigidly, unless "none" is given here.

    Args:
        network: in which the weights belong.
        weights: their file; None or "untrained" leaves the network as it is, which the outputs say.
        task: what is asked of the network.
        bundle_root: the bundle's folder, whose name and version the outputs bear.
        preset: the one that the weights' training data were prepared with, unless a preset's name or fields are given.
        register: "none" or "rigid", in place of the preset's.
        brain_mask: "none", "zero", "otsu" or the pattern of a file, for scans that come with or without their skull.
        reference: the source whose grid the output is on.
        scale, spacing: another resolution of that grid (`monai_ext.inference.resolution`).
        adapters: files that teach the network further sites.
        site: which of those that the network tells apart; None is none of them.

    Returns:
        Who makes the images; the network now has the weights, and the sites that the adapters teach.

    Raises:
        ValueError: weights that are not there, are for another task or network, or an option that may not be.

    Example:
        >>> from monai_ext.catalogue import find_bundle
        >>> task = make_task(["T1", "T2"], "FLAIR")
        >>> network = nn.Conv2d(2, 1, 3, padding=1)  # in the place of the bundle's
        >>> maker = load_maker(network, None, task=task, bundle_root=find_bundle("agi_net"))
        >>> maker.bundle, maker.weights, maker.sources, maker.target
        ('agi_net', 'untrained', ('T1', 'T2'), ('FLAIR',))
    """
    root = absolute(Path(bundle_root))
    sources, targets = _asked_for(task)
    files = [adapters] if isinstance(adapters, str | Path) else list(adapters or ())
    about, digest = _load(network, weights, sources=sources, targets=targets, adapters=files)
    if site is not None:
        _check_site(network, site, bundle=root.name)
    return Maker(
        bundle=about.get("bundle") or root.name,
        version=about.get("version") or _version(root),
        weights=digest,
        sources=sources,
        target=targets,
        preset=_changed(
            _known_spacing(_preset(preset if preset is not None else about.get("preset")), about, network),
            sources=sources,
            register=register,
            brain_mask=brain_mask,
            reference=reference,
        ),
        resolution=Resolution(scale, spacing),
        task=task,
        site=site,
        adapters=tuple(sha256(absolute(Path(file))) for file in files),
    )


def _asked_for(task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The contrasts that the outputs may be made of and may show, before a subject says which it has."""
    if task.every_source:
        return task.sources or task.inputs, task.targets or task.outputs
    return task.inputs, task.outputs


def _load(
    network: nn.Module,
    weights: Path | str | None,
    *,
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    adapters: Sequence[Path | str],
) -> tuple[Mapping[str, Any], str]:
    """The weights into the network; what they say of themselves, and their sha256."""
    if weights is None or weights == UNTRAINED:
        return {}, UNTRAINED
    path = absolute(Path(weights))
    if not path.is_file():
        raise ValueError(f"{path}: there are no weights; train first, or say with weights where they are")
    about = about_weights(path)
    _check_task(path, about, sources, targets)
    if isinstance(network, PMMSynth):
        personalized_network(network, path, adapters=adapters)
    else:
        load_weights(network, path)
    return about, about.get("sha256") or sha256(path)


def _check_task(path: Path, about: Mapping[str, Any], sources: tuple[str, ...], targets: tuple[str, ...]) -> None:
    """Refuse weights that were trained for other contrasts. Weights that say nothing of it are taken."""
    trained_from, trained_for = tuple(about.get("sources", sources)), tuple(about.get("target", targets))
    if (trained_from, trained_for) != (sources, targets):
        trained = f"{','.join(trained_for)} from {','.join(trained_from)}"
        asked = f"{','.join(targets)} from {','.join(sources)}"
        raise ValueError(f"{path} synthesises {trained}; asked for was {asked}")


def _check_site(network: nn.Module, site: str, *, bundle: str) -> None:
    """Refuse a site that the network does not tell apart."""
    if not isinstance(network, PMMSynth):
        raise ValueError(f"{bundle} knows no sites apart, got site={site!r}: leave it out")
    network.site_index(site)


def _preset(chosen: str | Mapping[str, Any] | None) -> Preset:
    """By its name or its fields; None is one with no field set."""
    if isinstance(chosen, str):
        if chosen not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, or a preset's fields, got {chosen!r}")
        return PRESETS[chosen]
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (chosen or {}).items()
    }
    unknown = sorted(set(values) - {field.name for field in fields(Preset)})
    if unknown:
        raise ValueError(f"a preset has {', '.join(field.name for field in fields(Preset))}, got {unknown[0]!r}")
    return Preset(**values)


def _known_spacing(preset: Preset, about: Mapping[str, Any], network: nn.Module) -> Preset:
    """The preset with the voxel size that the weights know: whichever preset is chosen, they know no other.

    A 2D network sees one slice after another: to it their distance is nothing.
    """
    trained = preset.trained_spacing or _preset(about.get("preset")).trained_spacing
    if trained is None:
        if about:
            logger.warning("the weights do not say at which voxel size they were trained: each patient's own is used")
        return preset
    volumetric = any(isinstance(module, nn.Conv3d) for module in network.modules())
    return replace(preset, trained_spacing=(trained[0], trained[1], trained[2] if volumetric else None))


def _changed(
    preset: Preset, *, sources: Sequence[str], register: str | None, brain_mask: str | None, reference: str | None
) -> Preset:
    """The preset for a new patient, whose grid can come from a source only: the target is not there."""
    if register is not None:
        if register not in REGISTRATIONS:
            raise ValueError(f"register must be one of {', '.join(REGISTRATIONS)}, got {register!r}")
        preset = replace(preset, register=register)
    elif preset.register == "none":
        preset = replace(preset, register=DIFFERING)
    if brain_mask is not None:
        if brain_mask not in ("none", *MASKS) and "{" not in brain_mask:
            allowed = ", ".join(("none", *MASKS))
            raise ValueError(f"brain_mask must be one of {allowed}, or a file with {{name}} in it, got {brain_mask!r}")
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
