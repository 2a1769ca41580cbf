"""Train what recognises a scan's contrast, skull and pose, on phantoms alone, and write it into the package.

    python -m monai_ext phantom --stream POOL --once --anatomy LABEL_MAPS --spacing 2 --canvas 96x112 --depth 80
    python tools/train_recogniser.py POOL --seconds 1500

Every contrast of the pool's phantoms is averaged to the 4 mm that the recogniser looks at. In training each is scanned
anew every time, as hospitals do: sharp or blurred, stripped or not, defaced, cut off, noisy, and turned over. Phantoms
of one person in four are not trained on: thresholds are measured with them.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional
from tqdm import tqdm

from monai_ext.data.datalist import read_datalist
from monai_ext.data.volumes import Volume, read_volume
from monai_ext.files import absolute, read_json, whole_file
from monai_ext.inference.coarse import STEP, cube, foreground, scaled
from monai_ext.inference.recogniser import POSES, UPRIGHT, WEIGHTS, Recogniser, distances, posed, trained
from monai_ext.modalities import MODALITIES
from monai_ext.runtime import autocast

BATCH = 32
HELD_OUT = 4  # one person in so many is not trained on
MEASURED = 14  # scans of each held-out phantom
RATE = 2e-3
LEAST_SURE = 0.9  # of a pose
WRONGLY_REFUSED = 0.001  # of scans that are what they are said to be
MOST_IMPLAUSIBLE = 0.01
GROUPS = {"T1C": "T1"}  # without enhancement nobody can tell them apart


class Scans:
    """Phantoms of hospitals' protocols, at 4 mm, scanned anew each time that they are asked for."""

    def __init__(self, folders: list[Path]) -> None:
        self.images, self.brains, self.skulls = [], [], []
        for folder in tqdm(folders, desc="reading"):
            volumes = [read_volume(folder / f"{name}.nii", allow_constant=True) for name in MODALITIES]
            self.images.append(np.stack([averaged(volume) for volume in volumes]).astype(np.float16))
            self.brains.append(brain_of(averaged(read_volume(folder / "brain.nii")) > 0.5))
            self.skulls.append(bool(facts_of(folder)["skull"]))

    def __len__(self) -> int:
        return len(self.images)

    def scan(self, which: int, contrast: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """What is seen of a contrast of a phantom, upright; and whether its skull is there."""
        image, skull = self.images[which][contrast].astype(np.float32), self.skulls[which]
        return scan_of(image, self.brains[which], rng, contrast=MODALITIES[contrast], skull=skull)


def facts_of(folder: Path) -> dict[str, object]:
    """What was drawn of a phantom."""
    return dict(read_json(folder / "phantom.json"))


def averaged(volume: Volume) -> np.ndarray:
    """Whole voxels averaged to cubes of STEP mm."""
    counts = [round(STEP / float(side)) for side in volume.spacing]
    kept = [side // count * count for side, count in zip(volume.shape, counts, strict=True)]
    blocks = [part for side, count in zip(kept, counts, strict=True) for part in (side // count, count)]
    return volume.array[: kept[0], : kept[1], : kept[2]].reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32)


def people_of(pools: list[Path]) -> tuple[list[Path], list[Path]]:
    """The phantoms' folders: those to train on, and those of people that are held out."""
    folders = [
        absolute(next(iter(subject.images.values()))).parent
        for pool in pools
        for split in read_datalist(pool / "datalist.json").splits.values()
        for subject in split
    ]
    facts = {folder: facts_of(folder) for folder in folders}
    people = sorted({str(one["anatomy"]) for one in facts.values()})
    held = set(people[::HELD_OUT])
    hospitals = [folder for folder in folders if not facts[folder]["wide"]]
    return (
        [folder for folder in hospitals if facts[folder]["anatomy"] not in held],
        [folder for folder in hospitals if facts[folder]["anatomy"] in held],
    )


def scan_of(
    image: np.ndarray, person: "Brain", rng: np.random.Generator, *, contrast: str, skull: bool
) -> tuple[np.ndarray, bool]:
    """One image as it may come from a hospital: stripped or with its skull, defaced, cut, noisy; and whether skull."""
    whole, skull = skull, skull and bool(rng.uniform() < 0.7)
    image += rng.uniform(-0.8, 0.8) * (image - ndimage.gaussian_filter(image, 0.7))
    if rng.uniform() < 0.25:  # blurred along one axis, as thick slices are
        ndimage.uniform_filter1d(image, 2, axis=int(rng.integers(3)), output=image)
    image = np.maximum(image, 0) ** float(np.exp(np.clip(rng.normal(0, 0.12), -0.3, 0.3)))
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
    elif whole:
        bumps = rng.standard_normal([n // 6 + 2 for n in image.shape], dtype=np.float32) * rng.uniform(0, 0.25)
        uneven = bumps.repeat(6, 0).repeat(6, 1).repeat(6, 2)[tuple(map(slice, image.shape))]
        image[person.near + uneven < rng.uniform(0.2, 0.65)] = 0
    _cut(image, person, rng, skull=skull)
    if rng.uniform() < 0.5:
        image = image[::-1]
    head = foreground(np.ascontiguousarray(image))
    if not head.any():  # all of it was cut off
        head[:] = True
    return cube(scaled(image, head), head), skull


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
    return Brain(near.astype(np.float16), tuple((int(line[0]), int(line[-1])) for line in lines))


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


def train(scans: Scans, *, seconds: float, seed: int, begin: Path | None) -> Recogniser:
    """Until the time is up, the rate falling to 0 with it."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = Recogniser()
    if begin is not None:
        network.load_state_dict(trained(begin).network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    network.train()
    began, steps, right = time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (steps + 1) / 100) * (1 - share)
        contrasts = rng.integers(len(MODALITIES), size=BATCH)
        taken = [scans.scan(int(rng.integers(len(scans))), int(contrast), rng) for contrast in contrasts]
        poses = np.where(rng.uniform(size=BATCH) < 0.5, UPRIGHT, rng.integers(len(POSES), size=BATCH))
        cubes = np.stack([posed(image, int(pose)) for (image, _), pose in zip(taken, poses, strict=True)])
        given = torch.from_numpy(cubes)[:, None] * (1 + 0.1 * torch.randn(BATCH, 1, 1, 1, 1))
        truth = torch.from_numpy(contrasts)
        with autocast("cpu", True):
            looks, lies, _ = (part.float() for part in network(given + 0.02 * torch.randn_like(given) * (given > 0)))
        skulls = torch.tensor([float(skull) for _, skull in taken])
        loss = (
            functional.cross_entropy(looks[:, :-1], truth)
            + 0.3 * functional.binary_cross_entropy_with_logits(looks[:, -1], skulls)
            + 0.5 * functional.cross_entropy(lies, torch.from_numpy(poses))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        right += (looks[:, :-1].argmax(1) == truth).float().mean().item()
        if steps % 50 == 0:
            print(
                f"step {steps}, {share:.0%} of the time: loss {loss.item():.3f}, contrasts {right / 50:.1%}", flush=True
            )
            right = 0.0
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
def measure(network: Recogniser, scans: Scans, *, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Centres, precision, and what is true of phantoms of people that were not trained on."""
    rng = np.random.default_rng([seed, 1])
    seen: dict[str, list[np.ndarray]] = {name: [] for name in ("looks", "upright", "turned", "figures")}
    truth, skulls, poses = [], [], []
    for which in tqdm(range(len(scans)), desc="measuring"):
        contrasts = rng.integers(len(MODALITIES), size=MEASURED)
        taken = [scans.scan(which, int(contrast), rng) for contrast in contrasts]
        pose = rng.integers(len(POSES), size=MEASURED)
        cubes = [image for image, _ in taken] + [
            posed(image, int(p)) for (image, _), p in zip(taken, pose, strict=True)
        ]
        looks, lies, figures = (part.numpy() for part in network(torch.from_numpy(np.stack(cubes))[:, None]))
        for name, part in (("looks", looks), ("upright", lies), ("figures", figures)):
            seen[name].append(part[:MEASURED])
        seen["turned"].append(lies[MEASURED:])
        truth.append(contrasts)
        skulls.append(np.array([skull for _, skull in taken]))
        poses.append(pose)
    labels, looks, figures = np.concatenate(truth), np.concatenate(seen["looks"]), np.concatenate(seen["figures"])
    centres = np.stack([figures[labels == n].mean(axis=0) for n in range(len(MODALITIES))])
    covariance = np.cov((figures - centres[labels]).T)
    precision = np.linalg.inv(covariance + 0.05 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))

    leader = np.array([MODALITIES.index(GROUPS.get(name, name)) for name in MODALITIES])[labels]
    together = grouped(torch.from_numpy(looks[:, :-1]).double().softmax(1).numpy())
    right = together.argmax(axis=1) == leader
    of_truth = together[np.arange(len(labels)), leader]
    lies = torch.from_numpy(np.concatenate([*seen["upright"], *seen["turned"]])).double().softmax(1).numpy()
    lying = np.concatenate([np.full(len(labels), UPRIGHT), *poses])
    upright = lies.argmax(axis=1) == lying
    for name in (name for name in MODALITIES if name not in GROUPS):
        rows = leader == MODALITIES.index(name)
        counts = np.bincount(together[rows].argmax(axis=1), minlength=len(MODALITIES))
        print(f"{name:>5} of {rows.sum()}: " + ", ".join(f"{MODALITIES[n]} {k}" for n, k in enumerate(counts) if k))
    about: dict[str, object] = {
        "farthest": float(np.percentile(distances(figures, centres, precision), 99)),
        "implausible": min(MOST_IMPLAUSIBLE, float(np.quantile(of_truth, WRONGLY_REFUSED))),
        "sure_of_pose": sure(lies.max(axis=1), upright, wrong_share=0.0005),
        "right": {
            "contrast": float(right.mean()),
            "skull": float(((looks[:, -1] > 0) == np.concatenate(skulls)).mean()),
            "pose": float(upright.mean()),
        },
        "unseen_scans": len(labels),
        "seed": seed,
    }
    return centres, precision, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pools", type=Path, nargs="+", metavar="POOL", help="as phantom --stream writes them")
    parser.add_argument("--seconds", type=float, default=1500, help="of training")
    parser.add_argument("--begin", type=Path, metavar="NPZ", help="a recogniser to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()

    known, unseen = people_of(args.pools)
    network = train(Scans(known), seconds=args.seconds, seed=args.seed, begin=args.begin)
    centres, precision, about = measure(network, Scans(unseen), seed=args.seed)
    about["phantoms"] = len(known)
    print(json.dumps(about, indent=1))
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    arrays = {name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in arrays.items()}
    with whole_file(absolute(args.out)) as partial, partial.open("wb") as file:
        about_bytes = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        np.savez_compressed(file, **arrays, centres=centres, precision=precision, about=about_bytes)


if __name__ == "__main__":
    main()
