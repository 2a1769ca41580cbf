"""Every bundle's network, its forward and its training step, against the same in plain PyTorch, compiled and exported.

    python tests/benchmarks/bundle_rows.py --rows agi_net [--kind compiled] [--size 128] [--quick]

prints the rows that `make bench` and cuda_ops/gpu_session.py put into their tables. The network is that of the bundle's
train.json, at its width, with random weights. "reference" is the network with its operators in plain PyTorch;
torch.compile and onnxruntime are of that too, OpenVINO of the graph that inference takes. The floor is the time of one
large matrix product with as many operations as PyTorch's counter finds, in the same precision; Winograd's convolutions
have fewer, so that 1 is no hard limit.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from measuring import Run, apart, measure, median_ms, plain_operators, plainly
from parts import Part, Row, tell
from steps import forward, step, through_onnx
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from monai_ext.catalogue import bundle_names, find_bundle
from monai_ext.inference.graphs import OpenVINOGraph, why_not
from monai_ext.ops import checks
from monai_ext.runtime import keep_freed_memory, wanted_dtype

KINDS = {"eager": 120.0, "graphed": 40.0, "exported": 45.0, "compiled": 60.0}  # and the seconds that each may take
SAME = "no operator of ours is in it: the same as the reference"
WAYS: dict[str, Callable[..., Run]] = {"forward": forward, "training step": step}


def network_of(bundle: str, *, size: int, width: int | None = None) -> tuple[nn.Module, int]:
    """The network of the bundle's train.json, and its number of sources."""
    from monai.bundle import ConfigParser  # seconds, which those who only list the parts are spared

    parser = ConfigParser()
    parser.read_config(find_bundle(bundle) / "configs" / "train.json")
    parser.update({"image_size": size, **({} if width is None else {"width": width})})
    return parser.get_parsed_content("network_def"), len(parser.get_parsed_content("sources"))


def has_operators(network: nn.Module, x: Tensor) -> bool:
    """Whether an operator of ours is in its forward."""
    asked = []

    def stands_alone() -> bool:
        asked.append(True)
        return True

    kept, checks.stands_alone = checks.stands_alone, stands_alone
    try:
        forward(network, x)()
    finally:
        checks.stands_alone = kept
    return bool(asked)


def rate_of(device: str, dtype: torch.dtype | None, *, seconds: float) -> float:
    """Operations a millisecond in one large matrix product, tensor cores for float32 included."""
    side = 8192 if device == "cuda" else 1024
    matrix = torch.rand(side, side, device=device, dtype=dtype or torch.float32)
    kept = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return 2 * side**3 / median_ms(lambda: matrix @ matrix, device, seconds=seconds)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = kept


def operations(run: Run) -> int:
    """Of one run, as PyTorch's counter finds them: those of products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def graphed(network: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Run:
    """The whole forward as one CUDA graph."""
    network.eval()
    with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                network(x)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = network(x)

    def run() -> Tensor:
        graph.replay()
        return made

    return run


def through_openvino(network: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Run:
    """The graph that `--engine openvino` takes."""
    with tempfile.TemporaryDirectory() as folder:
        OpenVINOGraph.convert(network.eval(), x[:1], Path(folder))
        graph = OpenVINOGraph(Path(folder) / OpenVINOGraph.files[0], dtype=dtype, threads=torch.get_num_threads())
    return lambda: graph(x)


def made_by(kind: str, network: nn.Module, x: Tensor, way: str, dtype: torch.dtype | None) -> Mapping[str, Run]:
    """The runs of one kind by their names; none where it has none of this way."""
    make = WAYS[way]
    if kind == "eager":
        runs = {"reference": plainly(make(network, x, dtype))}
        return runs | ({"ours": make(network, x, dtype)} if has_operators(network, x) else {})
    if kind == "compiled":
        return {"torch.compile": plainly(make(torch.compile(network), x, dtype))}
    if way != "forward":
        return {}
    if kind == "graphed":
        return {"CUDA graph": graphed(network, x, dtype)}
    runs = {}
    if dtype is None:
        with plain_operators():
            runs["onnxruntime"] = through_onnx(network, x, threads=torch.get_num_threads())
    if not why_not(network.eval(), x):
        runs["OpenVINO"] = through_openvino(network, x, dtype)
    return runs


def rows(
    bundle: str, kind: str, device: str, *, size: int, batch: int, seconds: float, width: int | None = None
) -> Iterator[Row]:
    """One bundle's rows of one kind, in float32 and, where the machine has it, in bfloat16.

    Args:
        bundle: its name.
        kind: of `KINDS`.
        device: "cpu" or "cuda".
        size: of the square images.
        batch: how many of them.
        seconds: for each implementation and way.
        width: of the network; None is the bundle's.
    """
    keep_freed_memory()  # as every run of a bundle does
    torch.manual_seed(0)
    network, sources = network_of(bundle, size=size, width=width)
    network, x = network.to(device), torch.rand(batch, sources, size, size).to(device)
    truth = plainly(forward(network, x))().clone()
    if kind == "eager" and not has_operators(network, x):
        yield Row(bundle, "all", "ours", note=SAME)
    dtypes = [None, torch.bfloat16]
    if wanted_dtype(device, True) is None:
        dtypes = [None]
        yield Row(bundle, "bf16", "all", note="this processor does not compute in bfloat16")
    rates = {dtype: rate_of(device, dtype, seconds=min(seconds, 0.5)) for dtype in dtypes}
    for way in WAYS:  # forwards first: a training step moves the weights that gave the truth
        for dtype in dtypes:
            runs = made_by(kind, network, x, way, dtype)
            if not runs:
                continue
            least = operations(WAYS[way](network, x, dtype)) / rates[dtype]
            title = way if dtype is None else f"{way}, bf16"
            if kind == "eager":
                yield Row(bundle, title, "floor", least, None, least)
            for by, made in measure(runs, device, seconds=seconds, memory=keep_freed_memory).items():
                yield Row(bundle, title, by, made.ms, made.peak_mb, least, apart(made.result, truth), made.note)


def parts(
    device: str, threads: int, *, quick: bool, size: int, batch: int = 1, kinds: tuple[str, ...] = ()
) -> list[Part]:
    """The processes that measure all bundles, kind after kind; --quick has one, for what is eager."""
    command = (sys.executable, __file__, "--device", device, "--threads", str(threads), "--batch", str(batch))
    if quick:
        return [Part("bundles", (*command, "--quick", "--rows", *bundle_names()), 180.0)]
    kinds = kinds or ("eager", "exported", "compiled", *(["graphed"] if device == "cuda" else []))
    return [
        Part(f"{name}, {kind}", (*command, "--size", str(size), "--kind", kind, "--rows", name), KINDS[kind])
        for kind in kinds
        for name in bundle_names()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=bundle_names(), required=True)
    parser.add_argument("--kind", choices=KINDS, default="eager")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="narrow networks, small images")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for bundle in args.rows:
        size, width = (32, 8) if args.quick else (args.size, None)
        seconds = 0.1 if args.quick else 1.5
        tell(rows(bundle, args.kind, args.device, size=size, batch=args.batch, seconds=seconds, width=width))


if __name__ == "__main__":
    main()
