"""HMF-MambaINR's size, speed and memory: every figure that its README has, against its scan in plain PyTorch.

    python tests/benchmarks/hmf_mambainr.py --threads 2

Runs take turns, and medians are compared, since a machine's speed varies. A training step is the network's alone:
forward, L1, backward, Adam. The peak memory of one is that of a process of its own.
"""

import argparse
import io
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import plainly
from steps import forward, step, through_onnx
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from turns import turns

from monai_ext import ops
from monai_ext.networks import HMFMambaINR
from monai_ext.runtime import device_name, keep_freed_memory

SCAN = ops.selective_scan


@contextmanager
def scanning(scan: Callable[..., Tensor]) -> Iterator[None]:
    ops.selective_scan = scan
    try:
        yield
    finally:
        ops.selective_scan = SCAN


def share_of_scans(network: nn.Module, x: Tensor) -> float:
    """Of a forward's time, the part within the scans."""
    spent = []

    def timed(*args: object, **options: object) -> Tensor:
        start = time.perf_counter()
        y = SCAN(*args, **options)
        spent.append(time.perf_counter() - start)
        return y

    run, shares = forward(network, x), []
    with scanning(timed):
        run()
        for _ in range(3):
            spent.clear()
            start = time.perf_counter()
            run()
            shares.append(sum(spent) / (time.perf_counter() - start))
    return median(shares)


def peak_of_a_step(size: int, width: int) -> float:
    """GB, of this process."""
    step(HMFMambaINR(width=width), torch.rand(1, 2, size, size))()
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024 / 1e9  # ru_maxrss would be the parent's where that is larger


def archives_differ_by(network: nn.Module, x: Tensor) -> tuple[float, float]:
    """The largest difference of the TorchScript and the ONNX archive's images from the network's."""
    expected = forward(network, x)().numpy()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network.eval()), file)
    file.seek(0)
    with torch.no_grad():
        script = torch.jit.load(file)(x).numpy()
    answer = through_onnx(network, x)().numpy()
    return float(np.abs(script - expected).max()), float(np.abs(answer - expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--archive-size", type=int, default=64)
    parser.add_argument("--peak", action="store_true", help="print the peak memory of a training step, and no more")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every run of a bundle does
    torch.manual_seed(0)
    if args.peak:
        print(peak_of_a_step(args.size, args.width))
        return
    network, x = HMFMambaINR(width=args.width), torch.rand(1, 2, args.size, args.size)
    print(f"{device_name(torch.device('cpu'))}; {args.size} x {args.size}, width {args.width}, {args.threads} threads")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(x)
    millions = sum(value.numel() for value in network.parameters()) / 1e6
    print(f"parameters {millions:.2f} M, {counter.get_total_flops() / 1e9:.1f} GFLOP without the scans")
    double = torch.rand(1, 2, 2 * args.size, 2 * args.size)
    runs = {
        "float32": forward(network, x),
        "bfloat16": forward(network, x, torch.bfloat16),
        "plain scan": plainly(forward(network, x)),
        "twice the size": forward(network, double),
        "training step": step(network, x),
    }
    times = turns(runs, rounds=args.rounds)
    for name, seconds in times.items():
        print(f"{name:16} {seconds:7.3f} s  {seconds / times['float32']:6.2f} of the forward in float32", flush=True)
    print(f"forward / with the scan in plain PyTorch {times['float32'] / times['plain scan']:.2f}")
    print(f"share of the scans {share_of_scans(network, x):.1%}")
    command = [sys.executable, __file__, "--peak", "--size", str(args.size), "--width", str(args.width)]
    peak = subprocess.run([*command, "--threads", str(args.threads)], capture_output=True, text=True, check=True)
    print(f"peak memory of a training step {float(peak.stdout):.2f} GB", flush=True)
    small = torch.rand(1, 2, args.archive_size, args.archive_size)
    script, onnx = archives_differ_by(network, small)
    print(
        f"at {args.archive_size} x {args.archive_size} the TorchScript archive differs by {script:.1e}, ONNX {onnx:.1e}"
    )


if __name__ == "__main__":
    main()
