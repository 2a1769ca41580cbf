"""How long the dicom command takes beside its network: a study's series to a new one, from the process's start.

    python tests/benchmarks/dicom.py --study STUDY --bundle bundles/agi_net --sources T1 T2 --target PD --series T1=2

The network is the bundle's at paper width with random weights, which take as long as trained ones. What is timed as the
network is its inferer over the slices; the rest is imports, reading, registering, preparing, restoring and writing.
"""

import time

BEGIN = time.perf_counter()

import argparse  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from monai.bundle import ConfigParser  # noqa: E402

from monai_ext.__main__ import main as command  # noqa: E402
from monai_ext.inference.inferers import SlicesInferer  # noqa: E402
from monai_ext.weights import save_weights  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--series", nargs="+", default=[])
    parser.add_argument("--register", default="none", choices=("none", "rigid"))
    args = parser.parse_args()
    spent = []
    whole = SlicesInferer.__call__

    def timed(self, *images, **options):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        answer = whole(self, *images, **options)
        spent.append(time.perf_counter() - start)
        return answer

    SlicesInferer.__call__ = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = ConfigParser(ConfigParser.load_config_file(args.bundle / "configs" / "inference.json"))
        config["sources"], config["target"] = args.sources, args.target
        about = {"bundle": args.bundle.name, "version": "0", "sources": args.sources, "target": [args.target]}
        save_weights(folder / "model.pt", config.get_parsed_content("network_def"), about)
        made = time.perf_counter()  # the weights are the benchmark's own
        words = ["--study", args.study, "--bundle", args.bundle, "--weights", folder / "model.pt"]
        words += ["--target", args.target, "--out", folder / "out", "--register", args.register]
        words += ["--series", *args.series] if args.series else []
        imports = made - BEGIN
        if command(["dicom", *map(str, words)]):
            raise SystemExit(1)
        took = time.perf_counter() - made
    network = sum(spent)
    print(f"imports and weights {imports:.1f} s; command {took:.1f} s, of which the network {network:.1f} s")
    print(f"beyond the network {imports + took - network:.1f} s (goal: 20)")


if __name__ == "__main__":
    main()
