"""FD-GAN on glioma phantoms, T1 and T2 to FLAIR: LAF's blocks, the number of sources, and two U-Nets, on equal terms.

    python -m monai_ext phantom --out P --site glioma --subjects 20 --contrasts T1,T2,T1C,FLAIR --spacing 2 --jobs 2
    python -m monai_ext index --root P --out P.json --split 12/2/6
    python -m monai_ext prepare --datalist P.json --out PP --size 112 --jobs 2 --brain-mask ".brain/{name}.nii.gz"
    python tests/benchmarks/disentangling.py --dataset_dir PP --out out/disentangling
    python tests/benchmarks/disentangling.py --dataset_dir PP --out out/disentangling \\
        --blocks 1 2 4 8 16 --sources 1 2 3

Each seed trains them all: 2 blocks with 2 sources, which the others are compared with, then other blocks (Figs. 5-6),
other numbers of sources (Table 1: T1; T1 and T2; T1, T2 and T1C), pix2pix's U-Net (Table 2) and MONAI's. Printed, a row
a seed: PSNR, NRMSE and stripes over what the masks mark, which is the brain, as BraTS has it, unless `prepare` was not
told to cut it out. Stripes are the slices' own offsets, which tells these apart from an error of structure. "Style" is
the PSNR that FD-GAN loses in the same place when each subject is drawn in another one's styles, slice by slice: 0 would
be a style that nobody reads, at least 0.3 dB is asked. Then the first against the others by the paired t-test, over
subjects, each the mean of its seeds, and over seeds, each the mean of its subjects: with few seeds the second is the
one that tells of the method. `--size brats` is the paper's size; other ids (`--epochs 8`) go to the training.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from likeness import psnr
from scipy import stats
from study import BUNDLES, trained_and_evaluated

from monai_ext.data.datalist import read_datalist
from monai_ext.data.prepared_volumes import PreparedVolumes
from monai_ext.networks import FDGAN
from monai_ext.synthesis.bundle import BundleSynthesiser

CONTRASTS = ("T1", "T2", "T1C")  # Table 1: the first, the first two, all
TARGET = "FLAIR"
FIRST = "2 blocks"
UNETS = {"pix2pix": "pix2pix", "BasicUNet": "unet"}  # the paper's baseline, and MONAI's
FIGURES = ("psnr", "nrmse", "stripes")
BATCH = 8  # slices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--size", default="compact", help="an overlay of all: the laptop's, or the paper's")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2], help="a side of LAF's grid")
    parser.add_argument("--sources", type=int, nargs="+", default=[2], choices=(1, 2, 3), help="how many")
    args, more = parser.parse_known_args()
    training = dict(zip((name[2:] for name in more[::2]), more[1::2], strict=True))
    networks = compared(args.blocks, args.sources)
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in networks}  # network, subject, seeds
    print("seed  network        PSNR    NRMSE  stripes    style")
    for seed in args.seeds:
        for name, (overlays, ids) in networks.items():
            folder = args.out.resolve() / f"{name.replace(' ', '-')}-{seed}"
            rows = trained_and_evaluated(
                "fd_gan",
                folder,
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
            style = "" if name in UNETS else f"{style_lost(folder / 'model.pt', args.dataset_dir):+9.2f}"
            print(f"{seed:>4}  {name:10}{means[0]:>9.2f}{means[1]:>9.4f}{means[2]:>9.4f}{style}", flush=True)
    ours = found.pop(FIRST)
    for name, other in found.items():
        for key in FIGURES:
            both = (ours, other)
            subjects = [[mean(run[key] for run in of[subject]) for subject in ours] for of in both]
            seeds = [[mean(of[subject][n][key] for subject in ours) for n in range(len(args.seeds))] for of in both]
            difference = mean(a - b for a, b in zip(*subjects, strict=True))
            tests = f"p = {stats.ttest_rel(*subjects).pvalue:.3f} over {len(ours)} subjects"
            if len(args.seeds) > 1:
                tests += f", {stats.ttest_rel(*seeds).pvalue:.3f} over {len(args.seeds)} seeds"
            print(f"{FIRST} less {name}: {key} {difference:+.4f}, paired t-test {tests}")


def compared(blocks: Sequence[int], sources: Sequence[int]) -> dict[str, tuple[list[str], dict[str, object]]]:
    """Overlays and ids of each network, by its name; 2 blocks of 2 sources come first."""
    networks: dict[str, tuple[list[str], dict[str, object]]] = {FIRST: ([], {"blocks": 2})}
    for side in blocks:
        networks.setdefault(f"{side} block{'s' * (side > 1)}", ([], {"blocks": side}))
    for count in sources:
        if count != 2:
            name = f"{count} source{'s' * (count > 1)}"
            networks[name] = ([], {"blocks": 2, "sources": list(CONTRASTS[:count])})
    return networks | {name: ([overlay], {}) for name, overlay in UNETS.items()}


@torch.inference_mode()
def style_lost(weights: Path, data: Path) -> float:
    """PSNR over the masks, in dB, less that in the next subject's styles: the mean over the test subjects."""
    makes = BundleSynthesiser(BUNDLES / "fd_gan", weights=weights)
    network = makes.network.eval().cpu()
    assert isinstance(network, FDGAN)
    subjects = read_datalist(data / "datalist.json").splits["test"]
    volumes = PreparedVolumes(subjects, sources=makes.contrasts, target=[TARGET])
    if len(volumes) < 2:
        raise SystemExit(f"{data} has fewer than two test subjects: whose style would another be drawn in?")
    slices, styles = [], []
    for item in volumes:
        chosen = [part[..., item["slices"]].movedim(-1, 0) for part in (item["image"], item["target"], item["mask"])]
        slices.append(chosen)
        styles.append(torch.cat([network.style(network.laf(x)) for x in chosen[0].split(BATCH)]))
    lost = []
    for own, (sources, truth, mask) in enumerate(slices):
        others = styles[(own + 1) % len(styles)]
        places = torch.arange(len(sources)) * len(others) // len(sources)  # as far up the other's head
        images = [drawn(network, sources, style) for style in (styles[own], others[places])]
        both = [psnr(image.numpy(), truth.numpy(), mask.numpy()) for image in images]
        lost.append(both[0] - both[1])
    return mean(lost)


def drawn(network: FDGAN, sources: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """(N, M, H, W), (N, 8) -> (N, 1, H, W), the sources' anatomy in these styles"""
    parts = zip(sources.split(BATCH), styles.split(BATCH), strict=True)
    images = torch.cat([network.decode(network.content(x), style) for x, style in parts])
    return images[..., : sources.shape[2], : sources.shape[3]].clamp(0, 1)


if __name__ == "__main__":
    main()
