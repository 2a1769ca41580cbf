"""HMF-MambaINR at twice the resolution of its sources, against bicubic enlargements, on phantoms.

    python -m monai_ext phantom --out P --site glioma --subjects 20 --contrasts T1,T2,FLAIR --spacing 2 --jobs 2
    python -m monai_ext index --root P --out P.json --split 12/2/6
    python -m monai_ext prepare --datalist P.json --out PP --size 112 --jobs 2
    python tests/benchmarks/finer.py --dataset_dir PP --out out/finer --epochs 6 --slices "['middle', 20]"

Trains T1 and T2 to FLAIR at the laptop's size as the paper does and with `--finest 2`. Then the test subjects' sources
are made twice as coarse in the plane, and what each network writes at the pixels of the truth is compared with it:
through its implicit decoder, as its normal output enlarged, and from sources that were enlarged first. Printed: PSNR in
the brain, the mean over the subjects, and each less the normal network's enlarged output. Other ids go to the training.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch
from study import BUNDLES, trained
from torch import Tensor
from torch.nn.functional import interpolate

from monai_ext.data.datalist import read_datalist
from monai_ext.data.slices import SliceDataset
from monai_ext.evaluation.metrics import compare_slices
from monai_ext.synthesis.bundle import BundleSynthesiser

TRAININGS = {"as the paper": 1, "--finest 2": 2}
SOURCES, TARGET = ["T1", "T2"], "FLAIR"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args, more = parser.parse_known_args()
    training = dict(zip((name[2:] for name in more[::2]), more[1::2], strict=True))
    subjects = read_datalist(args.dataset_dir / "datalist.json").splits["test"]
    print("training       written by                    PSNR")
    base: float | None = None
    for name, finest in TRAININGS.items():
        folder = args.out.resolve() / f"finest-{finest}"
        weights = trained("hmf_mambainr", folder, data=args.dataset_dir, training={"finest": finest, **training})
        network = BundleSynthesiser(BUNDLES / "hmf_mambainr", weights=weights).network.eval()
        figures: dict[str, list[float]] = {}
        for subject in subjects:
            slices = SliceDataset([subject], sources=SOURCES, target=[TARGET], slices=("middle", 20))
            items = [slices[index] for index in range(len(slices))]
            sources = torch.stack([torch.as_tensor(item["sources"]) for item in items])
            truth = torch.stack([torch.as_tensor(item["target"]) for item in items])
            mask = (sources.amax(1) > 0) & (truth[:, 0] > 0)
            for way, image in written(network, sources).items():
                psnr = compare_slices(image[:, 0], truth[:, 0], mask=mask)["psnr"]
                figures.setdefault(way, []).append(float(psnr.mean()))
        for way, values in figures.items():
            base = mean(values) if base is None else base
            print(f"{name:15}{way:28}{mean(values):>6.2f}  {mean(values) - base:+.2f}", flush=True)


@torch.inference_mode()
def written(network: torch.nn.Module, sources: Tensor) -> dict[str, Tensor]:
    """(N, M, H, W) -> (N, 1, H, W) by each way from sources of half the size"""
    size = tuple(sources.shape[2:])
    coarse = interpolate(sources, [side // 2 for side in size], mode="bilinear", antialias=True)
    ways = {
        "normal output, bicubic": lambda x: interpolate(network(x), size, mode="bicubic"),
        "implicit decoder": lambda x: network(x, size),
        "from bicubic sources": lambda x: network(interpolate(x, size, mode="bicubic")),
    }
    return {name: torch.cat([way(x) for x in coarse.split(4)]).clamp(0, 1) for name, way in ways.items()}


if __name__ == "__main__":
    main()
