"""Does rolling help where a source lies apart? AGI-Net and the ResUnet it is built on, T2 moved by 0 to 3 pixels.

    make demo    # for the phantoms
    python tests/benchmarks/misalignment.py --dataset_dir out/demo/prepared --out out/misalignment
    python tests/benchmarks/misalignment.py --dataset_dir ixi --out out/paper --size ixi    # the paper's, for a GPU

Both are trained with each seed, on equal terms, and evaluated as `evaluate.json` does. Printed: PSNR over what masks
mark (the whole head, unless `prepare --brain-mask` cut the brain out) and AGI-Net's lead, a row a seed, then their
means, and a column a distance, random up to it by `translate`, all of it by `--kind displace`. Other ids go to the
training: `--epochs 8`, or `--augment "[{'kind': 'translate', 'contrast': 'T2', 'levels': [0, 3]}]"`, which lets both
see contrasts that lie apart.
"""

import argparse
from pathlib import Path
from statistics import mean

from study import trained_and_evaluated

NETWORKS: dict[str, dict[str, object]] = {"AGI-Net": {}, "ResUnet": {"network_def#stages": "[]"}}
DISTANCES = [0, 0.5, 1, 1.5, 2, 2.5, 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kind", choices=["translate", "displace"], default="translate")
    parser.add_argument("--size", default="compact", help="an overlay of both: the laptop's, or a paper's")
    parser.add_argument("--target", default="PD", help="the contrast that T1 and T2 are to give")
    args, more = parser.parse_known_args()
    training = dict(zip((name[2:] for name in more[::2]), more[1::2], strict=True))
    moved = [{"kind": args.kind, "contrast": "T2", "levels": DISTANCES}]
    print("seed  network " + "".join(f"{distance:>7} px" for distance in DISTANCES))
    found: dict[str, list[list[float]]] = {name: [] for name in (*NETWORKS, "lead")}
    for seed in args.seeds:
        for name, ids in NETWORKS.items():
            rows = trained_and_evaluated(
                "agi_net",
                args.out.resolve() / f"{name}-{seed}",
                data=args.dataset_dir,
                ids={**ids, "target": args.target},
                training={"seed": seed, **training},
                size=args.size,
                evaluation={"name": f"{name}, seed {seed}", "perturbations": moved},
            )
            brain = [row for row in rows if row["region"] == "brain" and row["perturbation"] == args.kind]
            figures = [mean(float(row["psnr"]) for row in brain if float(row["level"]) == at) for at in DISTANCES]
            found[name].append(figures)
            print(f"{seed:>4}  {name:<8}" + "".join(f"{value:>10.2f}" for value in figures), flush=True)
        ours, its = (found[name][-1] for name in NETWORKS)
        found["lead"].append([a - b for a, b in zip(ours, its, strict=True)])
        print(f"{seed:>4}  lead    " + "".join(f"{value:>+10.2f}" for value in found["lead"][-1]), flush=True)
    for name, lines in found.items():
        print(f"mean  {name:<8}" + "".join(f"{value:>10.2f}" for value in map(mean, zip(*lines, strict=True))))


if __name__ == "__main__":
    main()
