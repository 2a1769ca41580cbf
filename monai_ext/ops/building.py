"""Compile an operator's kernel and keep it: in a cache of this user alone, whole or not at all, once for all processes.

A library is kept under the hash of everything it depends on, its digest beside it, for loading a damaged one can kill
the process.
"""

import atexit
import contextlib
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
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

COMPILE_SECONDS = 90.0  # a compiler that takes longer hangs; each of ours takes some seconds
PACKAGE = Path(__file__).resolve().parents[1]
CPU_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-fopenmp"]
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-shared"]
# Instruction sets by what torch finds on this machine: fixed sets rather than -march=native, so that the name of a
# cached library says where it may run.
INSTRUCTIONS = {"AVX2": ["-mavx2", "-mfma"], "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]}


class BuildError(RuntimeError):
    """A kernel that cannot be had on this machine: why, what to do, and, in the detail, how to look closer.

    Attributes:
        detail: the compiler's command, where it was the compiler that failed.
    """

    detail: str = ""


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
        if compiler := os.environ.get("CXX"):
            return shlex.split(compiler)
        executable = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if executable is None:
            raise BuildError("no C++ compiler (c++, g++ or clang++) on PATH: install one or set CXX")
        return [executable]
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    executable = next((path for home in homes if home and (path := shutil.which(f"{home}/bin/nvcc"))), None)
    executable = executable or shutil.which("nvcc")
    if executable is None:
        raise BuildError("no nvcc on PATH or under CUDA_HOME: install the CUDA toolkit")
    return [executable]


def built(name: str, device: str) -> Path:
    """Find an operator's library in the cache, or compile it into it.

    Args:
        name: of the operator.
        device: "cpu" or "cuda".

    Returns:
        A whole library; in a folder of this process alone, with a warning, where the cache cannot be used.

    Raises:
        BuildError: there is no compiler, it fails, or what is in the cache may be another user's.
    """
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
        check_trusted(folder)
        if _sound(folder / file):
            return folder / file
        with writable(folder), _locked(folder / f"{file}.lock"):
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
    if folder := os.environ.get("MONAI_EXT_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "monai_ext"


def check_trusted(folder: Path) -> None:
    """Refuse a cache into which another user may have put a file: its code would run as ours.

    Args:
        folder: the cache, which may not be there yet.

    Raises:
        BuildError: it is another user's, or others may write to it.
    """
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


def is_ours(path: Path) -> bool:
    """Say whether a path is a file, no link, that this user alone may change.

    Args:
        path: of what is there.

    Returns:
        Whether what it holds can be believed to be what we wrote, or damaged, but not another user's.

    Raises:
        OSError: nothing is there, or it cannot be looked at.
    """
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
        return is_ours(library) and is_ours(digest) and digest.read_text() == _digest(library)
    except (OSError, UnicodeDecodeError):
        return False


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make a cache's folder for the block to write to.

    Args:
        folder: the cache, for this user alone if it has to be made.

    Yields:
        Nothing.

    Raises:
        OSError: it takes no files: read-only, or its disk full.
        BuildError: others may write to it.
    """
    _make_private(folder)
    check_trusted(folder)
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
        built = Path(work) / library.name
        try:
            _run([*compiler, *command, "-o", str(built)], Path(work))
        except BuildError:
            if "-fopenmp" not in command:
                raise
            plain = [flag for flag in command if flag != "-fopenmp"]  # a compiler without OpenMP: std::thread then
            _run([*compiler, *plain, "-o", str(built)], Path(work))
        if not built.exists():
            raise BuildError(f"the compiler {compiler[0]} ended well, but made no library")
        digest = Path(work) / "digest"
        digest.write_text(_digest(built))
        built.chmod(stat.S_IRWXU)  # whatever the umask is
        digest.chmod(stat.S_IRUSR | stat.S_IWUSR)
        built.replace(library)
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
        message = next((line for line in lines if "error" in line.lower()), lines[0]).strip()
        failure = BuildError(f"the compiler failed (exit status {process.returncode}): {message}")
        failure.detail = f"; its command was: {shlex.join(command)}"
        raise failure
