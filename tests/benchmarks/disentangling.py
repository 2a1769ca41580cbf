"""FD-GAN on glioma phantoms, T1 and T2 to FLAIR: blocks 1 and 2, and two U-Nets, on equal terms.

    python -m monai_ext phantom --out P --site glioma --subjects 20 --contrasts T1,T2,FLAIR --spacing 2 --jobs 2
    python -m monai_ext index --root P --out P.json --split 12/2/6
    python -m monai_ext prepare --datalist P.json --out PP --size 112 --jobs 2
    python tests/benchmarks/disentangling.py --dataset_dir PP --out out/disentangling

Each seed trains all four. Printed: PSNR and NRMSE over the brain, a row a seed, then the paired t-test over subjects
(each the mean of its seeds) of FD-GAN with 2 blocks against the others. Other ids (`--epochs 8`) go to the training.
"""

import argparse
from pathlib import Path
from statistics import mean

from scipy import stats
from study import trained_and_evaluated

NETWORKS: dict[str, tuple[list[str], dict[str, object]]] = {
    "2 blocks": ([], {"blocks": 2}),
    "1 block": ([], {"blocks": 1}),
    "pix2pix": (["pix2pix"], {}),  # the paper's baseline
    "BasicUNet": (["unet"], {}),  # MONAI's
}
FIGURES = ("psnr", "nrmse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, more = parser.parse_known_args()
    training = dict(zip((name[2:] for name in more[::2]), more[1::2], strict=True))
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in NETWORKS}  # network, subject, seeds
    print("seed  network        PSNR    NRMSE")
    for seed in args.seeds:
        for name, (overlays, ids) in NETWORKS.items():
            rows = trained_and_evaluated(
                "fd_gan",
                args.out.resolve() / f"{name.replace(' ', '-')}-{seed}",
                data=args.dataset_dir,
                overlays=overlays,
                ids=ids,
                training={"seed": seed, **training},
                evaluation={"name": f"{name}, seed {seed}"},
            )
            brain = {row["subject"]: row for row in rows if row["region"] == "brain"}
            figures = {subject: {key: float(row[key]) for key in FIGURES} for subject, row in brain.items()}
            for subject, values in figures.items():
                found[name].setdefault(subject, []).append(values)
            means = [mean(values[key] for values in figures.values()) for key in FIGURES]
            print(f"{seed:>4}  {name:10}{means[0]:>9.2f}{means[1]:>9.4f}", flush=True)
    ours = found["2 blocks"]
    for name in ("1 block", "pix2pix", "BasicUNet"):
        for key in FIGURES:
            pairs = [[mean(run[key] for run in of[subject]) for subject in ours] for of in (ours, found[name])]
            difference = mean(a - b for a, b in zip(*pairs, strict=True))
            p = stats.ttest_rel(*pairs).pvalue
            print(f"2 blocks less {name}: {key} {difference:+.4f}, paired t-test over {len(ours)} subjects p = {p:.3f}")


if __name__ == "__main__":
    main()
