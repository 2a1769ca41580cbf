"""FD-GAN on glioma phantoms, T1 and T2 to FLAIR: blocks 1 and 2, and two U-Nets, on equal terms.

    python -m monai_ext phantom --out P --site glioma --subjects 20 --contrasts T1,T2,FLAIR --spacing 2 --jobs 2
    python -m monai_ext index --root P --out P.json --split 12/2/6
    python -m monai_ext prepare --datalist P.json --out PP --size 112 --jobs 2
    python tests/benchmarks/disentangling.py --dataset_dir PP --out out/disentangling

Each seed trains all four. Printed, a row a seed: PSNR, NRMSE and stripes over what the masks mark, which is the whole
head unless `prepare --brain-mask ".brain/{name}.nii.gz"` cut the brain out. Stripes are the slices' own offsets, which
tells these apart from an error of structure. Then FD-GAN with 2 blocks against the others by the paired t-test, over
subjects, each the mean of its seeds, and over seeds, each the mean of its subjects: with few seeds the second is the
one that tells of the method. `--size brats` is the paper's size; other ids (`--epochs 8`) go to the training.
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
FIGURES = ("psnr", "nrmse", "stripes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--size", default="compact", help="an overlay of all: the laptop's, or the paper's")
    args, more = parser.parse_known_args()
    training = dict(zip((name[2:] for name in more[::2]), more[1::2], strict=True))
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in NETWORKS}  # network, subject, seeds
    print("seed  network        PSNR    NRMSE  stripes")
    for seed in args.seeds:
        for name, (overlays, ids) in NETWORKS.items():
            rows = trained_and_evaluated(
                "fd_gan",
                args.out.resolve() / f"{name.replace(' ', '-')}-{seed}",
                data=args.dataset_dir,
                overlays=overlays,
                ids=ids,
                training={"seed": seed, **training},
                size=args.size,
                evaluation={"name": f"{name}, seed {seed}"},
            )
            brain = {row["subject"]: row for row in rows if row["region"] == "brain"}
            figures = {subject: {key: float(row[key]) for key in FIGURES} for subject, row in brain.items()}
            for subject, values in figures.items():
                found[name].setdefault(subject, []).append(values)
            means = [mean(values[key] for values in figures.values()) for key in FIGURES]
            print(f"{seed:>4}  {name:10}{means[0]:>9.2f}{means[1]:>9.4f}{means[2]:>9.4f}", flush=True)
    ours = found["2 blocks"]
    for name in ("1 block", "pix2pix", "BasicUNet"):
        for key in FIGURES:
            both = (ours, found[name])
            subjects = [[mean(run[key] for run in of[subject]) for subject in ours] for of in both]
            seeds = [[mean(of[subject][n][key] for subject in ours) for n in range(len(args.seeds))] for of in both]
            difference = mean(a - b for a, b in zip(*subjects, strict=True))
            p = [stats.ttest_rel(*pairs).pvalue for pairs in (subjects, seeds)]
            tests = f"p = {p[0]:.3f} over {len(ours)} subjects, {p[1]:.3f} over {len(args.seeds)} seeds"
            print(f"2 blocks less {name}: {key} {difference:+.4f}, paired t-test {tests}")


if __name__ == "__main__":
    main()
