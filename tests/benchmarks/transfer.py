"""Do phantoms carry over? A small U-Net learns FLAIR from T1 and T2 on phantoms alone, then meets real scans.

    python -m monai_ext phantom --out P --site brats --contrasts T1,T2,FLAIR --randomize --subjects 24 --jobs 2
    python -m monai_ext prepare --datalist P/datalist.json --out PP --spacing 2,2,2 --size 96x112
    python -m monai_ext prepare --datalist REAL.json --out RP --reference T1 --spacing 2,2,2 --size 96x112
    python tests/benchmarks/transfer.py --phantoms PP/datalist.json --real RP/datalist.json --minutes 10 --picture P.png

PSNR is over the mask, before and after one linear intensity fit a volume; beside it, the best linear mix of the two
sources, fitted on the truth itself.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import BasicUNet
from torch.utils.data import ConcatDataset, DataLoader

from monai_ext.data.datalist import Subject, read_datalist
from monai_ext.data.montage import montage
from monai_ext.data.slices import SliceDataset
from monai_ext.data.volumes import read_volume

SOURCES, TARGET = ("T1", "T2"), "FLAIR"


def slices(paths: list[Path]) -> ConcatDataset:
    subjects = [subject for path in paths for subject in read_datalist(path).subjects]
    subjects = [subject for subject in subjects if {*SOURCES, TARGET} <= set(subject.images)]
    return ConcatDataset([SliceDataset(subjects, sources=list(SOURCES), target=[TARGET], slices="nonempty")])


def batches(data: ConcatDataset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For ever, flipped and with the sources' grey values bent at random."""
    loader = DataLoader(data, batch_size=16, shuffle=True, drop_last=True)
    while True:
        for item in loader:
            x, y = item["sources"], item["target"]
            x = x ** torch.empty(len(x), x.shape[1], 1, 1).normal_(0, 0.15).exp()
            axes = [axis for axis in (2,) if torch.rand(()) < 0.5]
            yield x.flip(axes), y.flip(axes)


def train(data: ConcatDataset, minutes: float) -> torch.nn.Module:
    torch.manual_seed(0)
    network = BasicUNet(spatial_dims=2, in_channels=2, out_channels=1, features=(24, 24, 48, 96, 192, 24))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    start, step = time.monotonic(), 0
    for x, y in batches(data):
        left = 1 - (time.monotonic() - start) / (60 * minutes)
        if left <= 0:
            break
        optimizer.param_groups[0]["lr"] = 1e-3 * left
        with torch.autocast("cpu", torch.bfloat16):
            loss = (network(x).float() - y).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 200 == 0:
            print(f"step {step}, {60 * minutes * (1 - left):.0f} s, L1 {loss.item():.4f}", flush=True)
    print(f"{step} steps in {minutes:g} minutes on {len(data)} slices")
    return network.eval()


def psnr(result: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((result - truth) ** 2)))


def fitted(columns: list[np.ndarray], truth: np.ndarray) -> np.ndarray:
    matrix = np.stack([*columns, np.ones_like(truth)], 1)
    return matrix @ np.linalg.lstsq(matrix, truth, rcond=None)[0]


def judge(network: torch.nn.Module, subject: Subject) -> list[np.ndarray]:
    """Print one subject's figures; return a row of the picture."""
    volumes = {name: read_volume(subject.images[name]).array for name in (*SOURCES, TARGET)}
    mask = read_volume(subject.images[TARGET].with_name("mask.nii")).array > 0
    x = torch.from_numpy(np.stack([volumes[name] for name in SOURCES]).transpose(3, 0, 1, 2).copy())
    with torch.no_grad():
        made = np.concatenate([network(part).numpy()[:, 0] for part in x.split(16)]).transpose(1, 2, 0)
    made = np.clip(made, 0, 1) * mask
    truth = volumes[TARGET][mask]
    mix = psnr(fitted([volumes[name][mask] for name in SOURCES], truth), truth)
    after = psnr(fitted([made[mask]], truth), truth)
    print(
        f"{subject.name}: {psnr(made[mask], truth):.1f} dB, {after:.1f} after a linear fit; the sources' mix {mix:.1f}"
    )
    if subject.label is not None:
        lesion = (read_volume(subject.label, allow_constant=True).array > 0) & mask
        around = mask & ~lesion & (volumes["T1"] > np.percentile(volumes["T1"][mask], 60))
        ratios = [volume[lesion].mean() / volume[around].mean() for volume in (made, volumes[TARGET])]
        print(f"    lesion over white matter: {ratios[0]:.2f} made, {ratios[1]:.2f} real")
    k = int(np.median(np.flatnonzero(mask.any((0, 1))))) + 5
    return [np.rot90(volume[:, :, k]) for volume in (volumes["T1"], volumes["T2"], made, volumes[TARGET])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--phantoms", type=Path, nargs="+", required=True)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    network = train(slices(args.phantoms), args.minutes)
    real = [s for s in read_datalist(args.real).subjects if {*SOURCES, TARGET} <= set(s.images)]
    rows = [judge(network, subject) for subject in real]
    if args.picture:
        print(montage(rows, titles=["T1", "T2", "FLAIR made", "FLAIR real"], path=args.picture))


if __name__ == "__main__":
    main()
