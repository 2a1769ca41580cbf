"""AGI-Net's speed: against the ResUnet it is built on, and in bfloat16 against float32. Ratios in one run.

    python tests/benchmarks/agi_net.py --threads 2

The networks take turns, and medians are compared, since a machine's speed varies. For the agreement of bfloat16 with
float32 the network first learns the mean of its sources for some steps, so that what it makes is an image. Where
OpenVINO is installed, forwards in it are compared too.
"""

import argparse
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from steps import forward, step
from torch import Tensor, nn
from turns import turns

from monai_ext.inference.graphs import EXAMPLE, OpenVINOGraph
from monai_ext.networks import AGINet
from monai_ext.runtime import device_name, installed, keep_freed_memory


def compare(what: str, times: Mapping[str, float]) -> None:
    (one, ours), (other, theirs) = times.items()
    print(f"{what:44} {one} {ours:7.3f} s  {other} {theirs:7.3f} s  ratio {ours / theirs:.3f}", flush=True)


def agreement(network: nn.Module, size: int) -> float:
    """PSNR of bfloat16 against float32, in dB, at a range of 1."""
    # smooth blobs: as an image has, neighbouring pixels are alike
    coarse = torch.rand(1, 2, size // 16, size // 16, generator=torch.Generator().manual_seed(0))
    x = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    run = step(network.train(), x[..., :96, :96], torch.bfloat16)
    for _ in range(40):
        run()
    single, half = forward(network.eval(), x)(), forward(network, x, torch.bfloat16)().float()
    return float(-10 * (single - half).square().mean().log10())


@torch.no_grad()
def in_openvino(nets: Mapping[str, nn.Module], x: Tensor, *, threads: int, rounds: int) -> None:
    """Compare forwards as OpenVINO runs them, in float32 and bfloat16."""
    example = torch.rand(1, x.shape[1], *EXAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        for name, net in nets.items():
            OpenVINOGraph.convert(net.eval(), example, Path(folder, name))
        for what, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            runs = {}
            for name in nets:
                file = Path(folder, name, OpenVINOGraph.files[0])
                graph = OpenVINOGraph(file, dtype=dtype, threads=threads, streams=1)
                runs[name] = partial(graph, x)
            compare(f"forward in OpenVINO, {what}, batch 1", turns(runs, rounds=rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-alone", action="store_true", help="leave OpenVINO out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every run of a bundle does
    torch.manual_seed(0)
    print(f"{device_name(torch.device('cpu'))}; {args.size} x {args.size}, width {args.width}")
    nets = {"AGI-Net": AGINet(width=args.width), "ResUnet": AGINet(width=args.width, stages=())}
    for batch in (1, 4):
        x = torch.rand(batch, 2, args.size, args.size)
        runs = {name: forward(net.eval(), x) for name, net in nets.items()}
        compare(f"forward, float32, batch {batch}", turns(runs, rounds=args.rounds))
        if batch == 1:
            runs = {name: step(net.train(), x) for name, net in nets.items()}
            compare("training step, float32, batch 1", turns(runs, rounds=args.rounds))
            runs = {name: forward(net.eval(), x, torch.bfloat16) for name, net in nets.items()}
            compare("forward, bfloat16, batch 1", turns(runs, rounds=args.rounds))
        ours = nets["AGI-Net"].eval()
        runs = {"float32": forward(ours, x), "bfloat16": forward(ours, x, torch.bfloat16)}
        compare(f"AGI-Net forward, batch {batch}", turns(runs, rounds=args.rounds))
    if installed("openvino") and not args.torch_alone:
        x = torch.rand(1, 2, args.size, args.size)
        in_openvino(nets, x, threads=args.threads, rounds=args.rounds)
    print(f"bfloat16 agrees with float32 to {agreement(nets['AGI-Net'], args.size):.1f} dB")


if __name__ == "__main__":
    main()
