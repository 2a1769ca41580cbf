"""FD-GAN's speed: against the same layers with no LAF and plain instance norm, and in bfloat16 against float32.

    python tests/benchmarks/fd_gan.py --threads 2

The networks take turns, and medians are compared, since a machine's speed varies. "Plain" computes the same
convolutions: its SPE reads the sources' mean and shifts the image. "Fewer" has no SPE either, for which it has no use.
"""

import argparse

import torch
from agi_net import compare
from steps import forward, step
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from turns import turns

from monai_ext.networks import FDGAN
from monai_ext.networks.layers import InstanceNorm
from monai_ext.runtime import device_name, keep_freed_memory


class PlainResBlock(nn.Module):
    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        first, second = InstanceNorm(channels), InstanceNorm(channels)
        self.layers = nn.Sequential(block.first, first, nn.ReLU(), block.second, second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Plain(nn.Module):
    """The layers of an FDGAN, without what it does with them."""

    def __init__(self, network: FDGAN, *, width: int, specific: bool) -> None:
        super().__init__()
        self.sre, self.fuse, self.up = network.sre, network.fuse, network.decoder.up
        self.blocks = nn.Sequential(*(PlainResBlock(block, 4 * width) for block in network.decoder.blocks))
        self.spe = network.spe if specific else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.blocks(self.fuse(self.sre(x))))
        if self.spe is not None:
            y = y + self.spe.statistics(self.spe(x.mean(1, keepdim=True))).mean()
        return y


def describe(name: str, network: nn.Module, x: Tensor) -> None:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(x)
    parameters = sum(value.numel() for value in network.parameters())
    print(f"{name:8} {parameters / 1e6:6.2f} million parameters, {counter.get_total_flops() / 1e9:6.1f} GFLOP an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every run of a bundle does
    torch.manual_seed(0)
    print(f"{device_name(torch.device('cpu'))}; {args.size} x {args.size}, width {args.width}")
    x = torch.rand(1, 2, args.size, args.size)
    ours = FDGAN(width=args.width, image_size=args.size)
    others = {"plain": Plain(FDGAN(width=args.width), width=args.width, specific=True)}
    others["fewer"] = Plain(FDGAN(width=args.width), width=args.width, specific=False)
    for name, network in {"FD-GAN": ours, **others}.items():
        describe(name, network, x)
    for what, run in (("forward", forward), ("training step", step)):
        times = turns({name: run(net, x) for name, net in {"FD-GAN": ours, **others}.items()}, rounds=args.rounds)
        for name in others:
            compare(f"{what}, float32", {"FD-GAN": times["FD-GAN"], name: times[name]})
    compare(
        "FD-GAN forward",
        turns({"float32": forward(ours, x), "bfloat16": forward(ours, x, torch.bfloat16)}, rounds=args.rounds),
    )


if __name__ == "__main__":
    main()
