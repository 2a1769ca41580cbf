"""Does rolling help where a source lies apart? AGI-Net and the ResUnet it is built on, T2 moved by 0 to 3 pixels.

    make demo    # for the phantoms
    python tests/benchmarks/misalignment.py --dataset_dir out/demo/prepared --out out/misalignment

Both are trained with each seed, on equal terms, and evaluated as `evaluate.json` does. Printed: PSNR over the brain and
AGI-Net's lead, a row a seed and a column a distance. Other ids (`--epochs 8`) go to the training.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from statistics import mean

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "agi_net"
NETWORKS = {"AGI-Net": [], "ResUnet": ["--network_def#stages", "[]"]}
DISTANCES = [0, 0.5, 1, 1.5, 2, 2.5, 3]


def run(name: str, *options: object) -> None:
    files = [str(BUNDLE / f"configs/{name}.json"), str(BUNDLE.parent / "compact.json")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE), "--config_file", str(files)]
    subprocess.run([*command, *map(str, options)], check=True, stdout=subprocess.DEVNULL)


def brain_psnr(folder: Path) -> list[float]:
    """The mean over the subjects, a figure a distance."""
    with (folder / "subjects.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["region"] == "brain" and row["perturbation"] == "translate"]
    return [mean(float(row["psnr"]) for row in rows if float(row["level"]) == level) for level in DISTANCES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, more = parser.parse_known_args()
    moved = [{"kind": "translate", "contrast": "T2", "levels": DISTANCES}]
    print("seed  network " + "".join(f"{distance:>7} px" for distance in DISTANCES))
    leads = []
    for seed in args.seeds:
        figures = {}
        for name, options in NETWORKS.items():
            folder = args.out.resolve() / f"{name}-{seed}"
            same = ["--dataset_dir", args.dataset_dir.resolve(), "--weights", folder / "model.pt", *options]
            if not (folder / "model.pt").is_file():
                run("train", *same, "--output_dir", folder, "--seed", seed, *more)
            if not (folder / "run" / "subjects.csv").is_file():
                run("evaluate", *same, "--output_dir", folder / "run", "--name", f"{name}, seed {seed}",
                    "--perturbations", moved)  # fmt: skip
            figures[name] = brain_psnr(folder / "run")
            print(f"{seed:>4}  {name}" + "".join(f"{value:>10.2f}" for value in figures[name]), flush=True)
        leads.append([a - b for a, b in zip(*figures.values(), strict=True)])
    print("      lead   " + "".join(f"{mean(lead):>+10.2f}" for lead in zip(*leads, strict=True)))


if __name__ == "__main__":
    main()
