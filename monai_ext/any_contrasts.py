"""What PMM-Synth's configs call for training: several datasets together, any contrast from any."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import ResizeWithPadOrCropd
from torch.utils.data import Dataset

from monai_ext import bundle
from monai_ext.data.batching import Draw, draw_condition
from monai_ext.data.datalist import Subject, read_datalist
from monai_ext.data.slices import SliceDataset
from monai_ext.files import absolute, sha256
from monai_ext.modalities import canonical
from monai_ext.networks import PMMSynth
from monai_ext.networks.adapters import Adapter, add_dataset, fingerprint, load_adapter
from monai_ext.training.checkpoints import Checkpoints
from monai_ext.weights import load_weights, save_weights

logger = logging.getLogger(__name__)

Datalists = Path | str | Sequence[Path | str | Sequence[Path | str]]


def named_datalists(datalist: Datalists) -> list[tuple[str, Path]]:
    """(name, path) of one datalist's path, a list of paths, or of [name, path]; "" where the datalist names its own."""
    each = [datalist] if isinstance(datalist, str | Path) else list(datalist)
    pairs = [("", one) if isinstance(one, str | Path) else tuple(one) for one in each]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"datalist must be a path, or a list of paths or of [name, path], got {datalist!r}")
    found = [(str(pair[0]), absolute(Path(pair[1]))) for pair in pairs]
    for name, path in found:
        if not path.is_file():
            raise ValueError(f"{path}: there is no such datalist" + (f", which {name!r} names" if name else ""))
    return found


def all_cases(
    datalist: Datalists, split: str, modalities: Sequence[str], *, supervised: bool = False, whole: bool = False
) -> list[Subject]:
    """The split's subjects of every datalist, each with its dataset's name, that have two contrasts at least.

    With `supervised`, contrasts that nobody has are refused: they would have a decoder that nothing trains. With
    `whole`, a subject has all of the contrasts, and a dataset in which nobody has them is left out.
    """
    wanted = check_modalities(modalities)
    owner: dict[str, Path] = {}
    chosen: list[Subject] = []
    for name, path in named_datalists(datalist):
        subjects = read_datalist(path).splits.get(split, ())
        subjects = [replace(one, dataset=name) for one in subjects] if name else list(subjects)
        for dataset in dict.fromkeys(subject.dataset for subject in subjects):
            if dataset in owner:
                raise ValueError(
                    f"dataset {dataset!r} is named twice, by {owner[dataset]} and by {path}: give each a name of its "
                    "own, datalist \"[['one', 'a.json'], ['other', 'b.json']]\", or index them as one"
                )
            owner[dataset] = path
            ours = [subject for subject in subjects if subject.dataset == dataset]
            least = len(wanted) if whole else 2
            able = [subject for subject in ours if sum(contrast in subject.images for contrast in wanted) >= least]
            if not able and not whole:
                raise ValueError(
                    f"{path}: no {split} subject of dataset {dataset!r} has two of {', '.join(wanted)}, so there is "
                    "nothing to synthesise from another: leave it out, or name its contrasts"
                )
            if len(able) < len(ours):
                left = len(ours) - len(able)
                logger.warning("%d of %d %s subjects of %s lack a contrast, left out", left, len(ours), split, dataset)
            chosen += able
    if not chosen:
        has = f" that has {', '.join(wanted)}" if whole else ""
        raise ValueError(f"{datalist}: there is no subject in its {split} split{has}")
    never = [contrast for contrast in wanted if not any(contrast in subject.images for subject in chosen)]
    if supervised and never:
        rest = [contrast for contrast in wanted if contrast not in never]
        raise ValueError(
            f"{', '.join(never)} never has ground truth in the {split} split of {', '.join(owner)}, so nothing could "
            f'train it: give data that have it, or --modalities "{rest}"'
        )
    return chosen


def check_modalities(modalities: Sequence[str]) -> list[str]:
    if isinstance(modalities, str):
        raise ValueError(f"modalities must be a list of contrasts such as ['T1', 'T2'], got {modalities!r}")
    wanted = [canonical(contrast) for contrast in modalities]
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise ValueError(f"each contrast is a source or the target, once, and there are two, got {', '.join(wanted)}")
    return wanted


def training_set(
    *, data: Sequence[Subject], modalities: Sequence[str], slices: str | Sequence[Any], image_size: int
) -> SliceDataset:
    crop: Any = ResizeWithPadOrCropd(keys=["sources", "target"], spatial_size=(image_size, image_size))
    return SliceDataset(data, sources=modalities, target=modalities, slices=slices, transform=crop, allow_missing=True)


class ValidationTasks(Dataset[dict[str, Any]]):
    """One task a slice of `slices`, always the same: sources, and one contrast to make, as "target" and "wanted"."""

    def __init__(self, slices: SliceDataset, *, seed: int = 0) -> None:
        self.slices = slices
        rng = np.random.default_rng(seed)
        self.tasks: list[tuple[tuple[bool, ...], int]] = []
        for kind in slices.kinds:
            condition = draw_condition(kind.available, epoch=0, curriculum=0, rng=rng)
            left = [n for n, there in enumerate(kind.available) if there and not condition[n]]
            self.tasks.append((condition, int(rng.choice(left))))

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        condition, wanted = self.tasks[index]
        item = self.slices[Draw(index, 0, condition)]
        return {**item, "target": item["target"][wanted : wanted + 1], "wanted": wanted}


def names_of(data: Sequence[Subject]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subject.dataset for subject in data))


def knowing(network: PMMSynth, datasets: Sequence[str]) -> PMMSynth:
    """The network for these datasets: how many there are changes no weight of it, for a dataset's code is computed."""
    if not datasets or len(set(datasets)) < len(datasets):
        raise ValueError(f"datasets must be one or more, each named once, got {', '.join(datasets) or 'none'}")
    network.datasets, network.trained_on = tuple(datasets), len(datasets)
    if network.embedding is not None:
        network.embedding.datasets = len(datasets)
    return network


def trained(
    network: PMMSynth, weights: Path | str, *, adapters: Path | str | Sequence[Path | str] | None = None
) -> PMMSynth:
    """With its weights, the datasets that they know, and those that were added by `adapters`."""
    path = absolute(Path(weights))
    if not path.is_file():
        raise ValueError(f"there are no weights at {path}: train the bundle, or name a file with --weights")
    about = load_weights(network, path)
    made = about.get("target")
    if made is not None and made != list(network.modalities):
        raise ValueError(f"{path} was trained for {made}, not {list(network.modalities)}: name those with --modalities")
    if "datasets" in about:
        knowing(network, about["datasets"])
    for one in [adapters] if isinstance(adapters, str | Path) else adapters or ():
        load_adapter(network, one)
    return network


def adapted(network: PMMSynth, weights: Path | str, *, data: Sequence[Subject], rank: int = 4) -> PMMSynth:
    """The trained network, frozen, with the one new dataset of `data`, whose adapter alone is to be trained."""
    names = names_of(data)
    if len(names) != 1:
        raise ValueError(f"one dataset is added at a time, got {', '.join(names)}")
    network = trained(network, weights)
    add_dataset(network, names[0], rank=rank)
    return network


def about(*, network: PMMSynth, datalist: Datalists) -> dict[str, Any]:
    """What is to be known of the weights: as of every bundle, with the datasets by name and each datalist."""
    pairs = named_datalists(datalist)
    said = bundle.about(sources=network.modalities, target=network.modalities, datalist=pairs[0][1])
    presets = [bundle.prepared_as(path) for _, path in pairs]
    if any(preset != presets[0] for preset in presets):
        logger.warning("the datalists were not all prepared alike; inference prepares as the first, %s", pairs[0][1])
    said["datasets"] = list(network.datasets)
    said["datalist_sha256"] = [sha256(path) for _, path in pairs] if len(pairs) > 1 else said["datalist_sha256"]
    return said


class AdapterCheckpoints(Checkpoints):
    """As `Checkpoints`, but what is stored beside the trained weights is the newest dataset's adapter alone."""

    def write_weights(self, trainer: Any) -> None:
        network: PMMSynth = trainer.network
        name, number = network.datasets[-1], len(network.datasets) - network.trained_on - 1
        assert network.embedding is not None
        changes = {
            path: module.changes[number] for path, module in network.named_modules() if hasattr(module, "changes")
        }
        rank = max(change.down.shape[0] for change in changes.values())
        embedding: Any = network.embedding.added[number]
        adapter = Adapter(name, rank, embedding, changes)
        about = {**self.about, "dataset": name, "rank": rank, "network_sha256": fingerprint(network)}
        save_weights(self.weights, adapter, about)
