"""What PMM-Synth costs: from one contrast against from six, and with PFM against without.

    python tests/benchmarks/pmm_synth.py [--width 32] [--size 192] [--repeats 7] [--threads 2] [--amp]

A forward is of one image and makes all six contrasts, whatever is given; what `wanted` spares is printed beside it.
The cases take turns, and the fastest of each counts, for whatever else the machine does only adds to it. One FLOP is
one addition or one multiplication.
"""

import argparse
import contextlib
import sys
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from monai_ext.networks import PMMSynth
from monai_ext.runtime import keep_freed_memory

GIVEN, PARAMETERS, TIME = 0.45, 0.03, 0.02


def operations(network: PMMSynth, arguments: tuple[Tensor | None, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(*arguments)
    return counter.get_total_flops()


def main() -> int:
    """Print the figures; the status is 1 where one misses its goal."""
    parser = argparse.ArgumentParser(description="One contrast against six; PFM against none")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--amp", action="store_true", help="in bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every run of a bundle does
    torch.manual_seed(0)
    network = PMMSynth(width=args.width).eval()
    plain = PMMSynth(width=args.width, personalized=False).eval()
    images, dataset = torch.rand(1, 6, args.size, args.size), torch.tensor([1])
    one, six = torch.eye(6)[:1], torch.ones(1, 6)
    cases: dict[str, tuple[PMMSynth, tuple[Tensor | None, ...]]] = {
        "from one contrast": (network, (images, one, dataset)),
        "from six": (network, (images, six, dataset)),
        "from one, the other five wanted": (network, (images, one, dataset, 1 - one[0])),
        "from one, one wanted": (network, (images, one, dataset, one[0])),
        "from one, without PFM": (plain, (images, one)),
        "from six, without PFM": (plain, (images, six)),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    amp = torch.autocast("cpu", torch.bfloat16) if args.amp else contextlib.nullcontext()
    with torch.no_grad(), amp:
        counts = {name: operations(*case) for name, case in cases.items()}
        for _ in range(args.repeats):
            for name, (case, arguments) in cases.items():
                start = time.perf_counter()
                case(*arguments)
                times[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in times.items()}
    sizes = [sum(parameter.numel() for parameter in net.parameters()) for net in (network, plain)]
    print(f"width {args.width}, {args.size}x{args.size}, {args.threads} threads, {sizes[0] / 1e6:.2f} M parameters")
    for name, count in counts.items():
        print(f"{name:32} {count / 1e9:6.1f} GFLOP {1e3 * best[name]:8.1f} ms")
    figures = {
        "one against six, operations": (counts["from one contrast"] / counts["from six"], GIVEN),
        "one against six, time": (best["from one contrast"] / best["from six"], GIVEN),
        "PFM's share of parameters": (sizes[0] / sizes[1] - 1, PARAMETERS),
        "PFM's share of time, from one": (best["from one contrast"] / best["from one, without PFM"] - 1, TIME),
        "PFM's share of time, from six": (best["from six"] / best["from six, without PFM"] - 1, TIME),
    }
    for name, (value, goal) in figures.items():
        print(f"{name:32} {value:.3f} (goal: at most {goal})")
    return 0 if all(value <= goal for value, goal in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
