"""Train what recognises a scan's contrast, skull and pose, on phantoms alone, and write it into the package.

    python tools/train_recogniser.py --anatomies LABEL_MAPS --phantoms phantoms.npz

LABEL_MAPS is a folder of whole-head label maps in SynthSeg's numbers. The phantoms are rendered once, into
`--phantoms`, at the 4 mm that the recogniser looks at; some 10 minutes on one core, then about 15 of training.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional
from tqdm import tqdm

from monai_ext.data.phantoms.acquisition import Grid
from monai_ext.data.phantoms.anatomy import halved, label_maps, read_anatomy
from monai_ext.data.phantoms.rendering import draw_subject, render
from monai_ext.files import absolute, whole_file
from monai_ext.inference.coarse import CEILING, STEP, TOP, cube
from monai_ext.inference.recogniser import POSES, UPRIGHT, WEIGHTS, Recogniser, mahalanobis, posed
from monai_ext.modalities import MODALITIES

GRID = Grid((56, 60, 58), (STEP,) * 3)
BATCH = 32
HELD_OUT = 4  # one phantom in so many is not trained on, and is what thresholds are measured with
LEAST_SURE = 0.9
GROUPS = {"T1C": "T1"}  # without enhancement nobody can tell them apart


@dataclass(frozen=True)
class Work:
    """The phantoms to be made of one person's anatomy."""

    anatomy: Path
    person: int
    count: int
    masks: tuple[Path, ...]
    seed: int


def render_person(work: Work) -> dict[str, np.ndarray]:
    """images (N, 7, I, J, K) float16 and brains (N, I, J, K) of whole heads at STEP."""
    torch.set_num_threads(1)
    anatomy = halved(read_anatomy(work.anatomy, STEP / 2))
    images, brains = [], []
    for number in range(work.count):
        rng = np.random.default_rng([work.seed, work.person, number])
        made = render(draw_subject(rng, anatomy, grid=GRID, contrasts=MODALITIES, masks=work.masks, skull=True))
        stack = np.stack([made.images[name].numpy() for name in MODALITIES])
        tops = np.maximum(np.percentile(stack.reshape(len(MODALITIES), -1), 99.9, axis=1), 1e-6)
        images.append((stack / tops[:, None, None, None]).astype(np.float16))
        brains.append(made.brain.numpy())
    return {"images": np.stack(images), "brains": np.stack(brains), "people": np.full(work.count, work.person)}


def render_phantoms(anatomies: Path, masks: Path | None, *, count: int, seed: int, jobs: int) -> dict[str, np.ndarray]:
    """`count` phantoms, as many of each anatomy."""
    maps = label_maps(anatomies)
    infarcts = tuple(sorted(masks.glob("*.nii.gz"))) if masks else ()
    work = [Work(path, person, -(-count // len(maps)), infarcts, seed) for person, path in enumerate(maps)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        parts = list(tqdm(pool.map(render_person, work), total=len(work), desc="anatomies"))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def scan_of(
    image: np.ndarray, person: "Person", rng: np.random.Generator, *, contrast: str, pose: int
) -> tuple[np.ndarray, bool]:
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
    image = posed(image, pose)
    if rng.uniform() < 0.5:
        image = image[::-1]
    few = image[::2, ::2, ::2]
    few = few[few > 0]
    threshold = float(np.percentile(few, TOP)) / 12
    head, top = image > threshold, max(float(np.percentile(few[few > threshold], TOP)), 1e-6)
    return np.clip(cube(image, head) / top, 0, CEILING), skull


@dataclass(frozen=True)
class Person:
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


def person_of(brain: np.ndarray) -> Person:
    lines = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    near = ndimage.gaussian_filter(brain.astype(np.float32), 1.0)
    return Person(near, tuple((int(line[0]), int(line[-1])) for line in lines))


def _cut(image: np.ndarray, person: Person, rng: np.random.Generator, *, skull: bool) -> None:
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


@dataclass
class Scans(torch.utils.data.Dataset):
    """Batches of (image, contrast, skull, pose): number n of a seed is the same always."""

    images: np.ndarray
    people: list[Person]
    seed: int

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, int, bool, int]:
        person, contrast = int(rng.integers(len(self.images))), int(rng.integers(len(MODALITIES)))
        pose = UPRIGHT if rng.uniform() < 0.6 else int(rng.integers(len(POSES)))
        image, skull = scan_of(
            self.images[person, contrast], self.people[person], rng, contrast=MODALITIES[contrast], pose=pose
        )
        return image, contrast, skull, pose

    def batch(self, number: int) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng([self.seed, number])
        images, contrasts, skulls, poses = zip(*(self.draw(rng) for _ in range(BATCH)), strict=True)
        return (
            torch.from_numpy(np.stack(images))[:, None],
            torch.tensor(contrasts),
            torch.tensor(skulls),
            torch.tensor(poses),
        )

    def __getitem__(self, number: int) -> tuple[torch.Tensor, ...]:
        return self.batch(number)


def batches(scans: Scans, count: int, *, jobs: int) -> Iterable[list[torch.Tensor]]:
    return torch.utils.data.DataLoader(scans, batch_size=None, sampler=range(count), num_workers=jobs)


def train(scans: Scans, *, steps: int, rate: float, seed: int, jobs: int) -> Recogniser:
    torch.manual_seed(seed)
    network = Recogniser()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    bar = tqdm(batches(scans, steps, jobs=jobs), total=steps, desc="training", mininterval=20)
    for step, (image, contrast, skull, pose) in enumerate(bar):
        with torch.autocast("cpu", torch.bfloat16):
            seen, head, lies, _ = network(image)
        loss = (
            functional.cross_entropy(seen.float(), contrast, label_smoothing=0.01)
            + 0.5 * functional.binary_cross_entropy_with_logits(head.float(), skull.float())
            + 0.5 * functional.cross_entropy(lies.float(), pose)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            right = [(a.argmax(1) == b).float().mean().item() for a, b in ((seen, contrast), (lies, pose))]
            right.insert(1, ((head > 0) == skull).float().mean().item())
            bar.set_postfix(loss=f"{loss.item():.3f}", right="/".join(f"{one:.2f}" for one in right))
    return network.eval()


@torch.inference_mode()
def measure(network: Recogniser, scans: Scans, *, count: int, jobs: int) -> dict[str, np.ndarray]:
    """Of scans that were not trained on: probabilities and truths."""
    rows: dict[str, list[np.ndarray]] = {}
    for image, contrast, skull, pose in batches(scans, count, jobs=jobs):
        seen, head, lies, features = network(image)
        found = {
            "contrast": contrast, "skull": skull, "pose": pose, "contrasts": seen.softmax(1), "head": head.sigmoid(),
            "poses": lies.softmax(1), "features": features,
        }  # fmt: skip
        for name, value in found.items():
            rows.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def grouped(probabilities: np.ndarray) -> np.ndarray:
    """(N, 7) with T1C's share added to T1's."""
    result = probabilities.copy()
    for member, leader in GROUPS.items():
        result[:, MODALITIES.index(leader)] += result[:, MODALITIES.index(member)]
        result[:, MODALITIES.index(member)] = 0
    return result


def sure(probability: np.ndarray, right: np.ndarray, *, wrong_share: float) -> float:
    """The least confidence above which no more than `wrong_share` of all scans are seen wrongly."""
    order = np.sort(probability[~right])[::-1]
    allowed = int(wrong_share * len(right))
    return float(max(LEAST_SURE, np.nextafter(order[allowed], 2) if len(order) > allowed else LEAST_SURE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anatomies", type=Path, help="label maps; not needed where --phantoms is there")
    parser.add_argument("--masks", type=Path, help="a folder of infarcts' masks")
    parser.add_argument("--phantoms", type=Path, required=True, help="rendered phantoms, .npz: made if it is not there")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--jobs", type=int, default=1, help="processes that make images")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()

    if not args.phantoms.is_file():
        if args.anatomies is None:
            parser.error(f"{args.phantoms} is not there: give --anatomies to make it")
        made = render_phantoms(args.anatomies, args.masks, count=args.count, seed=args.seed, jobs=args.jobs)
        with whole_file(absolute(args.phantoms)) as partial, partial.open("wb") as file:
            np.savez(file, **made)
    with np.load(args.phantoms, allow_pickle=False) as stored:
        images, brains, people = stored["images"], stored["brains"], stored["people"]
    held = people % HELD_OUT == 0  # by person: no anatomy is on both sides
    seen, new = (Scans(images[rows], [person_of(brain) for brain in brains[rows]], args.seed) for rows in (~held, held))
    network = train(seen, steps=args.steps, rate=args.rate, seed=args.seed, jobs=args.jobs)

    known = measure(network, replace(seen, seed=args.seed + 1), count=30, jobs=args.jobs)
    unseen = measure(network, replace(new, seed=args.seed + 2), count=100, jobs=args.jobs)
    means = np.stack([known["features"][known["contrast"] == n].mean(axis=0) for n in range(len(MODALITIES))])
    apart = known["features"] - means[known["contrast"]]
    covariance = np.cov(apart.T) + 1e-2 * np.eye(apart.shape[1]) * apart.var()
    precision = np.linalg.inv(covariance)
    up = unseen["pose"] == UPRIGHT
    farthest = float(np.percentile(mahalanobis(unseen["features"][up], means, precision), 99))

    leader = np.array([MODALITIES.index(GROUPS.get(name, name)) for name in MODALITIES])
    together = grouped(unseen["contrasts"])
    right = together.argmax(1) == leader[unseen["contrast"]]
    lies = unseen["poses"].argmax(1) == unseen["pose"]
    skulls = (unseen["head"] > 0.5) == unseen["skull"]
    about = {
        "farthest": farthest,
        "sure_of_contrast": sure(together[up].max(1), right[up], wrong_share=0.001),
        "sure_of_pose": sure(unseen["poses"].max(1), lies, wrong_share=0.0005),
        "right": {"contrast": float(right[up].mean()), "skull": float(skulls.mean()), "pose": float(lies.mean())},
        "phantoms": len(images), "steps": args.steps, "seed": args.seed,
    }  # fmt: skip
    print(json.dumps(about, indent=1))
    names = [name for name in MODALITIES if name not in GROUPS]
    for name in names:
        rows = up & (leader[unseen["contrast"]] == MODALITIES.index(name))
        taken = {other: int((together[rows].argmax(1) == MODALITIES.index(other)).sum()) for other in names}
        print(f"{name:>5} of {rows.sum()}: " + ", ".join(f"{other} {n}" for other, n in taken.items() if n))
    tensors = {name: value.numpy().astype(np.float16) for name, value in network.state_dict().items()}
    with whole_file(absolute(args.out)) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file, **tensors, means=means.astype(np.float32), precision=precision.astype(np.float32),
            about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        )  # fmt: skip


if __name__ == "__main__":
    main()
