"""Compile an operator's kernels where they run, once, and let them override its PyTorch reference.

A kernel is a shared library with a C interface: it includes no header of torch, so no torch update breaks it, it
builds in seconds with a C++ compiler alone, and Python hands it pointers. It is kept in a cache folder under the hash
of everything it depends on. Whatever goes wrong ends in one warning and the reference, never in a failed import.
"""

import atexit
import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

COMPILE_SECONDS = 90.0  # a compiler that takes longer hangs; each of ours takes some seconds
PACKAGE = Path(__file__).resolve().parents[1]
CPU_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-fopenmp"]
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-shared"]
# Instruction sets by what torch finds on this machine: fixed sets rather than -march=native, so that the name of a
# cached library says where it may run.
INSTRUCTIONS = {"AVX2": ["-mavx2", "-mfma"], "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]}
SUFFIXES = {torch.float32: "float", torch.float64: "double"}


class BuildError(RuntimeError):
    """A kernel that cannot be had on this machine: why, what to do, and, in the detail, how to look closer.

    Attributes:
        detail: the compiler's command, where it was the compiler that failed.
    """

    detail: str = ""


@dataclass(frozen=True)
class Status:
    """The kernel an operator uses, where it lies, and what keeps it from a better one.

    Attributes:
        kernel: "cuda", "cpu" or "reference".
        library: the compiled library's file, None for the reference.
        reason: why there is no better one; empty if there is none better.
    """

    kernel: str
    library: Path | None
    reason: str


class Kernels:
    """The functions of one loaded library, called with a shape and tensors, and their place in PyTorch's dispatch.

    Args:
        library: loaded with ctypes.
        device: "cpu" or "cuda", whose tensors it takes.
    """

    def __init__(self, library: ctypes.CDLL, device: str) -> None:
        self.library = library
        self.device = device

    def attach(self, implementations: dict[str, Callable[..., object]]) -> None:
        """Let each kernel override its operator's reference on this device, for as long as the process lives.

        Args:
            implementations: a function for each operator's name within the namespace `monai_ext`.
        """
        _registries.append(registry := torch.library.Library("monai_ext", "IMPL"))
        with warnings.catch_warnings():  # another copy of this package may have been here before: the last one serves
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for operator, kernel in implementations.items():
                registry.impl(operator, kernel, self.device.upper(), allow_override=True)

    def __call__(self, function: str, shape: ctypes.Structure, *tensors: Tensor | None) -> None:
        """Run a function on contiguous tensors of the first one's dtype, on its device and stream.

        Args:
            function: its name in the library, without the dtype.
            shape: the structure that the function takes first.
            tensors: its inputs and outputs in its order, None for an optional one that is left out.

        Raises:
            MemoryError: the kernel found no memory for its scratch space.
            RuntimeError: CUDA did not launch it.
            TypeError: it has no kernel for this dtype.
        """
        first = next(tensor for tensor in tensors if tensor is not None)
        run = self.named(function, first.dtype)
        pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
        if self.device == "cpu":
            # A forked child has none of its parent's OpenMP threads, and would wait for them for ever.
            threads = 1 if _forked else torch.get_num_threads()
            if run(ctypes.byref(shape), ctypes.c_int64(threads), *pointers):
                raise MemoryError(f"{function}: no memory for a kernel's scratch space")
            return
        with torch.cuda.device(first.device):
            stream = torch.cuda.current_stream().cuda_stream
            if code := run(ctypes.byref(shape), ctypes.c_int64(stream), *pointers):
                raise RuntimeError(f"{function}: CUDA error {code} when launching its kernel")

    def require(self, *functions: str) -> None:
        """Make sure that the library has these functions, for every dtype.

        Args:
            functions: their names without the dtype.

        Raises:
            AttributeError: it lacks one of them.
        """
        for function in functions:
            for dtype in SUFFIXES:
                self.named(function, dtype)

    def named(self, function: str, dtype: torch.dtype) -> Callable[..., int]:
        """Find the library's function for a dtype.

        Args:
            function: its name without the dtype, such as "float_roll_forward".
            dtype: of the tensors that it will be given.

        Returns:
            The ctypes function, of pointers; what it returns is 0 where all went well.

        Raises:
            TypeError: kernels are for float32 and float64.
            AttributeError: the library has no function of this name.
        """
        if dtype not in SUFFIXES:
            raise TypeError(f"{function} has kernels for float32 and float64, got {dtype}")
        return self.library[f"{function}_{SUFFIXES[dtype]}"]


# What each operator's module puts here: the kernels that a library holds, by the PyTorch operator they are for.
BINDERS: dict[str, Callable[[Kernels], dict[str, Callable[..., object]]]] = {}
# Those that leave CUDA to PyTorch, whose own kernels are good there.
CPU_ONLY: set[str] = set()

_lock = threading.RLock()
_statuses: dict[tuple[str, str], Status] = {}
_registries: list[torch.library.Library] = []  # a registration lasts as long as its library object
_forked = False


def _after_fork() -> None:
    global _forked, _lock
    _forked = True
    _lock = threading.RLock()  # a thread of the parent may have held the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def mode() -> str:
    """Read MONAI_EXT_OPS from the environment.

    Returns:
        "auto" (kernels where they can be had), "off" (the reference) or "require" (kernels or an error).

    Raises:
        ValueError: it is set to something else.
    """
    value = os.environ.get("MONAI_EXT_OPS", "auto")
    if value not in ("auto", "off", "require"):
        raise ValueError(f"MONAI_EXT_OPS must be auto, off or require, got {value!r}")
    return value


def load(*names: str) -> None:
    """Compile and attach the kernels of these operators now, rather than at their first use. Safe to call again.

    Args:
        names: such as "float_roll"; all of the operators, if none is named.

    Raises:
        ValueError: there is no such operator.
        BuildError: a kernel cannot be had, and MONAI_EXT_OPS is "require". Else that is a warning.
    """
    for name in names or BINDERS:
        if name not in BINDERS:
            raise ValueError(f"operator must be one of {sorted(BINDERS)}, got {name!r}")
        for device in _devices():
            ready(name, device)


def ready(name: str, device: str) -> None:
    """Load an operator's kernel before its use on a device; nothing to do, or to trace, in a model being compiled.

    Args:
        name: of the operator.
        device: a tensor's ``device.type``.

    Raises:
        BuildError: the kernel cannot be had, and MONAI_EXT_OPS is "require".
    """
    if not torch.compiler.is_compiling() and not _settled(name, device):
        with _lock:
            if not _settled(name, device):  # another thread may have been here meanwhile
                _attach(name, device)


def status() -> dict[str, Status]:
    """Tell which kernel each operator uses.

    Returns:
        By the operator's name: the best kernel attached so far, its library, and why there is not a better one.
    """
    result = {}
    for name in BINDERS:
        attempts = [_statuses[name, device] for device in ("cuda", "cpu") if (name, device) in _statuses]
        attached = [attempt for attempt in attempts if attempt.library]
        reason = "; ".join(attempt.reason for attempt in attempts if attempt.reason)
        if not attempts:
            reason = "MONAI_EXT_OPS=off" if mode() == "off" else "not loaded yet: its first use loads it"
        elif "cuda" not in _devices():
            reason = reason or "no CUDA device in this machine, or a torch without CUDA"
        best = attached[0] if attached else Status("reference", None, "")
        result[name] = Status(best.kernel, best.library, reason)
    return result


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.version.cuda and torch.cuda.is_available() else ["cpu"]


def _settled(name: str, device: str) -> bool:
    """Whether nothing more is to be tried: a missing kernel that is required is tried, and complained of, each time."""
    if device == "cuda" and name in CPU_ONLY:
        return True
    status = _statuses.get((name, device))
    if status is not None and status.library is not None:
        return True
    return device not in ("cpu", "cuda") or mode() == "off" or (status is not None and mode() != "require")


def _attach(name: str, device: str) -> None:
    try:
        library, path = _loaded(name, device)
        kernels = Kernels(library, device)
        kernels.attach(BINDERS[name](kernels))
        _statuses[name, device] = Status(device, path, "")
    except Exception as error:  # whatever it is: the model runs on without this kernel, or says why it cannot
        detail = error.detail if isinstance(error, BuildError) else ""
        _statuses[name, device] = Status("reference", None, f"{error}{detail}")
        if mode() == "require":
            raise BuildError(f"MONAI_EXT_OPS=require, but {name} has no {device} kernel: {error}") from error
        warnings.warn(f"{name} runs on its PyTorch reference ({device}), slower: {error}", stacklevel=1)


def _loaded(name: str, device: str) -> tuple[ctypes.CDLL, Path]:
    path = _built(name, device)
    try:
        return ctypes.CDLL(str(path)), path
    except OSError:  # whole, but made by another compiler, or for another machine's C library: made again, once
        with contextlib.suppress(OSError):
            path.with_suffix(".sha256").unlink()
    path = _built(name, device)
    try:
        return ctypes.CDLL(str(path)), path
    except OSError as error:
        raise BuildError(f"{path} was compiled, but does not load ({error})") from None


def _sources(name: str) -> Path:
    for root in (PACKAGE / "cuda_ops", PACKAGE.parent / "cuda_ops"):  # in a wheel; in a checkout
        if (root / name).is_dir():
            return root
    raise BuildError(f"the sources cuda_ops/{name} are missing from this installation: install it again")


def _command(name: str, device: str, root: Path) -> list[str]:
    """The compiler's command, without the output file."""
    if device == "cpu":
        instructions = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), [])
        return [*CPU_FLAGS, *instructions, str(root / name / f"{name}_cpu.cpp")]
    capabilities = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    flags = list(CUDA_FLAGS)
    for major, minor in capabilities:
        flags += ["-gencode", f"arch=compute_{major}{minor},code=sm_{major}{minor}"]
    return [*flags, str(root / name / f"{name}_cuda.cu")]


def _compiler(device: str) -> list[str]:
    if device == "cpu":
        if given := os.environ.get("CXX"):
            return shlex.split(given)
        found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if found is None:
            raise BuildError("no C++ compiler (c++, g++ or clang++) on PATH: install one or set CXX")
        return [found]
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = next((path for home in homes if home and (path := shutil.which(f"{home}/bin/nvcc"))), None)
    found = found or shutil.which("nvcc")
    if found is None:
        raise BuildError("no nvcc on PATH or under CUDA_HOME: install the CUDA toolkit")
    return [found]


def _built(name: str, device: str) -> Path:
    """The library of an operator, from the cache or compiled into it."""
    root = _sources(name)
    command = _command(name, device, root)
    content = hashlib.sha256()
    for path in sorted([*root.glob("*.h"), *(root / name).glob("*.h"), Path(command[-1])]):
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for fact in (torch.__version__, str(torch.version.cuda), platform.system(), platform.machine(), *command[:-1]):
        content.update(fact.encode() + b"\0")
    file = f"{name}-{device}-{content.hexdigest()[:20]}.so"

    try:
        folder = cache_folder()
        _check_trusted(folder)
        if _sound(folder / file):
            return folder / file
        with _writable(folder), _locked(folder / f"{file}.lock"):
            if not _sound(folder / file):  # another process may have made it meanwhile
                _compile(_compiler(device), command, folder / file)
            return folder / file
    except (OSError, RuntimeError) as error:
        if isinstance(error, BuildError):
            raise
        problem = error
    try:
        folder = _private_folder()
        if not _sound(folder / file):
            _compile(_compiler(device), command, folder / file)
    except OSError as error:
        raise BuildError(f"nowhere to put a compiled kernel: {problem}; {error}") from None
    warnings.warn(
        f"{name} is compiled for this process alone, the cache folder cannot be used ({problem}): "
        "set MONAI_EXT_CACHE to a folder that can be written",
        stacklevel=1,
    )
    return folder / file


def cache_folder() -> Path:
    """Say where compiled kernels are kept: MONAI_EXT_CACHE, or monai_ext under the user's cache folder.

    Returns:
        The folder, which may not be there yet; `~` in MONAI_EXT_CACHE is not expanded.
    """
    if given := os.environ.get("MONAI_EXT_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "monai_ext"


def _check_trusted(folder: Path) -> None:
    """Refuse a cache into which another user may have put a library: its code would run as ours."""
    if not hasattr(os, "geteuid"):  # Windows, where a user's folders are the user's
        return
    how = "remove it, or set MONAI_EXT_CACHE to a folder of your own"
    with contextlib.suppress(FileNotFoundError):
        for status in (folder.lstat(), folder.stat()):  # of a link: itself, and where it leads
            if status.st_uid != os.geteuid():
                raise BuildError(f"the cache folder {folder} belongs to another user (id {status.st_uid}): {how}")
        if not stat.S_ISDIR(status.st_mode):
            return  # making it says so
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            raise BuildError(f"the cache folder {folder} may be written to by other users (mode {mode:o}): {how}")


def _make_private(folder: Path) -> None:
    """Make the folder and those above it that are missing, for this user alone whatever the umask is."""
    if folder.is_dir():
        return
    _make_private(folder.parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker: what it made is checked like any
        folder.mkdir(mode=stat.S_IRWXU)
        folder.chmod(stat.S_IRWXU)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def _ours(path: Path) -> bool:
    """Whether it is a file, no link, that this user alone may change."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return False
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


_private: list[Path] = []


def _private_folder() -> Path:
    """A folder of this process alone, removed at its end; never one that another user could have prepared."""
    if not _private:
        _private.append(Path(tempfile.mkdtemp(prefix="monai_ext_")))
        atexit.register(shutil.rmtree, _private[0], ignore_errors=True)
    return _private[0]


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _sound(library: Path) -> bool:
    """Whether the library is whole. Loading a truncated one can kill the process, so its digest is checked first."""
    digest = library.with_suffix(".sha256")
    try:
        return _ours(library) and _ours(digest) and digest.read_text() == _digest(library)
    except (OSError, UnicodeDecodeError):
        return False


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Make the folder, and raise OSError where it takes no files: read-only, or its disk full."""
    _make_private(folder)
    _check_trusted(folder)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(1 << 20))
        probe.flush()
    yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process compiles, the others wait for it. The system drops the lock of a process that dies."""
    try:
        import fcntl
    except ImportError:  # no such locks here: processes may compile the same thing twice, which does no harm
        yield
        return
    # Never through a link, which could be to any file of ours, and nothing is cut off what is there.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR), "r+b", buffering=0) as file:
        deadline = time.monotonic() + COMPILE_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        else:
            raise BuildError(f"another process has held {path} for {COMPILE_SECONDS:g} s, compiling: try again later")
        yield


def _compile(compiler: Sequence[str], command: Sequence[str], library: Path) -> None:
    """Compile beside the library and rename: it is there whole, or not at all."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=f"{library.stem}.", ignore_cleanup_errors=True) as work:
        made = Path(work) / library.name
        try:
            _run([*compiler, *command, "-o", str(made)], Path(work))
        except BuildError:
            if "-fopenmp" not in command:
                raise
            plain = [flag for flag in command if flag != "-fopenmp"]  # a compiler without OpenMP: std::thread then
            _run([*compiler, *plain, "-o", str(made)], Path(work))
        if not made.exists():
            raise BuildError(f"the compiler {compiler[0]} ended well, but made no library")
        digest = Path(work) / "digest"
        digest.write_text(_digest(made))
        made.chmod(stat.S_IRWXU)  # whatever the umask is
        digest.chmod(stat.S_IRUSR | stat.S_IWUSR)
        made.replace(library)
        digest.replace(library.with_suffix(".sha256"))


def _run(command: Sequence[str], work: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(work), "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(f"the compiler {command[0]} does not start ({error}): install one or set CXX") from None
    try:
        output, _ = process.communicate(timeout=COMPILE_SECONDS)
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"the compiler {command[0]} was stopped after {COMPILE_SECONDS:g} s without a result"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the compiler and what it started
            process.communicate()
    if process.returncode != 0:
        lines = output.splitlines() or ["it printed nothing"]
        said = next((line for line in lines if "error" in line.lower()), lines[0]).strip()
        failure = BuildError(f"the compiler failed (exit status {process.returncode}): {said}")
        failure.detail = f"; its command was: {shlex.join(command)}"
        raise failure
