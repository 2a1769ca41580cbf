"""Weights with what they were made by, and checkpoints from which a killed training goes on to the same weights.

`model.pt` is a flat state dict, as MONAI's verbs take it; `model.json` beside it says what made it. `model.ts`, which
`ckpt_export` writes, is read too: it holds the bundle's configs, which say it.
"""

import hashlib
import json
import logging
import os
import pickle
import random
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from torch import nn

from monai_ext.data.datalist import absolute, write_json
from monai_ext.data.volumes import whole_file

logger = logging.getLogger(__name__)
ARCHIVE = ".ts"
KEPT = 2  # checkpoints: should the newest be damaged, there is the one before


def save_weights(path: Path | str, network: nn.Module, about: Mapping[str, Any]) -> None:
    """`path` and the JSON beside it, each whole or not at all; `about` is what the JSON says of them."""
    path = absolute(Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    _write(path, weights)
    write_json(path.with_suffix(".json"), {**about, "sha256": sha256(path)})


def load_weights(network: nn.Module, path: Path | str) -> dict[str, Any]:
    """Put all of the weights at `path` into the network, or none; what their JSON says, {} where there is none."""
    path = absolute(Path(path))
    about = about_weights(path)
    own = network.state_dict()
    constants = {name for name, _ in network.named_buffers()} - set(own)  # an archive has them too
    weights = {name: value for name, value in read(path).items() if name not in constants}
    faults = [f"lacks {name}" for name in own if name not in weights]
    faults += [f"has {name}, which the network has not" for name in weights if name not in own]
    faults += [
        f"{name} is {tuple(value.shape)}, the network's is {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and getattr(value, "shape", None) != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        made = about.get("network_def", "unknown: no JSON beside it says so")
        raise ValueError(f"{path} does not fit the network: {'; '.join(faults[:3])}{more}; it was made with {made}")
    network.load_state_dict(weights)
    return about


def about_weights(path: Path | str) -> dict[str, Any]:
    """What the JSON beside the weights says, unless it speaks of others; of an archive, what is in it."""
    path = absolute(Path(path))
    if path.suffix == ARCHIVE:
        return _about_archive(path)
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s): it is not used", path.with_suffix(".json"), error)
        return {}
    if not isinstance(about, dict) or about.get("sha256") != sha256(path):
        logger.warning("%s speaks of other weights than %s: it is not used", path.with_suffix(".json"), path.name)
        return {}
    return about


def archived(path: Path, name: str) -> dict[str, Any]:
    """One of the JSON files that an archive holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = [one for one in archive.namelist() if one.endswith(f"/extra/{name}")]
            content = json.loads(archive.read(member))
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path} is no archive of a bundle with its {name}: write it with ckpt_export") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {name} that is no dictionary")
    return content


def _about_archive(path: Path) -> dict[str, Any]:
    config, metadata = archived(path, "inference.json"), archived(path, "metadata.json")
    about = {"bundle": metadata.get("name"), "version": metadata.get("version"), "preset": config.get("preset")}
    for name in ("sources", "target"):
        value = config.get(name)
        about[name] = [value] if isinstance(value, str) else value
    about["datasets"] = config.get("network_def", {}).get("datasets")
    return {key: value for key, value in about.items() if value is not None} | {"sha256": sha256(path)}


def read(path: Path) -> dict[str, Any]:
    """A file of tensors and plain values; one that is damaged or would run code is refused by name."""
    if path.suffix == ARCHIVE:
        try:
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        except RuntimeError as error:
            raise ValueError(f"{path} is no TorchScript archive, or is damaged") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(f"{path} is refused: it would run {code[1]}, and weights hold no code") from error
        raise ValueError(f"{path} is no file of weights, or is damaged") from error
    except (RuntimeError, EOFError, KeyError) as error:
        found = (str(error).splitlines() or ["it ends too early"])[0]
        raise ValueError(f"{path} is cut short or damaged ({found})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of weights")
    return content


def sha256(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest is Python 3.11's
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Checkpoints:
    """After each epoch: all that training needs to go on, and the weights if validation has not been better.

    Attach it last, so that what it stores is what the next epoch begins with. `parts` are objects with `state_dict`
    and `load_state_dict`; `validator` is the evaluator whose key metric chooses, without one each epoch's weights stay.
    """

    def __init__(
        self,
        *,
        folder: Path | str,
        weights: Path | str,
        about: Mapping[str, Any],
        validator: Workflow | None = None,
        writes: bool = True,
    ) -> None:
        self.folder, self.weights = absolute(Path(folder)), absolute(Path(weights))
        self.about, self.validator, self.writes = dict(about), validator, writes

    def attach(self, trainer: Any) -> None:
        trainer.checkpoints = self
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, trainer: Any) -> None:
        if not self.writes:
            return
        best = None if self.validator is None else self.validator.state
        if best is None or best.best_metric_epoch == trainer.state.epoch:
            self.write_weights(trainer)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "epoch": trainer.state.epoch,
            "about": json.dumps(self.about),
            "best": [self.validator.state.best_metric, self.validator.state.best_metric_epoch]
            if self.validator
            else None,
            "random": random_state(),
            "parts": {name: part.state_dict() for name, part in trainer.parts().items()},
        }
        _write(self.folder / f"epoch_{trainer.state.epoch:05d}.pt", content)
        for old in list(self)[:-KEPT]:
            old.unlink()

    def write_weights(self, trainer: Any) -> None:
        """What is to be used later; a part of the network, where only a part was trained."""
        save_weights(self.weights, trainer.network, self.about)

    def __iter__(self) -> Iterator[Path]:
        """The files that are there, the oldest first."""
        yield from sorted(self.folder.glob("epoch_*.pt"))

    def restore(self, trainer: Any) -> int:
        """Put the trainer where the newest whole checkpoint left it; the epoch that it had finished."""
        for path in reversed(list(self)):
            try:
                content = read(path)
            except ValueError as fault:
                logger.warning("%s; going on from the checkpoint before it", fault)
                continue
            self._put_back(trainer, path, content)
            logger.info("going on from %s", path)
            return int(content["epoch"])
        raise ValueError(f"{self.folder} holds no checkpoint to resume from: start without resume")

    def _put_back(self, trainer: Any, path: Path, content: Mapping[str, Any]) -> None:
        parts = trainer.parts()
        if set(parts) != set(content["parts"]):
            found, wanted = ", ".join(content["parts"]), ", ".join(parts)
            raise ValueError(
                f"{path} holds {found}; this training has {wanted}: resume with the settings it began with"
            )
        for name, part in parts.items():
            try:
                part.load_state_dict(content["parts"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                made = json.loads(content["about"]).get("network_def")
                reason = " ".join(str(error).split())[:300]
                fault = f"its {name} does not fit ({reason}); it was made with network_def {made}"
                raise ValueError(f"{path}: {fault}") from error
        if self.validator is not None and content["best"] is not None:
            self.validator.state.best_metric, self.validator.state.best_metric_epoch = content["best"]
        set_random_state(content["random"])


def random_state() -> dict[str, Any]:
    """Of Python, numpy and torch, as plain values that load without running code."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Through a temporary file that has reached the disk: a reader finds the old one or the new one."""
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
