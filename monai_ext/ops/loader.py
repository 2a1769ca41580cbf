"""Compile an operator's kernels where they run, once, and let them override its PyTorch reference.

A kernel is a shared library with a C interface: it includes no header of torch, so no torch update breaks it, it
builds in seconds with a C++ compiler alone, and Python hands it pointers. It is kept in a cache folder under the hash
of everything it depends on. Whatever goes wrong ends in one warning and the reference, never in a failed import.
"""

import contextlib
import ctypes
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from monai_ext.ops.building import BuildError, built

SUFFIXES = {torch.float32: "float", torch.float64: "double"}


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


def attached(name: str, device: str) -> bool:
    """Tell whether an operator has its kernel on a device, in a model being compiled too.

    Args:
        name: of the operator.
        device: a tensor's ``device.type``.

    Returns:
        False as well where it was not tried yet.
    """
    status = _statuses.get((name, device))
    return status is not None and status.library is not None


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
    if attached(name, device):
        return True
    status = _statuses.get((name, device))
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
    path = built(name, device)
    try:
        return ctypes.CDLL(str(path)), path
    except OSError:  # whole, but made by another compiler, or for another machine's C library: made again, once
        with contextlib.suppress(OSError):
            path.with_suffix(".sha256").unlink()
    path = built(name, device)
    try:
        return ctypes.CDLL(str(path)), path
    except OSError as error:
        raise BuildError(f"{path} was compiled, but does not load ({error})") from None
