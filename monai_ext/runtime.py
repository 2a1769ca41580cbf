"""What a run computes with: its device, its precision (bfloat16 where the machine is faster for it), its memory."""

import contextlib
import ctypes
import difflib
import functools
import importlib.metadata
import importlib.util
import logging
import os
import sys

import torch
from packaging.version import InvalidVersion, Version

logger = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
LARGE = 2**30  # bytes
AMP = (True, False, "bf16", "fp16")
ENGINES = ("auto", "torch", "openvino", "onnxruntime")
PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnx", "onnxruntime")}
OLDEST = {"openvino": "2025.4", "onnxruntime": "1.20"}  # that does it, as pyproject.toml's extras have them
EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx"}


def wanted_dtype(device: torch.device | str, amp: bool | str) -> torch.dtype | None:
    """Choose what autocast is to use, None for float32.

    Args:
        device: where it runs.
        amp: True is bfloat16 where it pays; "bf16" is always that, "fp16" is for CUDA alone, False is float32.

    Raises:
        ValueError: an `amp` that is none of these, or not for this device.
    """
    if amp not in AMP:
        raise ValueError(f"amp must be true, false, bf16 or fp16, got {amp!r}")
    device = torch.device(device)
    if amp is False:
        return None
    if amp == "fp16":
        if device.type != "cuda":
            raise ValueError(f"amp fp16 is for CUDA, this is {device.type}: use true, bf16 or false")
        return torch.float16
    return torch.bfloat16 if amp == "bf16" or _bfloat16_pays(device) else None


def autocast(device: torch.device | str, amp: bool | str) -> contextlib.AbstractContextManager[object]:
    """Give torch.autocast as `amp` asks for it, or a context that does nothing.

    Args:
        device, amp: as of `wanted_dtype`.

    Raises:
        ValueError: as `wanted_dtype`.
    """
    dtype = wanted_dtype(device, amp)
    return contextlib.nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def memory_format(device: torch.device | str, dtype: torch.dtype | None) -> torch.memory_format:
    """Choose the layout to hand images in: channels last for tensor cores.

    On a CPU it pays for plain convolutions (ResUnet in bfloat16: 0.34 s against 0.38 s), not where our operators,
    which take channels first, stand between them (AGI-Net: 0.59 s against 0.51 s).

    Args:
        device: where it runs.
        dtype: of `wanted_dtype`.
    """
    tensor_cores = torch.device(device).type == "cuda" and dtype is not None
    return torch.channels_last if tensor_cores else torch.contiguous_format


def _bfloat16_pays(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def installed(engine: str) -> bool:
    """Say whether what an engine needs is here.

    Args:
        engine: "torch", "openvino" or "onnxruntime".

    Returns:
        Whether its packages are found, and are not too old; they are not imported.
    """
    specs = [importlib.util.find_spec(package) for package in PACKAGES.get(engine, ())]
    found = all(spec is not None and spec.origin is not None for spec in specs)  # without one, it is but a folder
    return found and not _too_old(engine)


@functools.cache
def _told_too_old(engine: str, found: str) -> None:
    logger.warning("%s %s is too old and left aside: %s or later is needed", engine, found, OLDEST[engine])


def _too_old(engine: str) -> bool:
    found = version(engine)
    try:
        old = engine in OLDEST and Version(found) < Version(OLDEST[engine])
    except InvalidVersion:  # "unknown", or a name of somebody's own
        return False
    if old:
        _told_too_old(engine, found)
    return old


def version(engine: str) -> str:
    """Say which version of an engine is here.

    Args:
        engine: "torch", "openvino" or "onnxruntime".

    Returns:
        The version, "unknown" where another package than the usual one brings it.
    """
    try:
        return importlib.metadata.version(engine)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def checked_engine(name: object) -> str:
    """Make sure that an engine is known, and here.

    Args:
        name: as it was given.

    Returns:
        One of ENGINES.

    Raises:
        ValueError: it is none of these, which names the nearest, or is not installed or too old, which says what to
            install.
    """
    if not isinstance(name, str) or name not in ENGINES:
        shown = repr(name) if len(repr(name)) <= 80 else f"a {type(name).__name__}"
        near = difflib.get_close_matches(str(name)[:80].lower(), ENGINES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {shown}{hint}")
    if not installed(name):
        which = f"{version(name)} is too old" if _too_old(name) else "is not here"
        raise ValueError(f"engine {name} {which}: pip install -U 'monai-ext[{EXTRAS[name]}]', or give --engine auto")
    return name


def keep_freed_memory() -> bool:
    """Let glibc give tensors of up to 1 GB memory that others left, where it would ask the system each time.

    At 256 x 256, batches of four go through AGI-Net a quarter faster on two threads. The process keeps what it needed
    at most until it ends. False where the C library has no such thing.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def named_device(name: str) -> torch.device:
    """Read the name of a device that somebody typed.

    Args:
        name: such as "cpu", "cuda" or "cuda:1".

    Returns:
        The device.

    Raises:
        ValueError: it is none, or this machine lacks it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:1 and the like, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name}, and this machine has {torch.cuda.device_count()} CUDA devices: try cpu")
    return device


def own_device() -> torch.device:
    """Choose the device of one process among several that torchrun started: the GPU with its local number, or the
    CPU.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """Say in words what a figure was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} CPU, {torch.get_num_threads()} threads"
