"""What each engine takes for a slice of 256 x 256 on a CPU, and how far it agrees with eager float32, by network.

    python tests/benchmarks/engines.py --threads 2

Networks of paper width have random weights, the bundles' own have those that come with them; the slice is smooth, in
[0, 1]. Runs take turns, and medians are compared, since a machine's speed varies. A graph gets one slice, as torch
does. HMF-MambaINR has no graph: its scan goes step by step, which takes an exporter minutes; torch has a kernel for it.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from turns import turns

from monai_ext.catalogue import find_bundle
from monai_ext.inference.graphs import EXAMPLE, OnnxruntimeGraph, OpenVINOGraph
from monai_ext.inference.remembered import processor
from monai_ext.networks import FDGAN, AGINet, PMMSynth
from monai_ext.networks.pmm_synth import OneTask
from monai_ext.runtime import keep_freed_memory, version
from monai_ext.synthesis.bundle import BundleSynthesiser

COLUMNS = ("eager float32", "autocast bf16", "OpenVINO f32", "OpenVINO bf16", "onnxruntime")


def one_task(network: PMMSynth) -> nn.Module:
    """T1 and T2 -> FLAIR, as nobody's."""
    names = network.modalities
    given, wanted = (torch.tensor([name in some for name in names]) for some in (("T1", "T2"), ("FLAIR",)))
    return OneTask(network.eval(), given=given, site=None, wanted=wanted)


def shipped(bundle: str) -> nn.Module:
    """The bundle's network with its weights."""
    network: nn.Module = BundleSynthesiser(find_bundle(bundle)).network.cpu().eval()
    return one_task(network) if isinstance(network, PMMSynth) else network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "AGI-Net, paper width": (AGINet, 2),
    "AGI-Net, its weights": (lambda: shipped("agi_net"), 2),
    "FD-GAN, paper width": (FDGAN, 2),
    "FD-GAN, its weights": (lambda: shipped("fd_gan"), 2),
    "PMM-Synth, paper width": (lambda: one_task(PMMSynth()), 6),
    "PMM-Synth, its weights": (lambda: shipped("pmm_synth"), 6),
}


def smooth(channels: int, size: int) -> Tensor:
    """As an image has it, neighbouring pixels are alike; and a border of zeros."""
    coarse = torch.rand(1, channels, size // 16, size // 16, generator=torch.Generator().manual_seed(0))
    image = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return nn.functional.pad(image[..., 16:-16, 16:-16], (16, 16, 16, 16))


def agreement(made: Tensor, exact: Tensor) -> float:
    """PSNR in dB of what is in [0, 1], of the channels that show anything, at a range of 1."""
    shown = (exact != 0).flatten(2).any(2)[0]
    errors = (made.float().clamp(0, 1) - exact.clamp(0, 1))[:, shown]
    return float(-10 * errors.square().mean().log10())


@torch.no_grad()
def measure(name: str, network: nn.Module, image: Tensor, *, threads: int, rounds: int, folder: Path) -> None:
    """Print a network's row."""

    def half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(image)

    runs: dict[str, Callable[[], Tensor]] = {"eager float32": lambda: network(image), "autocast bf16": half}
    example = torch.rand(1, image.shape[1], *EXAMPLE)
    for kind in (OpenVINOGraph, OnnxruntimeGraph):
        kind.convert(network, example, folder)
    for column, dtype in (("OpenVINO f32", None), ("OpenVINO bf16", torch.bfloat16)):
        graph = OpenVINOGraph(folder / OpenVINOGraph.files[0], dtype=dtype, threads=threads, streams=1)
        runs[column] = lambda graph=graph: graph(image)
    other = OnnxruntimeGraph(folder / OnnxruntimeGraph.files[0], dtype=None, threads=threads, streams=1)
    runs["onnxruntime"] = lambda: other(image)
    exact = network(image)
    near = {column: agreement(run(), exact) for column, run in runs.items()}
    times = turns(runs, rounds=rounds)
    cells = [f"{1000 * times['eager float32']:.0f}"]
    for column in COLUMNS[1:]:
        ratio = times["eager float32"] / times[column]
        cells.append(f"{1000 * times[column]:.0f} ({ratio:.2f}x, {near[column]:.0f} dB)")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every run of a bundle does
    torch.manual_seed(0)
    software = ", ".join(f"{name} {version(name)}" for name in ("torch", "openvino", "onnxruntime"))
    print(f"{processor()}, {args.threads} threads; {software}")
    print(f"{args.size} x {args.size}, batch 1: median ms (times eager float32's speed, agreement with it)\n")
    print("| | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name in args.networks:
        make, channels = NETWORKS[name]
        with tempfile.TemporaryDirectory() as folder:
            image = smooth(channels, args.size)
            measure(name, make().eval(), image, threads=args.threads, rounds=args.rounds, folder=Path(folder))


if __name__ == "__main__":
    main()
