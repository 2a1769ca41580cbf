"""`make bench`: every operator and every bundle against what one would take instead, in one table.

    python cuda_ops/bench.py [--quick] [--device cpu|cuda] [--threads 2] [--minutes 12] [--size 128]

Median ms, the most MB that a run takes beyond its inputs, times the least that it could take, and how far what it gives
is from the truth. Implementations take turns. "reference" is ours in plain PyTorch; a dash is what was not measured,
why stands under the table. Parts run in processes of their own (tests/benchmarks/parts.py), all within the minutes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "benchmarks"))
import bundle_rows
from measuring import Run, apart, machine, measure, median_ms
from parts import Part, Row, Table, carry_out, tell

from monai_ext import ops
from monai_ext.ops.float_roll import float_roll_reference
from monai_ext.ops.group_pool import group_pool_reference
from monai_ext.ops.selective_scan import selective_scan_reference

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


def scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return selective_scan_reference(u, delta, A, B[:, None], C[:, None], D, None, False)[0]


def pool_reference(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return group_pool_reference(x, weight, bias, gain, shift, GROUPS, None)


def pool(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return ops.group_pool(x, weight, bias, gain, shift, GROUPS)


def conv_reference(x: Tensor, weight: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """Each sample's kernels in one grouped convolution, as `rolled_conv` does, rolled in plain PyTorch."""
    kernels = float_roll_reference(weight, offsets, scale).flatten(0, 1)
    y = F.conv2d(x.flatten(0, 1)[None], kernels, padding=1, groups=len(x))
    return y.unflatten(1, (len(x), -1))[0]


def conv(x: Tensor, weight: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    return ops.rolled_conv(x, weight, offsets, scale, padding=1)


# The cases.


@dataclass(frozen=True)
class Operator:
    """What is measured of one operator.

    Attributes:
        kernel: the operator, of named tensors.
        reference: the same in plain PyTorch.
        others: what people write or install instead.
        inputs: of a device and a size.
        floor: of the inputs' device and a size: what takes the least time that the operator could.
        floor_is: in words.
        sizes: those of the table, by the name that a row has, if there are several.
        small: those of --quick.
    """

    kernel: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    others: Mapping[str, Callable[..., Tensor]]
    inputs: Callable[[str, int], dict[str, Tensor]]
    floor: Callable[[str, int], Run]
    floor_is: str
    sizes: tuple[int, ...]
    small: tuple[int, ...]
    ways: tuple[str, ...] = ("forward", "forward+backward")


GROUPS = 8


def roll_inputs(device: str, channels: int, batch: int = 16) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, 3, 3, generator=random)
    offsets, scale = torch.randn(batch, GROUPS, 2, generator=random), torch.rand(batch, GROUPS, generator=random)
    return {"weight": weight.to(device), "offsets": offsets.to(device), "scale": scale.to(device)}


def conv_inputs(device: str, channels: int) -> dict[str, Tensor]:
    """The scales of a 256x256 image, by channels."""
    size = 256 * 64 // channels
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    return {"x": x.to(device), **roll_inputs(device, channels, batch=2)}


def pool_inputs(device: str, size: int) -> dict[str, Tensor]:
    random, channels = torch.Generator().manual_seed(0), 64
    inputs = {
        "x": torch.randn(1, channels, size, size, generator=random),
        "weight": torch.randn(channels, channels // GROUPS, 3, 3, generator=random),
        "bias": torch.randn(channels, generator=random),
        "gain": torch.rand(channels, generator=random),
        "shift": torch.randn(channels, generator=random),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def scan_inputs(device: str, length: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    inputs = {
        "u": torch.randn(1, WIDTH, length, generator=random),
        "delta": torch.rand(1, WIDTH, length, generator=random) * 0.1,
        "A": -torch.arange(1.0, STATES + 1).repeat(WIDTH, 1),
        "B": torch.randn(1, STATES, length, generator=random),
        "C": torch.randn(1, STATES, length, generator=random),
        "D": torch.randn(WIDTH, generator=random),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


WIDTH, STATES = 512, 16


def one_write(device: str, channels: int) -> Run:
    shape = (16, channels, channels, 3, 3)
    return lambda: torch.empty(shape, device=device).fill_(1.0)


def plain_conv(device: str, channels: int) -> Run:
    inputs = conv_inputs(device, channels)
    return forward(lambda x, weight, **_: F.conv2d(x, weight, padding=1), inputs)


def one_read(device: str, size: int) -> Run:
    x = pool_inputs(device, size)["x"]
    return lambda: x.sum()


def exponentials(device: str, length: int) -> Run:
    number = WIDTH * STATES * length
    piece = torch.rand(min(number, 65536) if device == "cpu" else number, device=device)
    return lambda: [torch.exp(piece) for _ in range(number // piece.numel())]


OPERATORS = {
    "float_roll": Operator(
        ops.float_roll,
        float_roll_reference,
        {"four torch.roll": four_rolls},
        roll_inputs,
        one_write,
        "one write",
        (512,),
        (64,),
    ),
    "rolled_conv": Operator(
        conv, conv_reference, {}, conv_inputs, plain_conv, "plain conv", (64, 128, 256, 512), (512,), ("forward",)
    ),
    "group_pool": Operator(pool, pool_reference, {}, pool_inputs, one_read, "one read", (256,), (64,)),
    "selective_scan": Operator(
        ops.selective_scan,
        scan_reference,
        {"unbind loop": unbind_loop, "parallel scan": parallel_scan},
        scan_inputs,
        exponentials,
        "exponentials",
        (4096,),
        (256,),
    ),
}


def forward(function: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return function(**inputs)

    return run


def both_ways(function: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Run:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    with torch.no_grad():
        shape = function(**inputs).shape
    # of chance: all ones would make the gradient by a roll's offsets nothing but rounding
    back = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(next(iter(leaves.values())))

    def run() -> tuple[Tensor, ...]:
        result = function(**leaves)
        return torch.autograd.grad(result, list(leaves.values()), back)

    return run


RUNS = {"forward": forward, "forward+backward": both_ways}


def mamba_ssm_scan() -> Callable[..., Tensor] | str:
    """Its CUDA scan, or why there is none."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # a package for another torch raises what it likes
        return f"not importable ({type(error).__name__})"
    return selective_scan_fn if torch.cuda.is_available() else "it needs a CUDA device"


def operator_rows(name: str, device: str, sizes: Sequence[int], *, compiled: bool, seconds: float) -> Iterator[Row]:
    """One operator's rows: those of the eager implementations and the floor, or those of torch.compile.

    Args:
        name: of the operator.
        device: "cpu" or "cuda".
        sizes: each an inputs' size.
        compiled: only torch.compile of the reference, which can take minutes to begin with.
        seconds: for each implementation and way.
    """
    case = OPERATORS[name]
    for size in sizes:
        inputs = case.inputs(device, size)
        double = {key: tensor.double() for key, tensor in inputs.items()}
        least = median_ms(case.floor(device, size), device, seconds=seconds)
        title = f"{name} {size}" if len(case.sizes) > 1 else name
        if compiled:
            functions = {"torch.compile": torch.compile(case.reference)}
        else:
            yield Row(title, "floor", case.floor_is, least, None, least)
            functions = {**case.others, "reference": case.reference, "kernel": case.kernel}
            if name == "selective_scan" and isinstance(scan := mamba_ssm_scan(), str):
                yield Row(title, "both", "mamba_ssm", note=scan)
            elif name == "selective_scan":
                functions["mamba_ssm"] = scan
        for way in case.ways:
            truth = RUNS[way](case.reference, double)()
            runs = {by: RUNS[way](function, inputs) for by, function in functions.items()}
            for by, made in measure(runs, device, seconds=seconds).items():
                away = apart(made.result, truth)
                yield Row(title, way, by, made.ms, made.peak_mb, least, away, made.note)


def build_rows() -> Iterator[Row]:
    """How long all CPU operators take to compile into an empty cache, to load from it, and to import."""
    code = "import time; from monai_ext import ops; t = time.perf_counter(); ops.load(); print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "MONAI_EXT_CACHE": cache, "MONAI_EXT_OPS": "require"}
        for by in ("a compiler", "the cache"):
            yield Row("build", "all CPU operators", by, 1e3 * _seconds(code, environment))
    code = "import time, torch, monai; t = time.perf_counter(); import monai_ext.ops; print(time.perf_counter() - t)"
    seconds = statistics.median(_seconds(code, dict(os.environ)) for _ in range(3))
    yield Row("import", "beyond torch, monai", "monai_ext.ops", 1e3 * seconds)


def _seconds(code: str, environment: dict[str, str]) -> float:
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    return float(done.stdout.splitlines()[-1])


def claims(rows: Sequence[Row]) -> Iterator[str]:
    """What the rows say of the goals in README.md."""
    ms = {(row.what, row.way, row.by): row.ms for row in rows if row.ms is not None}
    for way in RUNS:
        plain = [
            ms["selective_scan", way, by]
            for by in ("unbind loop", "parallel scan")
            if ("selective_scan", way, by) in ms
        ]
        if plain and ("selective_scan", way, "kernel") in ms:
            yield f"selective_scan {way}: {min(plain) / ms['selective_scan', way, 'kernel']:.0f}x the best of PyTorch's"
    if {("float_roll", "forward", "four torch.roll"), ("float_roll", "forward", "kernel")} <= set(ms):
        faster = ms["float_roll", "forward", "four torch.roll"] / ms["float_roll", "forward", "kernel"]
        yield f"float_roll: {faster:.1f}x four torch.roll a group"
    kernels = [row for row in rows if row.what.startswith("rolled_conv") and row.by == "kernel" and row.ms]
    if kernels:
        ratio = sum(row.ms for row in kernels) / sum(row.floor_ms for row in kernels)
        yield f"rolled_conv: {ratio:.2f} times the plain convolution over all its sizes"


# The table.


def operator_parts(device: str, threads: int, *, quick: bool) -> list[Part]:
    """The processes that measure the operators; torch.compile's apart, since it may take longer than is left."""
    command = (sys.executable, __file__, "--device", device, "--threads", str(threads), *(["--quick"] if quick else []))
    parts = []
    if quick:
        return [Part("operators", (*command, "--rows", *OPERATORS), 180.0)]
    parts += [Part(name, (*command, "--rows", name), 75.0) for name in OPERATORS]
    parts += [Part(f"{name}, torch.compile", (*command, "--compiled", "--rows", name), 45.0) for name in OPERATORS]
    return parts


def own_rows(args: argparse.Namespace) -> Iterator[Row]:
    """The rows of the process that this is."""
    for name in args.rows:
        if name == "build":
            yield from build_rows()
        else:
            case = OPERATORS[name]
            sizes = case.small if args.quick else case.sizes
            seconds = 0.1 if args.quick else 1.5
            yield from operator_rows(name, args.device, sizes, compiled=args.compiled, seconds=seconds)


def main() -> int:
    """Print the table; the status is 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, no torch.compile, no onnxruntime: under a minute"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=12.0, help="for all; what they leave no time for is not run")
    parser.add_argument("--size", type=int, default=128, help="of the bundles' square images")
    parser.add_argument("--rows", nargs="+", choices=[*OPERATORS, "build"], help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    torch.set_num_threads(args.threads)
    if args.rows:
        tell(own_rows(args))
        return 0
    ops.load()
    kernels = ", ".join(f"{name}: {status.kernel}" for name, status in ops.status().items())
    print(f"{machine(args.device)}; {kernels}\n")
    parts = operator_parts(args.device, args.threads, quick=args.quick)
    parts += bundle_rows.parts(args.device, args.threads, quick=args.quick, size=args.size)
    if args.device == "cpu" and not args.quick:
        parts.append(Part("build", (sys.executable, __file__, "--rows", "build"), 60.0))
    table, rows, went_wrong = Table(), [], []
    for outcome in carry_out(parts, seconds=60 * args.minutes):
        for row in outcome.rows:
            rows.append(row)
            table.add(row)
        if outcome.state != "done":
            table.add(Row(outcome.name, "-", "-"))
            went_wrong.append(f"{outcome.name}: {outcome.state}, {outcome.said}")
    print()
    table.end()
    for line in (*went_wrong, *claims(rows)):
        print(line)
    if args.quick:
        print("--quick: no torch.compile, no onnxruntime")
    if args.device == "cpu":
        print("CUDA: not run here; cuda_ops/gpu_session.py does it where there is a device")
    return 1 if any(": failed" in line for line in went_wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
