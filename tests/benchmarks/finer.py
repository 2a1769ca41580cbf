"""HMF-MambaINR at twice the resolution of its sources, against bicubic enlargements, on phantoms or on real scans.

    python -m monai_ext phantom --out P --site glioma --subjects 20 --contrasts T1,T2,FLAIR --spacing 2 --jobs 2
    python -m monai_ext index --root P --out P.json --split 12/2/6
    python -m monai_ext prepare --datalist P.json --out PP --size 112 --jobs 2 --brain-mask ".brain/{name}.nii.gz"
    python tests/benchmarks/finer.py --dataset_dir PP --out out/finer --epochs 6 --slices "['middle', 20]"
    python tests/benchmarks/finer.py --dataset_dir PP --weights bundles/hmf_mambainr/models/model.pt
    python tests/benchmarks/finer.py --scan SCANS --out out/scans --weights bundles/hmf_mambainr/models/model.pt

Trains T1 and T2 to FLAIR at the laptop's size as the paper does and with `--finest 2`, or takes trained `--weights`.
Then the sources are made twice as coarse in the plane, and what each network writes at the pixels of the truth is
compared with it: through its implicit decoder, as its normal output enlarged, and from sources that were enlarged
first. They are the test subjects', or of SCANS, a folder a person: 1 mm, which becomes 2 mm. Printed: PSNR as made and
after one linear fit of the grey values, the mean over the subjects, each less the first network's enlarged output, and
over which mask: the brain where `prepare --brain-mask` or a scan's own background cut it out, else the whole head.
Other ids go to the training.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from likeness import Image, Mask, linear_mix, psnr
from real import read_case
from study import BUNDLES, trained
from torch import Tensor
from torch.nn.functional import interpolate

from monai_ext.data.datalist import read_datalist
from monai_ext.data.layouts import index
from monai_ext.data.prepared import SIDECAR
from monai_ext.data.prepared_volumes import PreparedVolumes
from monai_ext.files import read_json
from monai_ext.synthesis.bundle import BundleSynthesiser

TRAININGS = {"as the paper": 1, "--finest 2": 2}
SOURCES, TARGET = ["T1", "T2"], "FLAIR"
SLICES = 20  # of a subject
FINE = 1.0  # mm, of real scans


class Stack(NamedTuple):
    """Slices of one subject: sources (N, M, H, W), truth and mask (N, H, W), and what the mask marks."""

    sources: Tensor
    truth: Image
    mask: Mask
    marks: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, help="prepared subjects: trained on, and the test split measured")
    parser.add_argument("--scan", type=Path, metavar="SCANS", help="measure these instead, a folder a person")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of the bundle: nothing is trained")
    parser.add_argument("--out", type=Path, help="where trainings go, and scans as they are prepared")
    args, more = parser.parse_known_args()
    if args.dataset_dir is None and (args.scan is None or args.weights is None):
        parser.error("give --dataset_dir, or --scan with --weights")
    if args.out is None and (args.scan is not None or args.weights is None):
        parser.error("give --out")
    if args.weights is not None and more:
        parser.error(f"--weights are trained already: {' '.join(more)} would change nothing")
    training = dict(zip((name[2:] for name in more[::2]), more[1::2], strict=True))
    stacks = list(prepared(args.dataset_dir) if args.scan is None else scanned(args.scan, args.out))
    print(f"{len(stacks)} subjects, over {' or '.join(sorted({stack.marks for stack in stacks}))}")
    print("training       written by                as made          fitted")
    base: tuple[float, float] | None = None
    for name, finest in {args.weights.name: 0}.items() if args.weights else TRAININGS.items():
        weights = args.weights or trained(
            "hmf_mambainr",
            args.out.resolve() / f"finest-{finest}",
            data=args.dataset_dir,
            training={"finest": finest, **training},
        )
        network = BundleSynthesiser(BUNDLES / "hmf_mambainr", weights=weights).network.eval().cpu()
        figures: dict[str, list[tuple[float, float]]] = {}
        for stack in stacks:
            for way, image in written(network, stack.sources).items():
                figures.setdefault(way, []).append(compared(image, stack))
        for way, values in figures.items():
            made, fitted = (mean(column) for column in zip(*values, strict=True))
            base = base or (made, fitted)
            both = f"{made:>6.2f}  {made - base[0]:+.2f}  {fitted:>6.2f}  {fitted - base[1]:+.2f}"
            print(f"{name:15}{way:25}{both}", flush=True)


def prepared(data: Path) -> Iterator[Stack]:
    """The middle slices of the test subjects, as they were prepared."""
    subjects = read_datalist(data / "datalist.json").splits["test"]
    folders = {subject.name: subject.images[TARGET].parent for subject in subjects}
    for item in PreparedVolumes(subjects, sources=SOURCES, target=[TARGET], slices=("middle", SLICES)):
        sources, truth, mask = (item[name][..., item["slices"]].movedim(-1, 0) for name in ("image", "target", "mask"))
        cut = read_json(folders[item["subject"]] / SIDECAR)["parameters"]["brain_mask"]
        marks = f"the brain (--brain-mask {cut})" if cut else "the whole head (no --brain-mask)"
        yield Stack(sources.contiguous(), truth[:, 0].numpy(), mask[:, 0].numpy(), marks)


def scanned(root: Path, out: Path) -> Iterator[Stack]:
    """Slices spread over the brain of everybody in a folder who has the contrasts."""
    for subject in index(root).subjects:
        if not {*SOURCES, TARGET} <= set(subject.images):
            continue
        case = read_case(subject, out / f"cases_{FINE:g}mm", root=root, spacing=FINE)
        filled = np.flatnonzero(case.brain.any((0, 1)))
        chosen = filled[np.linspace(0, len(filled) - 1, SLICES + 2)[1:-1].round().astype(int)]
        sources = np.stack([case.images[name] for name in SOURCES])[..., chosen]
        truth, mask = (np.moveaxis(one[..., chosen], -1, 0) for one in (case.images[TARGET], case.brain))
        yield Stack(torch.from_numpy(np.moveaxis(sources, -1, 0).copy()), truth, mask, "the brain")


def compared(image: Image, stack: Stack) -> tuple[float, float]:
    """PSNR as made and after one linear fit"""
    fitted = linear_mix([image], stack.truth, stack.mask)
    return psnr(image, stack.truth, stack.mask), psnr(fitted, stack.truth, stack.mask)


@torch.inference_mode()
def written(network: torch.nn.Module, sources: Tensor) -> Mapping[str, Image]:
    """(N, M, H, W) -> (N, H, W) by each way from sources of half the size"""
    size = tuple(sources.shape[2:])
    coarse = interpolate(sources, [side // 2 for side in size], mode="bilinear", antialias=True)
    ways = {
        "normal output, bicubic": lambda x: interpolate(network(x), size, mode="bicubic"),
        "implicit decoder": lambda x: network(x, size),
        "from bicubic sources": lambda x: network(interpolate(x, size, mode="bicubic")),
    }
    return {name: torch.cat([way(x) for x in coarse.split(4)])[:, 0].clamp(0, 1).numpy() for name, way in ways.items()}


if __name__ == "__main__":
    main()
