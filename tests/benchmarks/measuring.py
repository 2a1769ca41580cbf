"""Milliseconds, memory and agreement of runs that do the same, on a CPU or a GPU."""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from monai_ext.ops import checks

Run = Callable[[], object]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them


@dataclass(frozen=True)
class Measured:
    """Medians of one run. What could not be run has no `ms`, and the note says why.

    Attributes:
        ms: median.
        peak_mb: the most memory that it takes beyond what was there before; None where the system does not say.
        result: what it gave the first time.
        note: why there is no figure.
    """

    ms: float | None
    peak_mb: float | None
    result: object
    note: str = ""


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Within it, operators are their references, as they are in archives: plain PyTorch, with its autograd."""
    with patch.object(checks, "stands_alone", _always):  # a function, which torch.compile can follow
        yield


def _always() -> bool:
    return True


def plainly(run: Run) -> Run:
    """The same run with plain operators."""

    def with_references() -> object:
        with plain_operators():
            return run()

    return with_references


def as_glibc_does() -> None:
    """Let glibc keep freed memory up to where its own thresholds end up in a long run."""
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**25)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**26)


def measure(
    runs: Mapping[str, Run], device: str, *, seconds: float, memory: Callable[[], object] = as_glibc_does
) -> dict[str, Measured]:
    """Let runs take turns, since a machine's speed varies, until each has had its seconds.

    Each runs once to warm up, and then at least three times; one that alone takes all of the seconds, once. `memory`
    says what becomes of freed memory, but for the one run that shows the peak.
    """
    memory()
    first, notes, times = {}, {}, {name: [] for name in runs}
    needed = dict.fromkeys(runs, 3)
    for name, run in runs.items():
        try:
            first[name] = _kept(run())
            if _spent(run, device, times[name]) > seconds:
                needed[name] = 1
        except Exception as error:  # whatever it is: the others are measured
            notes[name] = _in_a_line(error)
    alive = [name for name in runs if name not in notes]
    while waiting := [
        name for name in alive if len(times[name]) < needed[name] or (sum(times[name]) < seconds > times[name][-1])
    ]:
        waiting = [name for name in waiting if len(times[name]) < 50]
        if not waiting:
            break
        for name in waiting:
            _spent(runs[name], device, times[name])
    peaks = {name: peak_mb(runs[name], device) for name in alive}
    memory()
    return {
        name: Measured(None, None, None, notes[name])
        if name in notes
        else Measured(statistics.median(times[name]) * 1e3, peaks[name], first[name])
        for name in runs
    }


def median_ms(run: Run, device: str, *, seconds: float) -> float:
    """The median of one run alone, for a floor.

    Raises:
        RuntimeError: it could not be run.
    """
    (measured,) = measure({"it": run}, device, seconds=seconds).values()
    if measured.ms is None:
        raise RuntimeError(measured.note)
    return measured.ms


def _spent(run: Run, device: str, times: list[float]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    times.append(time.perf_counter() - start)
    return times[-1]


def _kept(result: object) -> object:
    """A copy: a CUDA graph writes into the same tensor again."""
    if isinstance(result, Tensor):
        return result.detach().clone()
    return [one.detach().clone() for one in result] if isinstance(result, tuple | list) else None


def _in_a_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'it says no more'}"[:200]


def peak_mb(run: Run, device: str) -> float | None:
    """The most memory that one run takes beyond what is there before it, None where the system does not say."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None

    def kilobytes(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    with contextlib.suppress(AttributeError):  # a C library without them
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # freed tensors go back to the system at once
        ctypes.CDLL(None).malloc_trim(0)  # and what earlier runs left behind
    try:
        clear.write_text("5")  # the high-water mark starts again from here
    except OSError:
        return None
    before = kilobytes("VmRSS")
    run()
    return (kilobytes("VmHWM") - before) / 1e3


def apart(result: object, truth: object) -> float | None:
    """The largest difference, relative to the largest value, of the worst tensor; None of no tensors."""
    ours, theirs = (_tensors(one) for one in (result, truth))
    if not ours or len(ours) != len(theirs):
        return None
    pairs = zip(ours, theirs, strict=True)
    far = [(a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30) for a, b in pairs]
    return float(torch.stack(far).max())  # which is NaN where one is


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result) if isinstance(result, tuple | list) else []


def machine(device: str) -> str:
    """The processor's name, with what else times depend on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {capability}"


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    for line in known.read_text().splitlines() if known.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unnamed processor"
