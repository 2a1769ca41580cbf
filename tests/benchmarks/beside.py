"""What other work on the machine costs a network on a CPU, with libgomp's own patience and with that of `monai-ext`.

    python tests/benchmarks/beside.py --threads 2

Torch's threads wait for each other after every operation, and a thread that waits looks again and again before it
sleeps. Where other work has the processor too, it looks in the time that the one it waits for would need. Each row is a
bundle's weights on four slices of 128 x 112 in the precision that inference takes, in a new process each time, alone
and beside as many processes that only count as the machine has processors: run it on one that does nothing else.
"""

import argparse
import os
import subprocess
import sys

from monai_ext.__main__ import PATIENCE

BUNDLES = {"agi_net": 2, "fd_gan": 2, "hmf_mambainr": 2, "pmm_synth": 6}  # channels of the sources
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def measured(bundle: str, *, threads: int, rounds: int) -> None:
    """Print the median ms of one forward, here."""
    import torch  # which reads its environment then
    from engines import shipped
    from turns import turns

    from monai_ext.runtime import autocast, keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()  # as every run of a bundle does
    network, x = shipped(bundle), torch.rand(4, BUNDLES[bundle], 128, 112)

    @torch.inference_mode()
    def forward() -> object:
        with autocast(x.device, True):
            return network(x)

    print(f"{1000 * turns({bundle: forward}, rounds=rounds)[bundle]:.0f}")


def of_a_process(bundle: str, *, patience: str | None, threads: int, rounds: int) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    if patience is not None:
        environment["GOMP_SPINCOUNT"] = patience
    words = [sys.executable, __file__, "--here", bundle, "--threads", str(threads), "--rounds", str(rounds)]
    return subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bundles", nargs="+", default=list(BUNDLES), choices=list(BUNDLES))
    parser.add_argument("--here", choices=list(BUNDLES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        measured(args.here, threads=args.threads, rounds=args.rounds)
        return
    print("| ms | alone | alone, patience of monai-ext | beside other work | beside it, patience of monai-ext |")
    print("|---|---|---|---|---|", flush=True)
    for bundle in args.bundles:
        cells = []
        for others in (0, os.cpu_count() or 1):
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
            try:
                for patience in (None, PATIENCE):
                    how = {"patience": patience, "threads": args.threads, "rounds": args.rounds}
                    cells.append(of_a_process(bundle, **how))
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
        print(f"| {bundle} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
