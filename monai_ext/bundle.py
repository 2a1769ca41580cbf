"""What every bundle's configs call: ids checked, subjects chosen, weights described."""

import difflib
import inspect
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ComponentLocator
from monai.transforms import ResizeWithPadOrCropd
from monai.utils.module import locate
from torch import nn

from monai_ext import __version__
from monai_ext.data.datalist import Subject, read_datalist
from monai_ext.data.patches import PatchDataset
from monai_ext.data.presets import Preset
from monai_ext.data.slices import SliceDataset
from monai_ext.files import absolute, sha256
from monai_ext.modalities import canonical
from monai_ext.provenance import software
from monai_ext.runtime import device_name, keep_freed_memory, wanted_dtype
from monai_ext.training.engine import LossNotFinite
from monai_ext.weights import about_weights, load_weights

logger = logging.getLogger(__name__)

# MONAI puts these into a config itself, where runs are tracked.
TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0", "_meta_")
WORDS = {"true": True, "false": False, "null": None}
COMPONENT = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_", "_imports_")


def check_config() -> None:
    """Refuse an id that no config of the bundle has: MONAI takes a misspelt one in silence and ignores it.

    And take true, false and null on the command line as JSON has them, where MONAI would take the words. Every run
    begins here, so memory is seen to here too.
    """
    keep_freed_memory()
    sys.excepthook = _say
    workflow = _workflow()
    if workflow is not None:
        own = [ConfigParser.load_config_file(path) for path in sorted(workflow.config_root_path.glob("*.json"))]
        refuse_unknown_ids(workflow.parser.get(), own)
        said = {path: WORDS[value] for path, value in _texts(workflow.parser.get()) if value in WORDS}
        if said:
            workflow.parser.update(said)
            workflow.parser.parse(reset=True)


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What we refuse is one line at the end of a run; a traceback is for faults in code."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    frames = traceback.extract_tb(root.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
    if isinstance(root, OSError) or (ours and isinstance(root, ValueError | LossNotFinite)):
        print(f"error: {root}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def about(*, sources: Sequence[str], target: Sequence[str], datalist: Path | str) -> dict[str, Any]:
    """What is to be known of weights, for the JSON beside them: what made them, and from which data."""
    workflow = _workflow()
    made: dict[str, Any] = {}
    if workflow is not None:
        parser = workflow.parser
        made = {
            "bundle": workflow.config_root_path.parent.name,
            "version": parser.get("_meta_", {}).get("version"),
            "network_def": {key: parser.get_parsed_content(f"network_def::{key}") for key in parser["network_def"]},
        }
    return {
        **made,
        "sources": [canonical(name) for name in sources],
        "target": [canonical(name) for name in target],
        "preset": prepared_as(datalist),
        "datalist_sha256": sha256(absolute(Path(datalist))),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "software": software(),
    }


def with_weights(
    network: nn.Module, weights: Path | str, *, sources: Sequence[str], target: Sequence[str]
) -> nn.Module:
    """The network, ready to predict; weights that were trained for another task are refused."""
    if not Path(weights).is_file():
        raise ValueError(f"there are no weights at {weights}: train the bundle, or name a file with --weights")
    made = load_weights(network, weights)
    for what, wanted in (("sources", sources), ("target", target)):
        names = [canonical(name) for name in wanted]
        if what in made and made[what] != names:
            raise ValueError(f"{weights} was trained with {what} {made[what]}, not {names}: name those with --{what}")
    return network.eval()


def fitted(config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what these weights were trained with where its own values are others: contrasts and widths."""
    config = dict(config)
    for name in ("sources", "target"):
        if name in about and config.get(name) is not None:  # null is any, whatever the weights
            single = isinstance(config[name], str) and len(about[name]) == 1
            config[name] = about[name][0] if single else about[name]
    if "preset" in config and config["preset"] is None and about.get("preset"):
        config["preset"] = about["preset"]  # for the archive that is made of this config has no JSON beside it
    definition = dict(config["network_def"])
    for key, value in about.get("network_def", {}).items():
        own = definition.get(key)
        reference = own[1:] if isinstance(own, str) and own.startswith("@") else None
        if reference in config:
            if not isinstance(config[reference], str) or not config[reference].startswith("$"):
                config[reference] = value
        elif not (isinstance(own, str) and own.startswith("$")):  # an expression of the contrasts, which were set
            definition[key] = value
    if about.get("datasets"):
        definition["datasets"] = about["datasets"]
    return {**config, "network_def": definition}


def about_run(
    *,
    name: str,
    split: str,
    datalist: Path | str,
    weights: Path | str,
    network: nn.Module,
    amp: bool | str,
    device: torch.device,
) -> dict[str, Any]:
    """What an evaluation's record says of how it was made."""
    made = about_weights(weights)
    file = absolute(Path(weights))
    return {
        "bundle": made.get("bundle", ""),
        "name": name,
        "version": made.get("version", __version__),
        "split": split,
        "datalist_sha256": sha256(absolute(Path(datalist))),
        "weights": {"file": file.name, "sha256": sha256(file)},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "amp": str(wanted_dtype(device, amp) or torch.float32).removeprefix("torch."),
        "device": device_name(device),
        "software": software(),
    }


def rank() -> int:
    """This process's number among those that train together, 0 if it trains alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _workflow() -> ConfigWorkflow | None:
    """The workflow that evaluates the expression we are called from. It is not told, so the stack is asked."""
    frame = inspect.currentframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return workflow
        frame = frame.f_back
    return None


def refuse_unknown_ids(config: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> None:
    """Every id of `config` is one of `known`'s, or an argument of the component it belongs to."""
    for path, allowed in _unknown(config, known, path=""):
        near = difflib.get_close_matches(path.rpartition("::")[2], allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(allowed))}"
        raise ValueError(f"no config of this bundle has the id {path.replace('::', '#')!r}; {hint}")


def _unknown(config: Any, known: Sequence[Any], *, path: str) -> Iterator[tuple[str, list[str]]]:
    """Paths that are not known, each with what could have stood there."""
    if not isinstance(config, Mapping):
        return
    there = [other for other in known if isinstance(other, Mapping)]
    allowed = {key for other in there for key in other}
    target = config.get("_target_")
    if target is not None:
        arguments = _arguments(target)
        if arguments is None:  # takes any
            return
        allowed |= {*arguments, *COMPONENT}
    elif path == "":
        allowed |= set(TRACKING)
    elif not there:
        return  # a plain dictionary that is a value: whoever it is given to judges it
    for key, value in config.items():
        where = f"{path}::{key}" if path else key
        if key not in allowed:
            yield where, sorted(allowed)
        elif key != "_meta_":
            yield from _unknown(value, [other[key] for other in there if key in other], path=where)


def _texts(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a config, with its id."""
    pairs = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        where = f"{path}::{key}" if path else str(key)
        if isinstance(value, str):
            yield where, value
        elif key != "_meta_":
            yield from _texts(value, where)


def _arguments(target: Any) -> set[str] | None:
    """The names that a component's `_target_` takes, None if it takes any or cannot be asked."""
    if not isinstance(target, str) or target.startswith(("$", "@", "%")):
        return None
    found: Any = locate(target)
    if found is None:
        modules = ComponentLocator().get_component_module_name(target)
        found = locate(f"{modules[0] if isinstance(modules, list) else modules}.{target}") if modules else None
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def cases(datalist: Path | str, split: str, contrasts: Sequence[str]) -> list[Subject]:
    """The split's subjects that have all of the contrasts; those that lack one are named in the log."""
    wanted = [canonical(contrast) for contrast in contrasts]
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"each contrast is a source or the target, once, got {', '.join(wanted)}")
    subjects = read_datalist(datalist).splits[split]
    whole = [subject for subject in subjects if all(contrast in subject.images for contrast in wanted)]
    if not whole:
        raise ValueError(f"{datalist}: no subject of its {split} split has {', '.join(wanted)}")
    if len(whole) < len(subjects):
        lacking = [subject.name for subject in subjects if subject not in whole]
        names = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        many = f"{len(lacking)} of {len(subjects)} {split} subjects"
        logger.warning("%s lack a contrast and are left out: %s", many, names)
    return whole


def samples(
    *,
    data: Sequence[Subject],
    sources: Sequence[str],
    target: Sequence[str],
    slices: str | Sequence[Any],
    image_size: int,
    patch_size: Sequence[int] | None = None,
    neighbours: int = 0,
) -> SliceDataset:
    """What a network is trained on: slices cut or padded to `image_size`, or for one in 3D patches of `patch_size`.

    `neighbours` are of `SliceDataset`: slices on either side of a source's.
    """
    if patch_size is not None:
        return PatchDataset(data, sources=sources, target=target, slices=slices, patch_size=patch_size)
    crop: Any = ResizeWithPadOrCropd(keys=["sources", "target"], spatial_size=(image_size, image_size))
    options: dict[str, Any] = {"slices": slices, "neighbours": neighbours, "transform": crop}
    return SliceDataset(data, sources=sources, target=target, **options)


def prepared_as(datalist: Path | str) -> dict[str, Any] | None:
    """The preset that the datalist's images were prepared with: inference has to do the same. None if they were not."""
    for subject in read_datalist(datalist).subjects:
        sidecar = next(iter(subject.images.values())).with_name("prepared.json")
        if sidecar.is_file():
            parameters = json.loads(sidecar.read_text(encoding="utf-8"))["parameters"]
            return {field.name: parameters[field.name] for field in fields(Preset)}
    return None
