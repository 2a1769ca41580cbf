"""Weights with what they were made by: written, read, put into a network, and described.

`model.pt` is a flat state dict, as MONAI's verbs take it; `model.json` beside it says what made it. `model.ts`, which
`ckpt_export` writes, is read too: it holds the bundle's configs, which say it.
"""

import json
import logging
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from monai_ext.claims import checked
from monai_ext.files import absolute, read_json, sha256, whole_file, write_json
from monai_ext.modalities import canonical

logger = logging.getLogger(__name__)
ARCHIVE = ".ts"
SHIPPED = "shipped"  # a word for the weights that come with a bundle
_LARGEST_CONFIG = 1 << 24  # bytes, unpacked
_NO_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RecursionError, RuntimeError)
_MADE_BY = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange)
_NO_NETWORK = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)  # of values of a wrong kind
_BESIDE = 1 << 25  # numbers that a network may make for itself, beside those that its weights hold
OLDER = {"datasets": "sites", "dataset": "site"}  # names in weights that were written before


def save_weights(path: Path | str, network: nn.Module, about: Mapping[str, Any]) -> None:
    """Write a network's weights and the JSON beside them, each whole or not at all.

    Args:
        path: of the weights, such as model.pt; the JSON has the same name and .json.
        network: whose state dict is written.
        about: what the JSON says of them, beside their sha256.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.pt"
        >>> save_weights(path, nn.Linear(2, 1), {"sources": ["T1", "T2"], "target": ["FLAIR"]})
        >>> sorted(file.name for file in path.parent.iterdir())
        ['model.json', 'model.pt']
    """
    path = absolute(Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    write_tensors(path, weights)
    write_json(path.with_suffix(".json"), {**about, "sha256": sha256(path)})


def load_weights(network: nn.Module, path: Path | str) -> dict[str, Any]:
    """Put all of the weights in a file into the network, or none.

    Args:
        network: in which they belong.
        path: of the weights, or of an archive that `ckpt_export` wrote.

    Returns:
        What their JSON says; {} where there is none.

    Raises:
        ValueError: they do not fit the network, the file is damaged or would run code, or the JSON speaks of others.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.pt"
        >>> save_weights(path, nn.Linear(2, 1), {"sources": ["T1", "T2"], "target": ["FLAIR"]})
        >>> load_weights(nn.Linear(2, 1), path)["sources"]
        ['T1', 'T2']
    """
    path = absolute(Path(path))
    stored = read(path)
    about = about_weights(path)
    own = network.state_dict()
    constants = {name for name, _ in network.named_buffers()} - set(own)  # an archive has them too
    weights = {name: value for name, value in stored.items() if name not in constants}
    faults = [f"lacks {name}" for name in own if name not in weights]
    faults += [f"has {name}, which the network has not" for name in weights if name not in own]
    faults += [
        f"{name} is {tuple(value.shape)}, the network's is {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and getattr(value, "shape", None) != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        arguments = about.get("network_def", "unknown: no JSON beside it says so")
        version = f", by version {about['version']} of the bundle" if about.get("version") else ""
        fault = f"{path} does not fit the network: {'; '.join(faults[:3])}{more}"
        raise ValueError(f"{fault}; it was made with {arguments}{version}")
    network.load_state_dict(weights)
    return about


def about_weights(path: Path | str) -> dict[str, Any]:
    """Read what the JSON beside the weights says; of an archive, what is in it.

    Args:
        path: of the weights.

    Returns:
        Plain values by key; {} where there is no JSON.

    Raises:
        ValueError: it speaks of other weights, or says what may not enter a config.
    """
    path = absolute(Path(path))
    if path.suffix == ARCHIVE:
        return _about_archive(path)
    try:
        about = read_json(path.with_suffix(".json"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s): it is not used", path.with_suffix(".json"), error)
        return {}
    if not isinstance(about, dict) or about.get("sha256") != sha256(path):
        raise ValueError(
            f"{path} is not what the JSON beside it speaks of: its SHA-256 is another. Get both anew, from one place; "
            f"to use the weights without what is said of them, remove {path.with_suffix('.json').name}"
        )
    return checked(_by_todays_names(about), of=str(path.with_suffix(".json")))


def archived(path: Path, name: str) -> dict[str, Any]:
    """Read one of the JSON files that an archive holds.

    Args:
        path: of the archive.
        name: such as "inference.json".

    Raises:
        ValueError: it is no archive, has no such file, or that is no dictionary.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = [entry for entry in archive.infolist() if entry.filename.endswith(f"/extra/{name}")]
            with archive.open(member) as file:
                text = file.read(_LARGEST_CONFIG + 1)  # whatever size it declares
            if len(text) > _LARGEST_CONFIG:
                raise ValueError(f"its {name} is larger than {_LARGEST_CONFIG:,} bytes")
            content = json.loads(text)
    except _NO_ARCHIVE as error:
        raise ValueError(f"{path} is no archive of a bundle with its {name}: write it with ckpt_export") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {name} that is no dictionary")
    return content


def _about_archive(path: Path) -> dict[str, Any]:
    """Claims from an archive's configs: of `network_def`, what is plain, or an id of the config that is."""
    config, metadata = archived(path, "inference.json"), archived(path, "metadata.json")
    about = {"bundle": metadata.get("name"), "version": metadata.get("version"), "preset": config.get("preset")}
    for name in ("sources", "target"):
        value = config.get(name)
        about[name] = [value] if isinstance(value, str) else value
    about["canvas"] = None if _is_computed(config.get("canvas")) else config.get("canvas")
    definition = config.get("network_def")
    if not isinstance(definition, dict):
        raise ValueError(f"{path} holds an inference.json without a network_def")
    definition = _by_todays_names(definition)
    about["sites"] = definition.pop("sites", None)
    named = {key: _followed(value, config) for key, value in definition.items()}
    about["network_def"] = {key: value for key, value in named.items() if not _is_computed(value)}
    claims = {key: value for key, value in about.items() if value is not None}
    return checked(claims, of=f"{path}'s inference.json") | {"sha256": sha256(path)}


def _by_todays_names(about: Mapping[str, Any]) -> dict[str, Any]:
    return {OLDER.get(key, key): value for key, value in about.items()}


def _followed(value: Any, config: Mapping[str, Any]) -> Any:
    return config.get(value[1:], value) if isinstance(value, str) and value.startswith("@") else value


def _is_computed(value: Any) -> bool:
    """Whether a config's value is what its reader makes of it: an expression, or a component."""
    return (isinstance(value, str) and value.startswith("$")) or (isinstance(value, dict) and "_target_" in value)


def read(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values.

    Args:
        path: of the file, or of a TorchScript archive.

    Returns:
        name -> tensor or plain value.

    Raises:
        ValueError: it is damaged, or would run code.
    """
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
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch's reader meets what its bytes happen to say
        message = (str(error).splitlines() or ["it ends too early"])[0]
        raise ValueError(f"{path} is cut short or damaged ({message})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of weights")
    return content


class RoomFor(TorchFunctionMode):
    """Within it, no network can be made that is much larger than what a file of weights holds.

    The file's own JSON says which network is made: that is not believed before memory is taken, and arguments that no
    network can be made of are told as a ValueError.

    Args:
        path: of the weights.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.pt"
        >>> save_weights(path, nn.Linear(2, 1), {})
        >>> with RoomFor(path):  # doctest: +ELLIPSIS
        ...     nn.Linear(100_000, 100_000)
        Traceback (most recent call last):
        ValueError: ...model.pt holds ... bytes, too few for the network that it is said to be of
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.size = path, path.stat().st_size
        self.left = self.size + _BESIDE  # a number takes a byte at the least

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what `func` would make before it is made."""
        kwargs = kwargs or {}
        if func in _MADE_BY:
            self.left -= func(*args, **{**kwargs, "device": "meta"}).numel()
            if self.left < 0:
                raise ValueError(
                    f"{self.path} holds {self.size:,} bytes, too few for the network that it is said to be of"
                )
        return func(*args, **kwargs)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Tell what the arguments led to; MONAI has wrapped it."""
        super().__exit__(kind, error, trace)
        cause = error
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, _NO_NETWORK):
            raise ValueError(f"{self.path} is said to be of a network that cannot be made: {cause}") from error


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, through a temporary file that has reached the disk.

    A reader finds the old one or the new one.

    Args:
        path: the file.
        content: by name.
    """
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())


def canvas_of(weights: Path | str) -> int | None:
    """Tell on which planes weights have learnt, for a config.

    Args:
        weights: their file; what is not there says nothing.

    Returns:
        Rows and columns of whole planes; None where heads were cut out, or nobody says.

    Raises:
        ValueError: the JSON beside them speaks of other weights, or says what may not enter a config.
    """
    canvas: int | None = about_weights(weights).get("canvas") if Path(weights).is_file() else None
    return canvas


def residual_of(weights: Path | str | None, *, shipped: Path | str | None = None) -> list[str]:
    """Tell which contrasts weights have learnt as a change of another one, for a config.

    Args:
        weights: their file; what is not there says nothing. SHIPPED for those that come with the bundle.
        shipped: the latter's file.

    Returns:
        As `PMMSynth` takes it in `residual`; nothing where nobody says.

    Raises:
        ValueError: the JSON beside them speaks of other weights, or says what may not enter a config.
    """
    if weights == SHIPPED and shipped is not None:
        weights = shipped
    if weights is None or not Path(weights).is_file():
        return []
    return list(about_weights(weights).get("network_def", {}).get("residual") or ())


def begin_with(
    network: nn.Module,
    weights: Path | str | None,
    *,
    shipped: Path | str | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Put a network where it is trained, with what it has learnt before where a file of weights is named.

    Args:
        network: to be trained.
        weights: of the same network, for any contrasts; SHIPPED for those that come with its bundle; None begins anew.
        shipped: the latter's file.
        device: where the network is put; it stays where it is if None.

    Returns:
        The network.

    Raises:
        ValueError: the weights are not there, are damaged, or do not fit.
    """
    if weights == SHIPPED and shipped is not None:
        weights = shipped
    if weights is not None:
        if not Path(weights).is_file():
            told = f"name a file with --start_from, or {SHIPPED} for the bundle's own, or leave it out"
            raise ValueError(f"there are no weights at {weights}: {told}")
        about = load_weights(network, weights)
        learnt = " -> ".join(", ".join(about.get(what, ["?"])) for what in ("sources", "target"))
        logger.info("begins with %s, which has learnt %s", weights, learnt)
    return network.to(device)


def trained_network(
    network: nn.Module,
    weights: Path | str,
    *,
    sources: Sequence[str],
    target: Sequence[str],
    device: torch.device | str | None = None,
) -> nn.Module:
    """Put weights into a network for a task.

    Args:
        network: in which they belong.
        weights: their file.
        sources, target: contrasts, the network's channels.
        device: where the network is put; it stays where it is if None.

    Returns:
        The network, ready to predict.

    Raises:
        ValueError: the weights are not there, do not fit, or were trained for another task.
    """
    if not Path(weights).is_file():
        raise ValueError(f"there are no weights at {weights}: train the bundle, or name a file with --weights")
    about = load_weights(network, weights)
    for what, wanted in (("sources", sources), ("target", target)):
        names = [canonical(name) for name in wanted]
        if what in about and about[what] != names:
            raise ValueError(f"{weights} was trained with {what} {about[what]}, not {names}: name those with --{what}")
    return network.eval().to(device)
