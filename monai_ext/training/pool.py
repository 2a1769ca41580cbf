"""Slices of a pool of phantoms that is renewed while a network trains on it, and the canvases that they are shown on.

A pool is prepared subjects in folders that stay while what is in them changes, each folder as a whole. Beside each
contrast as it was acquired lies `<CONTRAST>_target.nii`, the same anatomy by the one protocol that is to be learnt,
`brain.nii`, and `lesion.nii` where there is one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate

from monai_ext.data.batching import Draw, Kind
from monai_ext.data.canvas import filled_box
from monai_ext.data.datalist import Subject, SubjectError, read_datalist
from monai_ext.data.slice_files import prepared_shape, read_slices
from monai_ext.data.slices import faults_of
from monai_ext.modalities import canonical

TRIES = 20  # to find a folder that is not being renewed, each after a short wait by the file system itself
LESION_SHARE = 0.5  # of the slices of a subject with a lesion go through it
GAMMA, GAIN = 0.15, 0.10  # standard deviations of the sources' exponents and factors, as logarithms
BACKGROUND, HEAD = 0.05, 0.3  # what a pixel there counts in a loss, where one of the brain counts 1


class _Found(NamedTuple):
    images: dict[str, NDArray[np.float32]]  # file name -> (I, J)
    number: int


class PoolSlices(Dataset[dict[str, Any]]):
    """Items as `SliceDataset` gives them, with "weight" (1, H, W), what each pixel counts in a loss.

    Training (`varied`) takes any slice with brain, through a lesion half of the time where there is one, mirrored and
    with bent grey values at random, all by the seed of a `Draw`. Else a subject's slices are always the same, evenly
    spread over its brain.

    Args:
        data: prepared subjects of one size. What they hold is looked at when a slice is read.
        sources, target: contrasts apart, or one list where any is made from any.
        per_subject: how many slices of a subject an epoch has.
        varied: whether for training.
        lesion_weight: what a pixel in a lesion counts, where one of other brain counts 1.

    Raises:
        SubjectError: a subject lacks a file, or is of another size than the first.
    """

    def __init__(
        self,
        data: Sequence[Subject],
        *,
        sources: Sequence[str],
        target: Sequence[str],
        per_subject: int = 8,
        varied: bool = True,
        lesion_weight: float = 4.0,
    ) -> None:
        if per_subject < 1:
            raise ValueError(f"per_subject must be at least 1, got {per_subject}")
        if not lesion_weight >= 1:
            raise ValueError(f"lesion_weight must be at least 1, got {lesion_weight}")
        self.sources, self.target = tuple(map(canonical, sources)), tuple(map(canonical, target))
        self.contrasts = tuple(dict.fromkeys(self.sources + self.target))
        self.per_subject, self.varied, self.lesion_weight = per_subject, varied, lesion_weight
        self.folders = [(one.name, next(iter(one.images.values())).parent) for one in data]
        if not self.folders:
            raise ValueError("a pool must have at least one subject, got none")
        self.dataset = data[0].dataset
        self.shape = self._shape(*self.folders[0])
        for name, folder in self.folders:
            shape = self._shape(name, folder)
            if shape != self.shape:
                first = f"{self.folders[0][0]} is {self.shape}"
                raise SubjectError(name, folder, f"is {shape}, but {first}: a pool has one size")

    def __len__(self) -> int:
        return len(self.folders) * self.per_subject

    @property
    def kinds(self) -> list[Kind]:
        """All alike: each has every contrast."""
        return [Kind(self.dataset, (True,) * len(self.contrasts), self.shape[:2])] * len(self)

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        draw = key if isinstance(key, Draw) else Draw(key, 0)
        name, folder = self.folders[draw.sample // self.per_subject]
        rng = np.random.default_rng(draw.seed)
        found = self._read(name, folder, place=draw.sample % self.per_subject, rng=rng)
        sources = np.stack([found.images[f"{contrast}.nii"] for contrast in self.sources])
        target = np.stack([found.images[_target_file(folder, contrast).name] for contrast in self.target])
        weight = self._weight(found.images, target)
        if self.varied:
            if rng.random() < 0.5:
                sources, target, weight = (one[:, ::-1] for one in (sources, target, weight))
            sources = _bent(sources, rng)
        item: dict[str, Any] = {
            "sources": torch.from_numpy(np.ascontiguousarray(sources)),
            "target": torch.from_numpy(np.ascontiguousarray(target)),
            "weight": torch.from_numpy(np.ascontiguousarray(weight)),
            "subject": name,
            "slice": found.number,
            "dataset": self.dataset,
            "available": torch.ones(len(self.contrasts), dtype=torch.bool),
        }
        if draw.condition is not None:
            if self.sources != self.target or len(draw.condition) != len(self.contrasts):
                raise ValueError(f"a condition has an entry a contrast of one list, got {draw.condition}")
            item["condition"] = torch.tensor(draw.condition)
            item["sources"] = item["sources"] * item["condition"][:, None, None]
        return item

    def _weight(self, images: Mapping[str, NDArray[np.float32]], target: NDArray[np.float32]) -> NDArray[np.float32]:
        """(1, H, W)"""
        weight = np.where(target.max(0) > 0, np.float32(HEAD), np.float32(BACKGROUND))
        weight[images["brain.nii"] > 0] = 1
        if "lesion.nii" in images:
            weight[images["lesion.nii"] > 0] = self.lesion_weight
        return weight[None]

    def _read(self, name: str, folder: Path, *, place: int, rng: np.random.Generator) -> _Found:
        """One slice of every file, all of one phantom: a folder that was renewed meanwhile is read again."""
        fault: OSError | ValueError | None = None
        for _ in range(TRIES):
            try:
                before = folder.stat().st_ino
                found = self._read_once(folder, place=place, rng=rng)
                if folder.stat().st_ino == before:
                    return found
            except (OSError, ValueError) as error:
                fault = error
        raise SubjectError(name, folder, f"cannot be read: {fault or 'it is renewed faster than it can be read'}")

    def _read_once(self, folder: Path, *, place: int, rng: np.random.Generator) -> _Found:
        depth = self.shape[2]
        number = self._choose(folder, depth, place=place, rng=rng)
        files = {folder / f"{contrast}.nii" for contrast in self.sources}
        files |= {_target_file(folder, contrast) for contrast in self.target}
        files |= {path for path in (folder / "brain.nii", folder / "lesion.nii") if path.exists()}
        return _Found({path.name: read_slices(path, number, number + 1)[0] for path in sorted(files)}, number)

    def _choose(self, folder: Path, depth: int, *, place: int, rng: np.random.Generator) -> int:
        """A slice's number, of those that have a hundredth of the brain or more."""
        brain = read_slices(folder / "brain.nii", 0, depth).any(2).sum(1)
        filled = np.flatnonzero(brain > 0.2 * brain.max())
        if not len(filled):
            raise ValueError("its brain.nii is empty")
        if not self.varied:
            return int(filled[round((place + 0.5) * len(filled) / self.per_subject - 0.5)])
        lesion = folder / "lesion.nii"
        if lesion.exists() and rng.random() < LESION_SHARE:
            through = np.flatnonzero(read_slices(lesion, 0, depth).any((1, 2)))
            filled = through if len(through) else filled
        return int(rng.choice(filled))

    def _shape(self, name: str, folder: Path) -> tuple[int, int, int]:
        files = [folder / f"{contrast}.nii" for contrast in self.sources]
        files += [_target_file(folder, contrast) for contrast in self.target]
        for path in [*files, folder / "brain.nii"]:
            if not path.is_file():
                raise SubjectError(name, path, "is not there: a pool's subjects have every contrast and brain.nii")
        with faults_of(name, files[0]):
            return prepared_shape(files[0], image=True)


def pool(
    datalist: Path | str, split: str, *, sources: Sequence[str], target: str | Sequence[str], **how: Any
) -> PoolSlices:
    """A split of the pool's datalist, for one task or from any to any; `how` is of `PoolSlices`."""
    targets = [target] if isinstance(target, str) else list(target)
    subjects = read_datalist(datalist).splits[split]
    return PoolSlices(subjects, sources=sources, target=targets, **how)


class VariedCanvas:
    """For a loader's `collate_fn`: a batch's images cut to where their heads are, on a canvas of any size round them.

    Norms and pooled weights see the canvas as much as the head. Each image lies at a place of its own on it.

    Args:
        margin: the most pixels that a canvas is larger than the heads, in all.
        multiple: what both its sides are multiples of.
    """

    def __init__(self, *, margin: int = 32, multiple: int = 8) -> None:
        if margin < 0 or multiple < 1:
            raise ValueError(f"margin must be at least 0 and multiple at least 1, got {margin} and {multiple}")
        self.margin, self.multiple = margin, multiple

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Items with "sources" (M, H, W) and others of that size -> a batch, (B, M, H', W') each"""
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        boxes = [filled_box(item["sources"]) for item in items]
        size = [
            _rounded(
                max(box[axis].stop - box[axis].start for box in boxes) + int(rng.integers(self.margin + 1)),
                self.multiple,
            )
            for axis in range(2)
        ]
        moved = []
        for item, box in zip(items, boxes, strict=True):
            room = [side - (part.stop - part.start) for side, part in zip(size, box, strict=True)]
            corner = [int(rng.integers(spare + 1)) for spare in room]
            place = (..., *(slice(at, at + part.stop - part.start) for at, part in zip(corner, box, strict=True)))
            images = {}
            for name in ("sources", "target", "weight"):
                canvas = item[name].new_full((len(item[name]), *size), BACKGROUND if name == "weight" else 0.0)
                canvas[place] = item[name][(..., *box)]
                images[name] = canvas
            moved.append({**item, **images})
        batch: dict[str, Any] = default_collate(moved)
        return batch


def _bent(sources: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Each source by a gamma and a gain of its own."""
    gamma, gain = (np.exp(rng.normal(0, sd, (len(sources), 1, 1))).astype(np.float32) for sd in (GAMMA, GAIN))
    return np.clip(sources**gamma * gain, 0, 1)


def _target_file(folder: Path, contrast: str) -> Path:
    return folder / f"{contrast}_target.nii"


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
