"""Every operator against PyTorch, in one run: median ms, peak extra MB, and how far from the least time it could take.

python cuda_ops/bench.py [--quick] [--device cpu|cuda] [--threads 2]
"""

import argparse
import contextlib
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ext import ops
from monai_ext.ops.float_roll import float_roll_reference
from monai_ext.ops.selective_scan import selective_scan_reference

Run = Callable[[], object]


# What people write in PyTorch today.


def four_rolls(weight: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """Eq. 4 as printed: for each sample and group, four torch.roll and their weighted sum."""
    batch, groups, _ = offsets.shape
    whole = offsets.floor()
    parts, shifts = offsets - whole, whole.int().tolist()
    samples = []
    for b in range(batch):
        rolled = []
        for g, kernels in enumerate(weight.chunk(groups, 1)):
            (y, x), (fy, fx) = shifts[b][g], parts[b, g]
            total = (1 - fy) * (1 - fx) * kernels.roll((y, x), (2, 3)) + fy * fx * kernels.roll((y + 1, x + 1), (2, 3))
            total = total + fy * (1 - fx) * kernels.roll((y + 1, x), (2, 3))
            total = total + (1 - fy) * fx * kernels.roll((y, x + 1), (2, 3))
            rolled.append(total * scale[b, g])
        samples.append(torch.cat(rolled, 1))
    return torch.stack(samples)


def unbind_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence, one step of all channels after the other, on slices taken once."""
    state, outputs = torch.zeros_like(u[..., :1] * A), []
    for x, step, b, c in zip(u.unbind(2), delta.unbind(2), B.unbind(2), C.unbind(2), strict=True):
        state = torch.exp(step[..., None] * A) * state + (step * x)[..., None] * b[:, None]
        outputs.append(torch.einsum("bdn,bn->bd", state, c))
    return torch.stack(outputs, 2) + D[:, None] * u


class ParallelScan(torch.autograd.Function):
    """All states at once by doubling, with the backward pass as a scan from the end."""

    @staticmethod
    def doubling(decay: Tensor, drive: Tensor) -> Tensor:
        reach = 1
        while reach < drive.shape[-1]:
            drive = torch.cat([drive[..., :reach], drive[..., reach:] + decay[..., reach:] * drive[..., :-reach]], -1)
            decay = torch.cat([decay[..., :reach], decay[..., reach:] * decay[..., :-reach]], -1)
            reach *= 2
        return drive

    @staticmethod
    def forward(ctx, decay: Tensor, drive: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        states = ParallelScan.doubling(decay, drive)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        decay, states = ctx.saved_tensors
        later = F.pad(decay[..., 1:], (0, 1)).flip(-1)
        grad = ParallelScan.doubling(later, grad.flip(-1)).flip(-1)
        return grad * F.pad(states[..., :-1], (1, 0)), grad


def parallel_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The whole sequence at once."""
    decay = torch.exp(delta[:, :, None] * A[..., None])
    states = ParallelScan.apply(decay, (delta * u)[:, :, None] * B[:, None])
    return torch.einsum("bdnl,bnl->bdl", states, C) + D[:, None] * u


# The cases.


def roll_inputs(device: str, batch: int, channels: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, 3, 3, generator=random)
    offsets, scale = torch.randn(batch, 8, 2, generator=random), torch.rand(batch, 8, generator=random)
    return {"weight": weight.to(device), "offsets": offsets.to(device), "scale": scale.to(device)}


def scan_inputs(device: str, length: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    width, states = 512, 16
    inputs = {
        "u": torch.randn(1, width, length, generator=random),
        "delta": torch.rand(1, width, length, generator=random) * 0.1,
        "A": -torch.arange(1.0, states + 1).repeat(width, 1),
        "B": torch.randn(1, states, length, generator=random),
        "C": torch.randn(1, states, length, generator=random),
        "D": torch.randn(width, generator=random),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return selective_scan_reference(u, delta, A, B[:, None], C[:, None], D, None, False)[0]


ROLLS = {"four torch.roll": four_rolls, "reference": float_roll_reference, "kernel": ops.float_roll}
SCANS = {
    "unbind loop": unbind_loop,
    "parallel scan": parallel_scan,
    "reference": scan_reference,
    "kernel": ops.selective_scan,
}


def forward(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return function(**inputs)

    return run


def both_ways(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Run:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}

    def run() -> tuple[Tensor, ...]:
        result = function(**leaves)
        return torch.autograd.grad(result, list(leaves.values()), torch.ones_like(result))

    return run


def build(operator: str, name: str, way: str, device: str, quick: bool) -> Run:
    """What one row of the table runs."""
    if operator == "float_roll":
        function, inputs = ROLLS[name], roll_inputs(device, 16, 256 if quick else 512)
    else:
        function, inputs = SCANS[name], scan_inputs(device, 1024 if quick else 4096)
    return (forward if way == "forward" else both_ways)(function, inputs)


# Measuring.


def median_ms(run: Run, device: str, seconds: float = 2.0) -> float:
    """The median of as many runs as fit, at least three, after one to warm up."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    times = [once()]
    while len(times) < 3 or (sum(times) < seconds and len(times) < 50):
        times.append(once())
    return statistics.median(times) * 1e3


def peak_mb(operator: str, name: str, way: str, device: str, threads: int, quick: bool) -> float:
    """The most memory one run takes beyond its inputs, in a process of its own."""
    arguments = [operator, name, way, device, str(threads), str(int(quick))]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed tensors go back to the system at once
    command = [sys.executable, __file__, "--peak-of", *arguments]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def print_peak(operator: str, name: str, way: str, device: str, threads: str, quick: str) -> None:
    torch.set_num_threads(int(threads))
    run = build(operator, name, way, device, bool(int(quick)))
    ops.load(operator)
    build(operator, name, way, device, True)()  # libraries and threads are there before the measured run
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
        return

    def kilobytes(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)  # what the warm-up left behind goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = kilobytes("VmRSS")
    run()
    print((kilobytes("VmHWM") - before) / 1e3)


def relative_error(result: Tensor, truth: Tensor) -> float:
    return ((result.double() - truth).abs().max() / truth.abs().max()).item()


def scan_errors(device: str, length: int) -> tuple[float, float]:
    """The kernel's largest relative error against the loop in float64: forward, and worst gradient."""
    inputs = scan_inputs(device, length)
    double = {name: tensor.double() for name, tensor in inputs.items()}
    ahead = relative_error(forward(ops.selective_scan, inputs)(), forward(unbind_loop, double)())  # type: ignore[arg-type]
    grads = zip(both_ways(ops.selective_scan, inputs)(), both_ways(unbind_loop, double)(), strict=True)  # type: ignore[call-overload]
    return ahead, max(relative_error(one, other) for one, other in grads)


# The table.


class Table:
    def __init__(self) -> None:
        self.row("operator", "way", "implementation", "ms", "peak MB", "x floor")
        self.row(*["-" * 8] * 6)

    def row(self, *cells: object) -> None:
        widths = (14, 18, 16, 9, 9, 8)
        texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
        print(" | ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)), flush=True)


def bench_operator(
    table: Table, operator: str, names: list[str], floor: Run, what: str, args: argparse.Namespace
) -> dict:
    least = median_ms(floor, args.device)
    table.row(operator, "floor", what, least, "", 1.0)
    times = {}
    for way in ("forward", "forward+backward"):
        for name in names:
            run = build(operator, name, way, args.device, args.quick)
            times[name, way] = median_ms(run, args.device)
            peak = peak_mb(operator, name, way, args.device, args.threads, args.quick)
            table.row(operator, way, name, times[name, way], peak, times[name, way] / least)
            times[name, way, "peak"] = peak
    times["floor"] = least
    return times


def bench_rolled_conv(table: Table, args: argparse.Namespace) -> dict[int, tuple[float, float]]:
    """The four scales of a 256x256 image, by channels: one kernel for all, and each sample's own, in ms."""
    times = {}
    for channels in (64, 128) if args.quick else (64, 128, 256, 512):
        size = 256 * 64 // channels
        inputs = roll_inputs(args.device, 2, channels)
        x = torch.randn(2, channels, size, size, device=args.device)
        with torch.no_grad():
            plain = median_ms(lambda x=x, w=inputs["weight"]: F.conv2d(x, w, padding=1), args.device)
            rolled = median_ms(lambda x=x, i=inputs: ops.rolled_conv(x, **i, padding=1), args.device)
        table.row("rolled_conv", f"{channels} at {size}x{size}", "plain conv", plain, "", 1.0)
        table.row("rolled_conv", f"{channels} at {size}x{size}", "kernel", rolled, "", rolled / plain)
        times[channels] = plain, rolled
    return times


def bench_build() -> tuple[float, float]:
    """Seconds to compile all CPU operators into an empty cache, and to load them from it."""
    code = "import time; from monai_ext import ops; t = time.perf_counter(); ops.load(); print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "MONAI_EXT_CACHE": cache, "MONAI_EXT_OPS": "require"}
        first, again = (
            float(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout)
            for _ in range(2)
        )
    return first, again


def import_seconds() -> float:
    """What importing the operators adds to importing torch and monai."""
    code = "import time, torch, monai; t = time.perf_counter(); import monai_ext.ops; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(3)]
    return statistics.median(map(float, runs))


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unnamed processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: a minute instead of several")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-of", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        return print_peak(*args.peak_of)
    torch.set_num_threads(args.threads)
    ops.load()
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{processor()}, {args.threads} threads"
    kernels = ", ".join(f"{name}: {status.kernel}" for name, status in ops.status().items())
    print(f"{where}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; {kernels}\n")

    table = Table()
    batch, channels, length = (16, 256, 1024) if args.quick else (16, 512, 4096)
    shape = (batch, channels, channels, 3, 3)
    rolls = bench_operator(
        table, "float_roll", list(ROLLS), lambda: torch.empty(shape, device=args.device).fill_(1.0), "one write", args
    )
    convs = bench_rolled_conv(table, args)
    piece = torch.rand(65536 if args.device == "cpu" else 512 * 16 * length, device=args.device)
    scans = bench_operator(
        table,
        "selective_scan",
        list(SCANS),
        lambda: [torch.exp(piece) for _ in range(512 * 16 * length // piece.numel())],
        "exponentials",
        args,
    )

    ways = ("forward", "forward+backward")
    best = {way: min(scans[name, way] for name in ("unbind loop", "parallel scan")) for way in ways}
    errors = scan_errors(args.device, length)
    u_mb = 512 * length * 4 / 1e6
    print()
    for way in ways:
        print(f"selective_scan {way}: {best[way] / scans['kernel', way]:.0f}x the best of PyTorch's")
    print(f"selective_scan peak, both ways: {scans['kernel', ways[1], 'peak'] / u_mb:.1f} times u")
    print(f"selective_scan relative error: {errors[0]:.1e} forward, {errors[1]:.1e} gradients")
    faster = rolls["four torch.roll", "forward"] / rolls["kernel", "forward"]
    print(f"float_roll: {faster:.1f}x four torch.roll a group")
    print(f"float_roll: {rolls['kernel', 'forward'] / rolls['floor']:.2f} times one write of its output")
    ratios = ", ".join(f"{rolled / plain:.2f} at {channels}" for channels, (plain, rolled) in convs.items())
    plain, rolled = map(sum, zip(*convs.values(), strict=True))
    print(f"rolled_conv: {ratios} channels times the plain convolution, {rolled / plain:.2f} over all")
    if args.device == "cpu" and not args.quick:
        first, again = bench_build()
        print(f"build of all CPU operators: {first:.1f} s; from the cache: {again:.3f} s")
        print(f"import monai_ext.ops: {import_seconds():.3f} s beyond torch and monai")
    return None


if __name__ == "__main__":
    main()
