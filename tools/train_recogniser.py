"""Train what recognises a scan's contrast, skull and pose, on phantoms alone, and write it into the package.

    python -m monai_ext phantom --stream POOL --once --anatomy LABEL_MAPS --spacing 2 --canvas 96x112 --depth 80
    python tools/train_recogniser.py POOL

Every contrast of the pool's phantoms is averaged to the 4 mm by which a head's pose and skull are seen; the contrast is
told by slices of the phantoms' own 2 mm. In training each is scanned anew every time, as hospitals do: sharp or
blurred, with bright fat or dark, stripped or not, defaced, cut off, noisy, tilted, and turned over (`scanning.py`).
Phantoms of one person in four are not trained on: thresholds are measured with them.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scanning import READ, Scans, facts_of, placed
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from monai_ext.data.datalist import read_datalist
from monai_ext.files import absolute, whole_file
from monai_ext.inference.recogniser import POSES, UPRIGHT, WEIGHTS, Posture, Reading, Recogniser, distances, posed
from monai_ext.modalities import MODALITIES
from monai_ext.runtime import autocast

BATCH = 32
TURNS = 4  # poses of each scan in a batch
HELD_OUT = 4  # one person in so many is not trained on
MEASURED = 14  # scans of each held-out phantom
STANDING = 7  # times as many upright, by which the line for poses is drawn
POSTURE_SHARE = 0.42  # of the time
RATES = {"posture": 2e-3, "reading": 3e-3}
LEAST_SURE = 0.9  # of a pose
WRONGLY_REFUSED = 0.001  # at most, of scans that are what they are said to be
MOST_IMPLAUSIBLE = 0.01
GROUPS = {"T1C": "T1"}  # without enhancement nobody can tell them apart
LEADERS = torch.tensor([MODALITIES.index(GROUPS.get(name, name)) for name in MODALITIES])
OFTEN = np.array([0.5 if name in {*GROUPS, *GROUPS.values()} else 1.1 for name in MODALITIES])
OFTEN /= OFTEN.sum()

OneBatch = Callable[[np.random.Generator], tuple[Tensor, float]]  # -> its loss, and the share that was seen rightly


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
    return (
        [folder for folder in folders if facts[folder]["anatomy"] not in held],
        [folder for folder in folders if facts[folder]["anatomy"] in held],
    )


def posture_loss(network: Posture, scans: Scans, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Of one batch, each scan in TURNS poses; and the share of the poses that were seen rightly."""
    contrasts = rng.integers(len(MODALITIES), size=BATCH // TURNS)
    taken = [scans.cubes(int(rng.integers(len(scans))), int(n), rng, tilts=True) for n in contrasts] * TURNS
    poses = np.where(rng.uniform(size=BATCH) < 0.3, UPRIGHT, rng.integers(len(POSES), size=BATCH))
    cubes = np.stack([posed(image, int(pose)) for (image, _), pose in zip(taken, poses, strict=True)])
    given = torch.from_numpy(cubes)[:, None] * (1 + 0.1 * torch.randn(BATCH, 1, 1, 1, 1))
    with autocast("cpu", True):
        skull, lies = (part.float() for part in network(given + 0.02 * torch.randn_like(given) * (given > 0)))
    skulls, truth = torch.tensor([float(skull) for _, skull in taken]), torch.from_numpy(poses)
    loss = functional.cross_entropy(lies, truth) + 0.5 * functional.binary_cross_entropy_with_logits(skull, skulls)
    return loss, float((lies.argmax(1) == truth).float().mean())


def reading_loss(network: Reading, scans: Scans, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Of one batch, of whole heads and of each slice; and the share of its heads whose contrast was seen rightly."""
    contrasts = rng.choice(len(MODALITIES), size=BATCH, p=OFTEN)
    taken = [scans.slices(int(rng.integers(len(scans))), int(contrast), rng) for contrast in contrasts]
    given = placed([planes for planes, _ in taken], [middle for _, middle in taken], rng)
    with autocast("cpu", True):
        shows = network(given)[0].float()
    truth = torch.from_numpy(contrasts)
    head = shows.mean(dim=1)
    loss = contrast_loss(head, truth) + 0.5 * contrast_loss(shows.flatten(0, 1), truth.repeat_interleave(READ))
    return loss, float((LEADERS[head.argmax(1)] == LEADERS[truth]).float().mean())


def contrast_loss(shows: Tensor, truth: Tensor) -> Tensor:
    """What cannot be told apart counts as one, and is to be told apart a little all the same."""
    together = torch.stack(
        [shows[:, leader == LEADERS].logsumexp(1) for leader in range(len(MODALITIES)) if leader in LEADERS], dim=1
    )
    places = torch.unique(LEADERS, return_inverse=True)[1]
    return functional.cross_entropy(together, places[truth]) + 0.1 * functional.cross_entropy(shows, truth)


def train(network: nn.Module, loss_of: OneBatch, *, rate: float, seconds: float, seed: int) -> None:
    """Until the time is up, the rate falling to 0 with it."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.02)
    network.train()
    began, steps, right = time.process_time(), 0, 0.0
    while (share := (time.process_time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (steps + 1) / 60) * (1 - share)
        loss, its_right = loss_of(rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        right += its_right
        if steps % 50 == 0:
            print(f"step {steps}, {share:.0%} of the time: loss {loss.item():.3f}, right {right / 50:.1%}", flush=True)
            right = 0.0
    network.eval()


def grouped(probabilities: np.ndarray) -> np.ndarray:
    """(N, 7) with T1C's share added to T1's."""
    result = probabilities.copy()
    for member, leader in GROUPS.items():
        result[:, MODALITIES.index(leader)] += result[:, MODALITIES.index(member)]
        result[:, MODALITIES.index(member)] = 0
    return result


def sure(probability: np.ndarray, right: np.ndarray, *, wrong_share: float) -> float:
    """The least confidence above which no more than `wrong_share` of these scans are seen wrongly."""
    wrong = np.sort(probability[~right])[::-1]
    allowed = int(wrong_share * len(right))
    return float(max(LEAST_SURE, np.nextafter(wrong[allowed], 2))) if len(wrong) > allowed else LEAST_SURE


@torch.inference_mode()
def measure(network: Recogniser, scans: Scans, *, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Centres, precision, and what is true of phantoms of people that were not trained on."""
    rng = np.random.default_rng([seed, 1])
    seen: dict[str, list[np.ndarray]] = {name: [] for name in ("shows", "figures", "skull", "upright", "turned")}
    truth, skulls, poses = [], [], []
    for which in tqdm(range(len(scans)), desc="measuring"):
        contrasts = rng.integers(len(MODALITIES), size=MEASURED)
        cubes = [scans.cubes(which, int(contrast), rng) for contrast in contrasts]
        planes = [scans.slices(which, int(contrast), rng, everywhere=True) for contrast in contrasts]
        more = rng.integers(len(MODALITIES), size=(STANDING - 1) * MEASURED)
        cubes += [scans.cubes(which, int(contrast), rng) for contrast in more]
        pose = rng.integers(len(POSES), size=MEASURED)
        turned = [posed(image, int(p)) for (image, _), p in zip(cubes[:MEASURED], pose, strict=True)]
        given = np.stack([image for image, _ in cubes] + turned)[:, None]
        skull, lies = (part.numpy() for part in network.posture(torch.from_numpy(given)))
        read = network.reading(placed([part for part, _ in planes], [middle for _, middle in planes], rng))
        for name, part in zip(("shows", "figures"), read, strict=True):
            seen[name].append(part.mean(dim=1).numpy())
        for name, part in (
            ("skull", skull[: len(cubes)]),
            ("upright", lies[: len(cubes)]),
            ("turned", lies[len(cubes) :]),
        ):
            seen[name].append(part)
        truth.append(contrasts)
        skulls.append(np.array([its_skull for _, its_skull in cubes]))
        poses.append(pose)
    labels, shows, figures = np.concatenate(truth), np.concatenate(seen["shows"]), np.concatenate(seen["figures"])
    centres = np.stack([figures[labels == n].mean(axis=0) for n in range(len(MODALITIES))])
    covariance = np.cov((figures - centres[labels]).T)
    precision = np.linalg.inv(covariance + 0.05 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))

    leader = LEADERS.numpy()[labels]
    together = grouped(torch.from_numpy(shows).double().softmax(1).numpy())
    right = together.argmax(axis=1) == leader
    of_truth = together[np.arange(len(labels)), leader]
    standing = torch.from_numpy(np.concatenate(seen["upright"])).double().softmax(1).numpy()
    stands = standing.argmax(axis=1) == UPRIGHT  # only an upright scan is refused wrongly
    turned_rightly = np.concatenate(seen["turned"]).argmax(axis=1) == np.concatenate(poses)
    for name in (name for name in MODALITIES if name not in GROUPS):
        rows = leader == MODALITIES.index(name)
        counts = np.bincount(together[rows].argmax(axis=1), minlength=len(MODALITIES))
        print(f"{name:>5} of {rows.sum()}: " + ", ".join(f"{MODALITIES[n]} {k}" for n, k in enumerate(counts) if k))
    about: dict[str, object] = {
        "farthest": float(np.percentile(distances(figures, centres, precision), 99)),
        "implausible": min(MOST_IMPLAUSIBLE, float(np.quantile(of_truth, WRONGLY_REFUSED))),
        "sure_of_pose": sure(standing.max(axis=1), stands, wrong_share=WRONGLY_REFUSED),
        "right": {
            "contrast": float(right.mean()),
            "skull": float(((np.concatenate(seen["skull"]) > 0) == np.concatenate(skulls)).mean()),
            "pose": float(turned_rightly.mean()),
            "upright": float(stands.mean()),
        },
        "unseen_scans": len(labels),
        "unseen_upright_scans": len(stands),
        "seed": seed,
    }
    return centres, precision, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pools", type=Path, nargs="+", metavar="POOL", help="as phantom --stream writes them")
    parser.add_argument("--seconds", type=float, default=2300, help="of training, of one processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()

    known, unseen = people_of(args.pools)
    torch.manual_seed(args.seed)
    network, scans = Recogniser(), Scans(known)
    reads: OneBatch = partial(reading_loss, network.reading, scans)
    lies: OneBatch = partial(posture_loss, network.posture, scans)
    for name, part, one_batch, share in (
        ("reading", network.reading, reads, 1 - POSTURE_SHARE),
        ("posture", network.posture, lies, POSTURE_SHARE),
    ):
        print(f"training {name}", flush=True)
        train(part, one_batch, rate=RATES[name], seconds=share * args.seconds, seed=args.seed)
    centres, precision, about = measure(network, Scans(unseen), seed=args.seed)
    about["phantoms"] = len(known)
    print(json.dumps(about, indent=1))
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    arrays = {name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in arrays.items()}
    with whole_file(absolute(args.out)) as unfinished, unfinished.open("wb") as file:
        about_bytes = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        np.savez_compressed(file, **arrays, centres=centres, precision=precision, about=about_bytes)


if __name__ == "__main__":
    main()
