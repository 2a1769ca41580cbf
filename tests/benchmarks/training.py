"""What a training step of each bundle's network takes on a CPU: in bfloat16, channels last, compiled; against float32.

    python tests/benchmarks/training.py --threads 2 [--bundles agi_net] [--size 128] [--batch 8] [--compiled]

The network is that of the bundle's train.json, with random weights; a step is the network's alone (forward, L1,
backward, Adam). Printed: the median ms of float32, and how many times as fast the others are, by turns in one process.
`--compiled` adds torch.compile, which compiles for minutes; its operators are the references, which it can follow.
"""

import argparse
import copy
from collections.abc import Callable

import torch
from bundle_rows import network_of
from measuring import plainly
from steps import step
from torch import Tensor, nn
from turns import turns

from monai_ext.catalogue import bundle_names
from monai_ext.runtime import keep_freed_memory


def last(network: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Callable[[], None]:
    """A training step with weights and images channels last."""
    form = torch.channels_last
    return step(copy.deepcopy(network).to(memory_format=form), x.contiguous(memory_format=form), dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", default=list(bundle_names()), choices=list(bundle_names()))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, help="the bundle's if not said")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every run of a bundle does

    print("bundle          float32, ms")
    for bundle in args.bundles:
        torch.manual_seed(0)
        network, sources = network_of(bundle, size=args.size, width=args.width)
        x = torch.rand(args.batch, sources, args.size, args.size)
        runs = {"float32": step(copy.deepcopy(network), x), "bfloat16": step(copy.deepcopy(network), x, torch.bfloat16)}
        runs["float32, channels last"] = last(network, x, None)
        runs["bfloat16, channels last"] = last(network, x, torch.bfloat16)
        if args.compiled:
            runs["bfloat16, torch.compile"] = plainly(step(torch.compile(copy.deepcopy(network)), x, torch.bfloat16))
        seconds = turns(runs, rounds=args.rounds)
        others = ", ".join(f"{name} {seconds['float32'] / taken:.2f}x" for name, taken in seconds.items())
        print(f"{bundle:<14}  {1000 * seconds['float32']:.0f}: {others.removeprefix('float32 1.00x, ')}", flush=True)


if __name__ == "__main__":
    main()
