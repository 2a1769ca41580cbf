"""What engines keep beside the kernels' cache: which one was best for a network, and the graphs made of it.

What lies there is this user's alone and is checked before it is used; whatever is wrong with the folder is told in one
line, and everything goes on without it.
"""

import contextlib
import hashlib
import logging
import math
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from monai_ext import __version__
from monai_ext.files import read_json, sha256, write_json
from monai_ext.ops.building import PACKAGE, BuildError, cache_folder, check_trusted, is_ours, writable
from monai_ext.runtime import ENGINES, version

logger = logging.getLogger(__name__)
MOST_BYTES = 2 << 30  # of graphs; those that were not used for longest are removed first
DIGESTS = "digests.json"  # beside a graph
SOURCES = ("networks", "ops")  # whose code a graph was made of
_told: set[str] = set()
_private: list[tempfile.TemporaryDirectory[str]] = []  # graphs of this process alone


@dataclass(frozen=True)
class Choice:
    """What a probe found of a network.

    Attributes:
        engine: the best.
        torch_seconds, engine_seconds: of a slice, by torch and by the engine.
        load_seconds: before its first slice, with the graph made.
        agreement: of the engine with float32 torch, in dB.
    """

    engine: str
    torch_seconds: float
    engine_seconds: float
    load_seconds: float
    agreement: float


def fingerprint(network: nn.Module) -> str:
    """Digest all that a graph is made of: weights, structure, code.

    Args:
        network: as it would be called.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        kind = type(module)
        plain = {key: value for key, value in vars(module).items() if _is_plain(value)}
        called = {key: getattr(value, "__qualname__", "") for key, value in vars(module).items() if callable(value)}
        forward = getattr(kind, "forward", None)
        code = getattr(forward, "__code__", None)  # of somebody's own network, which may change under one name
        constants = [one for one in code.co_consts if _is_plain(one)] if code else []
        written = (code.co_code.hex(), code.co_names, constants) if code else ()
        told = (name, kind.__module__, kind.__qualname__, sorted(plain.items()), sorted(called.items()), written)
        digest.update(repr(told).encode())
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for path in sorted(path for room in SOURCES for path in (PACKAGE / room).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key(made_of: str, engines: Sequence[str], *facts: object) -> str:
    """Name what is kept: by the network, the software, and whatever else it hangs on.

    Args:
        made_of: of `fingerprint`.
        engines: whose versions count.
        facts: such as the processor and the number of threads.

    Returns:
        A name for a file.
    """
    versions = [version(name) for name in ("torch", "monai", *engines)]
    return hashlib.sha256(repr((made_of, __version__, versions, facts)).encode()).hexdigest()[:32]


def processor() -> str:
    """Name the processor.

    Returns:
        The name that the system gives it, and the instructions that torch uses on it.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def recalled(name: str) -> Choice | None:
    """Read what a probe found earlier.

    Args:
        name: of `key`.

    Returns:
        None where nothing is remembered, or what is there cannot be believed.
    """
    folder = _folder()
    if folder is None or not (folder / f"{name}.json").exists():
        return None
    path = folder / f"{name}.json"
    try:
        if not is_ours(path):
            raise ValueError("another user may have written it")
        found = read_json(path)
        choice = Choice(**found)
        numbers = [getattr(choice, field.name) for field in fields(Choice)[1:]]
        if choice.engine not in ENGINES[1:] or not all(isinstance(n, float) and math.isfinite(n) for n in numbers):
            raise ValueError("it says what cannot be")
    except (OSError, ValueError, TypeError) as error:
        _tell(f"{path} is damaged and is not used ({error}): remove it")
        return None
    return choice


def remember(name: str, choice: Choice) -> None:
    """Write what a probe found, where the cache can be written.

    Args:
        name: of `key`.
        choice: what it found.
    """
    folder = _folder()
    if folder is None:
        return
    try:
        with writable(cache_folder()), writable(folder):
            write_json(folder / f"{name}.json", asdict(choice))
            (folder / f"{name}.json").chmod(0o600)  # whatever the umask: what others may write is not believed
    except (OSError, BuildError) as error:
        _tell(_unusable(error))


def graph_of(name: str, files: Sequence[str], make: Callable[[Path], None]) -> Path:
    """Find a graph in the cache, or make it there; in a folder of this process alone where the cache cannot be used.

    Args:
        name: of `key`.
        files: that a graph consists of.
        make: writes them into the folder that it is given.

    Returns:
        The folder with the whole graph.

    Raises:
        OSError: no folder can be written at all.
        Exception: whatever `make` raises.
    """
    folder = _folder()
    if folder is not None and _sound(folder / name, files):
        with contextlib.suppress(OSError):
            (folder / name / DIGESTS).touch()
        return folder / name
    work = None
    if folder is not None:
        try:
            with writable(cache_folder()), writable(folder):
                work = tempfile.TemporaryDirectory(dir=folder, prefix=".partial-")
        except (OSError, BuildError) as error:
            _tell(_unusable(error))
    if work is None or folder is None:
        _private.append(tempfile.TemporaryDirectory(prefix="monai_ext_"))
        make(Path(_private[-1].name))
        return Path(_private[-1].name)
    with work:
        fresh = Path(work.name) / name
        fresh.mkdir(mode=0o700)
        make(fresh)
        for file in files:
            (fresh / file).chmod(0o600)
        write_json(fresh / DIGESTS, {file: sha256(fresh / file) for file in files})
        (fresh / DIGESTS).chmod(0o600)
        if not _sound(folder / name, files):  # else another process has put its own there meanwhile, and may run it
            shutil.rmtree(folder / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                fresh.rename(folder / name)
    _make_room(folder, keep=name)
    return folder / name


def _folder() -> Path | None:
    """Where all of it is kept, which may not be there yet; None where others may write to it."""
    try:
        check_trusted(cache_folder())
        check_trusted(cache_folder() / "engines")
    except (OSError, BuildError) as error:
        _tell(_unusable(error))
        return None
    return cache_folder() / "engines"


def _sound(graph: Path, files: Sequence[str]) -> bool:
    try:
        check_trusted(graph)
        if not graph.is_dir():
            return False
        whole = all(is_ours(graph / file) for file in (*files, DIGESTS))
        if whole and read_json(graph / DIGESTS) == {file: sha256(graph / file) for file in files}:
            return True
        _tell(f"{graph} is damaged and is made anew")
    except (OSError, ValueError, BuildError) as error:
        _tell(f"{graph} is damaged and is made anew ({error})")
    return False


def _make_room(folder: Path, *, keep: str) -> None:
    """Remove graphs, the longest unused first, until the rest is no larger than it may be."""
    with contextlib.suppress(OSError):
        graphs = sorted(folder.glob(f"*/{DIGESTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in graphs:
            total += sum(file.stat().st_size for file in path.parent.iterdir())
            if total > MOST_BYTES and path.parent.name != keep:
                shutil.rmtree(path.parent, ignore_errors=True)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(one) for one in value)
    return isinstance(value, bool | int | float | str | None)


def _unusable(error: Exception) -> str:
    return f"engines and their graphs are not kept, the cache folder cannot be used ({error})"


def _tell(problem: str) -> None:
    if problem not in _told:
        _told.add(problem)
        logger.warning(problem)
