"""Train what recognises a scan's contrast, skull and pose, on phantoms alone, and write it into the package.

    python tools/train_recogniser.py --anatomies LABEL_MAPS --samples samples.npz --jobs 2

LABEL_MAPS is a folder of whole-head label maps in SynthSeg's numbers. Phantoms are rendered at the 4 mm that the
recogniser looks at, each is scanned many times as hospitals do, and what the recogniser measures of these scans is kept
in `--samples`: some 20 minutes on one core, once. The training itself takes a minute.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from monai_ext.data.phantoms.acquisition import Grid
from monai_ext.data.phantoms.anatomy import halved, label_maps, read_anatomy
from monai_ext.data.phantoms.drawing import draw_subject
from monai_ext.data.phantoms.rendering import render
from monai_ext.files import absolute, whole_file
from monai_ext.inference.coarse import CEILING, STEP, TOP, cube
from monai_ext.inference.recogniser import (
    BLOCKS,
    LARGEST,
    POSES,
    UPRIGHT,
    WEIGHTS,
    blocks,
    distances,
    posed,
    profile,
    softmax,
)
from monai_ext.modalities import MODALITIES

GRID = Grid((56, 60, 58), (STEP,) * 3)
BATCH = 256
HELD_OUT = 4  # one person in so many is not trained on: thresholds are measured with them
SCANS = 19  # of each phantom
BOXES = 3  # one scan in so many serves for poses too: turned by right angles and mirrored it is 48
LEAST_SURE = 0.9  # of a pose
WRONGLY_REFUSED = 0.001  # of scans that are what they are said to be
MOST_IMPLAUSIBLE = 0.01
GROUPS = {"T1C": "T1"}  # without enhancement nobody can tell them apart


@dataclass(frozen=True)
class Work:
    """The phantoms to be made of one person's anatomy."""

    anatomy: Path
    person: int
    count: int
    masks: tuple[Path, ...]
    seed: int


def samples_of(work: Work) -> dict[str, np.ndarray]:
    """What the recogniser measures of scans of one person's phantoms; which contrast each is, and if it has a skull."""
    torch.set_num_threads(1)
    anatomy = halved(read_anatomy(work.anatomy, STEP / 2))
    figures, boxes, contrasts, skulls = [], [], [], []
    for number in range(work.count):
        rng = np.random.default_rng([work.seed, work.person, number])
        drawn = draw_subject(rng, anatomy, grid=GRID, contrasts=MODALITIES, masks=work.masks, skull=True)
        made = render(drawn)
        brain = brain_of(made.brain.numpy())
        for scan in range(SCANS):
            contrast = MODALITIES[int(rng.integers(len(MODALITIES)))]
            image = made.images[contrast].numpy()
            image = image / max(float(np.percentile(image, 99.9)), 1e-6)
            seen, skull = scan_of(image, brain, rng, contrast=contrast)
            figures.append(profile(seen))
            contrasts.append(MODALITIES.index(contrast))
            skulls.append(skull)
            if scan % BOXES == 0:
                boxes.append(blocks(seen))
    return {
        "figures": np.stack(figures),
        "contrasts": np.array(contrasts),
        "skulls": np.array(skulls),
        "people": np.full(len(figures), work.person),
        "boxes": np.stack(boxes),
        "box_people": np.full(len(boxes), work.person),
    }


def make_samples(anatomies: Path, masks: Path | None, *, count: int, seed: int, jobs: int) -> dict[str, np.ndarray]:
    """Of `count` phantoms, as many of each anatomy."""
    maps = label_maps(anatomies)
    infarcts = tuple(sorted(masks.glob("*.nii.gz"))) if masks else ()
    work = [Work(path, person, -(-count // len(maps)), infarcts, seed) for person, path in enumerate(maps)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        parts = list(tqdm(pool.map(samples_of, work), total=len(work), desc="anatomies"))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def scan_of(image: np.ndarray, person: "Brain", rng: np.random.Generator, *, contrast: str) -> tuple[np.ndarray, bool]:
    """One image as it may come from a hospital: stripped or with its skull, defaced, cut, noisy; and whether skull."""
    image = image.astype(np.float32)
    skull = bool(rng.uniform() < 0.5)
    if rng.uniform() < 0.25:  # blurred along one axis, as thick slices are
        ndimage.uniform_filter1d(image, 2, axis=int(rng.integers(3)), output=image)
    image **= float(np.exp(np.clip(rng.normal(0, 0.12), -0.3, 0.3)))
    if skull:
        if rng.uniform() < 0.35:
            image[person.before_brain(rng)] = 0
        choice = rng.uniform()
        if choice < 0.3:
            image[image < 0.06] = 0
        elif contrast == "ADC" and choice < 0.6:  # where there is no signal, its ratio is anything
            air = image < 0.06
            image[air] = rng.uniform(0, rng.uniform(0.1, 1), int(air.sum()))
        elif choice < 0.75:
            image += rng.uniform(0, 0.03) * np.abs(rng.standard_normal(image.shape, dtype=np.float32))
    else:
        bumps = rng.standard_normal([n // 6 + 2 for n in image.shape], dtype=np.float32) * rng.uniform(0, 0.25)
        uneven = bumps.repeat(6, 0).repeat(6, 1).repeat(6, 2)[tuple(map(slice, image.shape))]
        image[person.near + uneven < rng.uniform(0.2, 0.65)] = 0
    _cut(image, person, rng, skull=skull)
    if rng.uniform() < 0.5:
        image = image[::-1]
    few = image[::2, ::2, ::2]
    few = few[few > 0]
    threshold = float(np.percentile(few, TOP)) / 12
    head, top = image > threshold, max(float(np.percentile(few[few > threshold], TOP)), 1e-6)
    return np.clip(cube(image, head) / top, 0, CEILING), skull


@dataclass(frozen=True)
class Brain:
    """A phantom's brain: `near` is 1 in it and falls to 0 around it; its first and last voxel along each axis."""

    near: np.ndarray
    ends: tuple[tuple[int, int], ...]

    def before_brain(self, rng: np.random.Generator) -> np.ndarray:
        """What defacing takes: beyond an oblique plane before and below the brain."""
        front, floor = self.ends[1][1] + rng.integers(0, 3), self.ends[2][0] + rng.integers(0, 8)
        angle = rng.uniform(0.3, 1.2)
        j, k = np.ogrid[: self.near.shape[1], : self.near.shape[2]]
        away = (j - front) * np.cos(angle) - (k - floor) * np.sin(angle)
        gone = (away > rng.uniform(-10, -2)) & (j > front - rng.integers(6, 24)) & (k < floor + rng.integers(0, 8))
        return gone[None] & (self.near < 0.15)


def brain_of(brain: np.ndarray) -> Brain:
    lines = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    near = ndimage.gaussian_filter(brain.astype(np.float32), 1.0)
    return Brain(near, tuple((int(line[0]), int(line[-1])) for line in lines))


def _cut(image: np.ndarray, person: Brain, rng: np.random.Generator, *, skull: bool) -> None:
    """The field of view: often it ends with the brain, sometimes within it."""
    low, high = person.ends[2]
    if skull and rng.uniform() < 0.7:  # how much of the neck
        image[:, :, : max(low - int(rng.integers(-4, 10)), 0)] = 0
    if rng.uniform() < 0.25:
        image[:, :, high + int(rng.integers(-4, 5)) :] = 0
    for axis in (0, 1):
        if rng.uniform() < 0.15:
            first, last = person.ends[axis]
            view = image.swapaxes(0, axis)
            view[: max(first + int(rng.integers(-6, 4)), 0)] = 0
            view[last + int(rng.integers(-3, 7)) :] = 0


class Dense(nn.Module):
    """Layers with ReLU between them; figures and hidden ones are dropped at random while it is trained."""

    def __init__(self, widths: Sequence[int], *, dropped: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropped = dropped

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, F) -> the last layer's (B, C), and what goes into it (B, H)."""
        x = functional.dropout(x, self.dropped / 3, self.training)
        for layer in self.layers[:-1]:
            x = functional.dropout(functional.relu(layer(x)), self.dropped, self.training)
        return self.layers[-1](x), x


def train_looks(figures: torch.Tensor, contrasts: torch.Tensor, skulls: torch.Tensor, *, epochs: int) -> Dense:
    """Figures, normalised -> contrasts and skull."""
    network = Dense((figures.shape[1], 192, 64, len(MODALITIES) + 1), dropped=0.25)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        given = figures[rows]
        said, _ = network(given + 0.1 * torch.randn_like(given))
        skull = functional.binary_cross_entropy_with_logits(said[:, -1], skulls[rows].float())
        return functional.cross_entropy(said[:, :-1], contrasts[rows]) + 0.5 * skull

    return fitted(network, loss, count=len(figures), epochs=epochs)


def train_lies(boxes: torch.Tensor, *, epochs: int) -> Dense:
    """Boxes of upright heads -> poses, each batch in one of them."""
    network = Dense((BLOCKS**3, 128, 64, len(POSES)), dropped=0.15)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        given, truth = turned(boxes[rows], torch.randint(len(POSES), (len(rows),)), torch.rand(len(rows)) < 0.5)
        said, _ = network(given * (1 + 0.1 * torch.randn(len(rows), 1)) + 0.03 * torch.randn_like(given))
        return functional.cross_entropy(said, truth)

    return fitted(network, loss, count=len(boxes), epochs=epochs)


def turned(boxes: torch.Tensor, poses: torch.Tensor, mirrored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upright boxes (B, n, n, n) as they lie in poses: (B, n^3) and the poses."""
    arrays = [box[::-1] if flip else box for box, flip in zip(boxes.numpy(), mirrored, strict=True)]
    lie = [posed(array, int(pose)).ravel() for array, pose in zip(arrays, poses, strict=True)]
    return torch.from_numpy(np.stack(lie)), poses


def fitted(network: Dense, loss: Callable[[torch.Tensor], torch.Tensor], *, count: int, epochs: int) -> Dense:
    """`loss` of rows, minimised over shuffled batches."""
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.05)
    steps = max(count // BATCH, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    network.train()
    for _ in tqdm(range(epochs), desc="training", mininterval=10):
        for rows in torch.randperm(count)[: steps * BATCH].reshape(steps, -1):
            value = loss(rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def grouped(probabilities: np.ndarray) -> np.ndarray:
    """(N, 7) with T1C's share added to T1's."""
    result = probabilities.copy()
    for member, leader in GROUPS.items():
        result[:, MODALITIES.index(leader)] += result[:, MODALITIES.index(member)]
        result[:, MODALITIES.index(member)] = 0
    return result


def sure(probability: np.ndarray, right: np.ndarray, *, wrong_share: float) -> float:
    """The least confidence above which no more than `wrong_share` of all scans are seen wrongly."""
    wrong = np.sort(probability[~right])[::-1]
    allowed = int(wrong_share * len(right))
    return float(max(LEAST_SURE, np.nextafter(wrong[allowed], 2))) if len(wrong) > allowed else LEAST_SURE


@torch.inference_mode()
def train(samples: dict[str, np.ndarray], *, seed: int, epochs: int) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The arrays of the recogniser, and what was measured of it on people that it had not seen."""
    held, box_held = (samples[name] % HELD_OUT == 0 for name in ("people", "box_people"))  # no person on both sides
    mean, spread = samples["figures"][~held].mean(axis=0), samples["figures"][~held].std(axis=0) + 1e-3
    figures = torch.from_numpy(np.clip((samples["figures"] - mean) / spread, -LARGEST, LARGEST).astype(np.float32))
    contrasts, skulls = torch.from_numpy(samples["contrasts"]), torch.from_numpy(samples["skulls"])
    boxes = torch.from_numpy(samples["boxes"])
    torch.manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        looks = train_looks(figures[~held], contrasts[~held], skulls[~held], epochs=epochs)
        lies = train_lies(boxes[~box_held], epochs=2 * epochs)

    said, hidden = (part.numpy() for part in looks(figures))
    probabilities, truth = softmax(said[:, :-1]), samples["contrasts"]
    centres = np.stack([hidden[~held & (truth == n)].mean(axis=0) for n in range(len(MODALITIES))])
    # of what is unseen, for what was trained on lies closer: half of it gives the shape, all of it the threshold
    apart = hidden[held] - centres[truth[held]]
    covariance = np.cov(apart.T)
    precision = np.linalg.inv(covariance + 0.05 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    farthest = float(np.percentile(distances(hidden[held], centres, precision), 99))

    leader = np.array([MODALITIES.index(GROUPS.get(name, name)) for name in MODALITIES])[truth]
    together = grouped(probabilities)
    right = together.argmax(axis=1) == leader
    of_truth = together[np.arange(len(truth)), leader][held]
    poses = torch.arange(int(box_held.sum())) % len(POSES)
    poses = torch.cat([torch.full_like(poses, UPRIGHT), poses])
    lying, poses = turned(torch.cat([boxes[box_held]] * 2), poses, torch.rand(len(poses)) < 0.5)
    pose = softmax(lies(lying)[0].numpy())
    upright = pose.argmax(axis=1) == poses.numpy()
    about: dict[str, object] = {
        "farthest": farthest,
        "implausible": min(MOST_IMPLAUSIBLE, float(np.quantile(of_truth, WRONGLY_REFUSED))),
        "sure_of_pose": sure(pose.max(axis=1), upright, wrong_share=0.0005),
        "right": {
            "contrast": float(right[held].mean()),
            "skull": float(((said[:, -1] > 0) == samples["skulls"])[held].mean()),
            "pose": float(upright.mean()),
        },
        "unseen_scans": int(held.sum()),
        "scans": len(held),
        "seed": seed,
    }
    names = [name for name in MODALITIES if name not in GROUPS]
    for name in names:
        rows = held & (leader == MODALITIES.index(name))
        taken = {other: int((together[rows].argmax(axis=1) == MODALITIES.index(other)).sum()) for other in names}
        print(f"{name:>5} of {rows.sum()}: " + ", ".join(f"{other} {n}" for other, n in taken.items() if n))
    arrays = {"mean": mean, "spread": spread, "centres": centres, "precision": precision}
    for name, network in (("looks", looks), ("lies", lies)):
        for n, layer in enumerate(network.layers):
            arrays[f"{name}.weight{n}"] = layer.weight.numpy().astype(np.float16)
            arrays[f"{name}.bias{n}"] = layer.bias.numpy()
    return arrays, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anatomies", type=Path, help="label maps; not needed where --samples is there")
    parser.add_argument("--masks", type=Path, help="a folder of infarcts' masks")
    parser.add_argument("--samples", type=Path, required=True, help="a .npz: made if it is not there")
    parser.add_argument("--count", type=int, default=320, help="phantoms")
    parser.add_argument("--jobs", type=int, default=1, help="processes that make them")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()

    if not args.samples.is_file():
        if args.anatomies is None:
            parser.error(f"{args.samples} is not there: give --anatomies to make it")
        made = make_samples(args.anatomies, args.masks, count=args.count, seed=args.seed, jobs=args.jobs)
        with whole_file(absolute(args.samples)) as partial, partial.open("wb") as file:
            np.savez(file, **made)
    with np.load(args.samples, allow_pickle=False) as stored:
        samples = {name: stored[name] for name in stored.files}
    arrays, about = train(samples, seed=args.seed, epochs=args.epochs)
    print(json.dumps(about, indent=1))
    written = {name: value if value.dtype == np.float16 else value.astype(np.float32) for name, value in arrays.items()}
    with whole_file(absolute(args.out)) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **written, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8))


if __name__ == "__main__":
    main()
