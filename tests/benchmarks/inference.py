"""How long inference takes beside its network: a subject of BraTS's size from two scans to a file, part by part.

    python tests/benchmarks/inference.py                                        the paths alone, a small network
    python tests/benchmarks/inference.py --network monai_ext.networks.AGINet    at paper width, random weights

The bare network's time is that of the same filled slices at the batch size that is best for it, in turns with the
inferer's; each other part is timed alone, in one process with two threads. `--slices` sends only so many of them
through a slow network and counts its time for all. What is restored and saved is a source, which compresses as a
synthesis does. Linux.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from monai.utils.module import locate
from scipy import ndimage
from torch import nn

from monai_ext.data.datalist import Subject
from monai_ext.data.presets import Preset
from monai_ext.data.volumes import Volume, write_volume
from monai_ext.inference.inferers import SlicesInferer
from monai_ext.inference.maker import Maker
from monai_ext.inference.sidecar import synthetic_file
from monai_ext.inference.transforms import PrepareSubjectd, RestoreSubjectd, SaveSyntheticd
from monai_ext.provenance import UNTRAINED
from monai_ext.runtime import autocast, keep_freed_memory, memory_format, wanted_dtype

SHAPE = (240, 240, 155)
AFFINE = np.array([[-1.0, 0, 0, 120], [0, -1, 0, 120], [0, 0, 1, -77], [0, 0, 0, 1]])  # left, posterior, superior
SOURCES = ("T1", "T2")
BATCHES = (1, 2, 4, 8)
ROUNDS = 3


def small() -> nn.Module:
    """Three convolutions, about 0.02 s a slice: for the parts that are not the network."""
    return nn.Sequential(
        nn.Conv2d(len(SOURCES), 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 1, 3, padding=1), nn.Sigmoid(),
    )  # fmt: skip


def write_scans(folder: Path) -> Subject:
    """A skull-stripped head without skull: smooth noise in an ellipsoid, 16 bits, gzipped, as BraTS has it."""
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, length) for length in SHAPE), indexing="ij", sparse=True)
    brain = sum(axis**2 for axis in axes) < 1
    rng = np.random.default_rng(0)
    images = {}
    for contrast in SOURCES:
        texture = ndimage.gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), 1.5)
        images[contrast] = folder / f"{contrast}.nii.gz"
        array = np.where(brain, 500 + 800 * texture + 10 * rng.normal(size=SHAPE), 0).clip(0)
        write_volume(images[contrast], Volume(array.astype(np.float32), AFFINE), dtype=np.int16)
    return Subject("phantom", "benchmark", images)


def seconds(work: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """The least of so many times, and the last result."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        result = work()
        taken.append(time.perf_counter() - begin)
    return min(taken), result


@torch.no_grad()
def bare(network: nn.Module, image: torch.Tensor, amp: bool | str, batch: int) -> float:
    """Seconds of the network alone for every slice, so many at a time."""
    layout = memory_format(image.device, wanted_dtype(image.device, amp))
    batches = [x.contiguous(memory_format=layout) for x in image.permute(3, 0, 1, 2).split(batch)]
    with autocast(image.device, amp):
        return seconds(lambda: [network(x) for x in batches])[0]


def best_batch(network: nn.Module, image: torch.Tensor, amp: bool | str) -> int:
    """Of eight slices at a time, or four, or ..., the number at which they take least."""
    middle = image.shape[-1] // 2 - max(BATCHES) // 2
    eight = image[..., middle : middle + max(BATCHES)]
    bare(network, eight, amp, 1)
    return min(BATCHES, key=lambda batch: bare(network, eight, amp, batch))


def peak_megabytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", help="dotted path of a network of ours; without it three convolutions")
    parser.add_argument("--amp", default="true", choices=("true", "false", "bf16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slices", type=int, help="of the filled ones, from the middle")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every run of a bundle does
    amp: bool | str = {"true": True, "false": False}.get(args.amp, args.amp)
    torch.manual_seed(0)
    network = (locate(args.network)(in_channels=len(SOURCES)) if args.network else small()).eval().to(args.device)
    maker = Maker("benchmark", "0", UNTRAINED, SOURCES, ("PD",), Preset(crop=(240, 240)))
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        subject = write_scans(folder)
        load, item = seconds(lambda: PrepareSubjectd(maker)({"subject": subject}), times=2)
        filled = torch.nonzero(item["image"].amax(dim=(0, 1, 2)))[:, 0]
        count = min(args.slices or len(filled), len(filled))
        first = (len(filled) - count) // 2
        image = item["image"][..., filled[first : first + count]].to(args.device)[None]
        batch = best_batch(network, image[0], amp)
        times = []
        for _ in range(ROUNDS):
            own = bare(network, image[0], amp, batch)
            times.append((own, seconds(lambda: SlicesInferer(batch_size=batch, amp=amp)(image, network))[0]))
        alone, model = (median(column) * len(filled) / count for column in zip(*times, strict=True))
        restore, restored = seconds(lambda: RestoreSubjectd()({**item, "pred": item["image"][1:]}), times=2)
        save, _ = seconds(lambda: SaveSyntheticd(output_dir=folder)(restored), times=2)
        look, _ = seconds(lambda: SaveSyntheticd(output_dir=folder, quick_look=True)(restored))
        size = synthetic_file(folder, "phantom", "PD").stat().st_size / 1e6
    rest = load + restore + save
    name = args.network or "three convolutions"
    print(f"{name}, amp {args.amp}, {args.device}, {count} of {len(filled)} slices")
    print(f"load and prepare {load:.2f} s, restore {restore:.2f} s, save {save:.2f} s ({size:.1f} MB), "
          f"quick look {look - save:+.2f} s")  # fmt: skip
    print(f"bare network {alone / len(filled):.4f} s a slice at its best batch of {batch}: {alone:.2f} s in all")
    print(f"slices inferer {model:.2f} s: {model / alone:.3f} times the bare network (goal: 1.1)")
    print(f"all but the model {rest:.2f} s: {rest / (rest + model):.1%} of the whole (goal: 15 %)")
    print(f"peak memory {peak_megabytes()} MB (goal: 4000)")


if __name__ == "__main__":
    main()
