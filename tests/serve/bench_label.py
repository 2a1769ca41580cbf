"""What MONAI Label's server adds to inference: a subject of BraTS's size, by request and by the bundle alone.

    python tests/serve/bench_label.py --bundle bundles/agi_net --weights model.pt

Requests and calls of the loaded bundle take turns, both with two threads; the least of each is compared.
"""

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from label_server import ROOT, serving

from monai_ext.synthesis.bundle import BundleSynthesiser

sys.path.append(str(ROOT / "tests" / "benchmarks"))
write_scans = importlib.import_module("inference").write_scans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(2)
    name = args.bundle.resolve().name
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "studies" / "patient").mkdir(parents=True)
        (folder / "models" / name).mkdir(parents=True)
        subject = write_scans(folder / "studies" / "patient")
        for suffix in (".pt", ".json"):
            shutil.copy(args.weights.with_suffix(suffix), folder / "models" / name / f"model{suffix}")
        bundle = BundleSynthesiser(args.bundle, weights=args.weights)
        asked, called = [], []
        with serving(folder, threads=2) as server:
            for _ in range(args.rounds):
                start = time.perf_counter()
                status, answer = server.infer(name, "patient/T1")
                asked.append(time.perf_counter() - start)
                assert status == 200, answer
                start = time.perf_counter()
                bundle(subject.images, folder / "out")
                called.append(time.perf_counter() - start)
    print(f"requests {', '.join(f'{value:.2f}' for value in asked)} s; the first also loads")
    print(f"the bundle alone {', '.join(f'{value:.2f}' for value in called)} s")
    print(f"ratio {min(asked) / min(called):.3f} (goal: 1.15)")


if __name__ == "__main__":
    main()
