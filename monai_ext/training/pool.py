"""Slices of a pool of phantoms that is renewed while a network trains on it, and the canvases that they are shown on.

A pool is prepared subjects in folders that stay while what is in them changes, each folder as a whole. Each subject has
its contrasts as they were acquired, targets, the same anatomy by the one protocol that is to be learnt, and masks.
"""

import os
import time
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
from monai_ext.data.phantoms.protocols import WHITE
from monai_ext.data.slice_files import count_foreground, prepared_shape, read_slices
from monai_ext.data.slices import faults_of
from monai_ext.modalities import canonical

TRIES, WAIT = 40, 0.05  # s: to find a folder that is not being renewed
LESION_SHARE = 0.5  # of the slices of a subject with a lesion go through it
GAMMA, GAIN = 0.2, 0.25  # standard deviations of the sources' exponents and factors, as logarithms
LEAN, BOWL, SKEW, TWIST = 0.15, 0.5, 0.2, 0.15  # standard deviations of a coil's shading, see `_coil`
BACKGROUND, HEAD = 0.05, 0.3  # what a pixel there counts in a loss, where one of the brain counts 1
BEFORE, AFTER = "T1", "T1C"  # the agent: one scanner, one protocol, minutes apart
AGENT_ROOM = WHITE[AFTER] / WHITE[BEFORE]  # a T1C's grey values by its T1's, so that what lights up stays below 1


_State = list[tuple[str, int]]  # a folder's files, and which ones they are


class _Cut(NamedTuple):
    sources: NDArray[np.float32]  # (M, I, J)
    target: NDArray[np.float32]  # (K, I, J)
    before: NDArray[np.float32]  # (1, I, J), the T1 of targets, nothing where no T1C is made of a T1
    masks: dict[str, NDArray[np.bool_]]  # (I, J)
    number: int


class PoolSlices(Dataset[dict[str, Any]]):
    """Items as `SliceDataset` gives them, with "weight" (1, H, W), what each pixel counts in a loss.

    A T1 that is given shows how T1C would have been scanned: where the pool has targets of both, the T1C to be made is
    that T1, darker by one factor for all, and what the agent changes.

    Training (`varied`) takes any slice with brain, through a lesion half of the time where there is one, mirrored,
    shaded and with bent grey values at random, all by the seed of a `Draw`. Else a subject's slices are always the
    same, evenly spread over its brain, and as they lie on the disk.

    Args:
        data: prepared subjects of one size. What they hold is looked at when a slice is read.
        sources, target: contrasts apart, or one list where any is made from any.
        per_subject: how many slices of a subject an epoch has.
        varied: whether for training.
        lesion_weight: what a pixel in a lesion counts, where one of other brain counts 1.
        shaded: the share of training slices that are shaded in the plane by one coil in all contrasts, targets too, on
            top of what shades each source alone: where all sources show it, what was not scanned would have had it.

    Raises:
        ValueError: no subject, or a number that may not be.
        SubjectError: a subject lacks a contrast or the mask of its brain, or is of another size than the first.
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
        shaded: float = 0.5,
    ) -> None:
        if per_subject < 1:
            raise ValueError(f"per_subject must be at least 1, got {per_subject}")
        if not lesion_weight >= 1:
            raise ValueError(f"lesion_weight must be at least 1, got {lesion_weight}")
        if not 0 <= shaded <= 1:
            raise ValueError(f"shaded must be a share from 0 to 1, got {shaded}")
        self.sources, self.target = tuple(map(canonical, sources)), tuple(map(canonical, target))
        self.contrasts = tuple(dict.fromkeys(self.sources + self.target))
        self.per_subject, self.varied, self.lesion_weight, self.shaded = per_subject, varied, lesion_weight, shaded
        self.subjects = tuple(data)
        self.follows = (
            BEFORE in self.sources
            and AFTER in self.target
            and all({BEFORE, AFTER} <= set(subject.targets) for subject in self.subjects)
        )
        self._counted: dict[str, tuple[_State, NDArray[np.intp], NDArray[np.intp]]] = {}
        if not self.subjects:
            raise ValueError("a pool must have at least one subject, got none")
        self.dataset, self.shape = data[0].dataset, self._shape(data[0])
        for subject in self.subjects:
            shape = self._shape(subject)
            if shape != self.shape:
                reason = f"is {shape}, but {data[0].name} is {self.shape}: a pool has one size"
                raise SubjectError(subject.name, None, reason)

    def __len__(self) -> int:
        return len(self.subjects) * self.per_subject

    @property
    def kinds(self) -> list[Kind]:
        """All alike: each has every contrast."""
        return [Kind(self.dataset, (True,) * len(self.contrasts), self.shape[:2])] * len(self)

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        draw = key if isinstance(key, Draw) else Draw(key, 0)
        if draw.condition is not None and (self.sources != self.target or len(draw.condition) != len(self.contrasts)):
            raise ValueError(f"a condition has an entry a contrast of one list, got {draw.condition}")
        subject = self.subjects[draw.sample // self.per_subject]
        rng = np.random.default_rng(draw.seed)
        cut = self._read(subject, place=draw.sample % self.per_subject, rng=rng)
        sources, target, before, weight = cut.sources, cut.target, cut.before, self._weight(cut)
        if self.varied:
            if rng.random() < 0.5:
                sources, target, before, weight = (image[:, ::-1] for image in (sources, target, before, weight))
            if rng.random() < self.shaded:
                coil = _coil(sources, rng)
                sources, target, before = sources * coil, (target * coil).clip(0, 1), before * coil
            sources = _bent(sources, rng)
        if self.follows and (draw.condition is None or draw.condition[self.sources.index(BEFORE)]):
            t1, t1c = self.sources.index(BEFORE), self.target.index(AFTER)
            target = target.copy()
            target[t1c] = _after(sources[t1], before[0], target[t1c])
        item: dict[str, Any] = {
            "sources": torch.from_numpy(np.ascontiguousarray(sources)),
            "target": torch.from_numpy(np.ascontiguousarray(target)),
            "weight": torch.from_numpy(np.ascontiguousarray(weight)),
            "subject": subject.name,
            "slice": cut.number,
            "dataset": self.dataset if draw.named else "",
            "available": torch.ones(len(self.contrasts), dtype=torch.bool),
        }
        if draw.condition is not None:
            item["condition"] = torch.tensor(draw.condition)
            item["sources"] = item["sources"] * item["condition"][:, None, None]
        return item

    def _weight(self, cut: _Cut) -> NDArray[np.float32]:
        """(1, H, W)"""
        weight = np.where(cut.target.max(0) > 0, np.float32(HEAD), np.float32(BACKGROUND))
        weight[cut.masks["brain"]] = 1
        if "lesion" in cut.masks:
            weight[cut.masks["lesion"]] = self.lesion_weight
        return weight[None]

    def _read(self, subject: Subject, *, place: int, rng: np.random.Generator) -> _Cut:
        """One slice of every file, all of one phantom: a folder that was renewed meanwhile is read again."""
        folder = subject.masks["brain"].parent
        fault: OSError | ValueError | None = None
        for _ in range(TRIES):
            try:
                before = _state(folder)
                cut = self._read_once(subject, state=before, place=place, rng=rng)
                if _state(folder) == before:
                    return cut
            except (OSError, ValueError) as error:
                fault = error
            time.sleep(WAIT)
        reason = f"cannot be read: {fault or 'it is renewed faster than it can be read'}"
        raise SubjectError(subject.name, folder, reason)

    def _read_once(self, subject: Subject, *, state: _State, place: int, rng: np.random.Generator) -> _Cut:
        number = self._choose(subject, state=state, place=place, rng=rng)

        def image(path: Path) -> NDArray[np.float32]:
            return read_slices(path, number, number + 1)[0]

        return _Cut(
            np.stack([image(subject.images[contrast]) for contrast in self.sources]),
            np.stack([image(_target_of(subject, contrast)) for contrast in self.target]),
            image(subject.targets[BEFORE])[None] if self.follows else np.zeros((1, 1, 1), np.float32),
            {name: image(path) > 0 for name, path in subject.masks.items()},
            number,
        )

    def _choose(self, subject: Subject, *, state: _State, place: int, rng: np.random.Generator) -> int:
        """A slice's number, of those that have a fifth of the fullest one's brain or more."""
        filled, through = self._filled(subject, state)
        if not self.varied:
            return int(filled[round((place + 0.5) * len(filled) / self.per_subject - 0.5)])
        if "lesion" in subject.masks and rng.random() < LESION_SHARE and len(through):
            return int(rng.choice(through))
        return int(rng.choice(filled))

    def _filled(self, subject: Subject, state: _State) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The slices with brain and those with lesion, counted anew where the folder's files are others than before."""
        counted = self._counted.get(subject.name)
        if counted is None or counted[0] != state:
            depth = self.shape[2]
            brain = count_foreground(subject.masks["brain"], depth)
            filled = np.flatnonzero(brain > 0.2 * brain.max())
            if not len(filled):
                raise ValueError("the mask of its brain is empty")
            lesion = count_foreground(subject.masks["lesion"], depth) if "lesion" in subject.masks else brain * 0
            self._counted[subject.name] = counted = state, filled, np.flatnonzero(lesion)
        return counted[1], counted[2]

    def _shape(self, subject: Subject) -> tuple[int, int, int]:
        for contrast in self.contrasts:
            if contrast not in subject.images:
                raise SubjectError(subject.name, None, f"lacks {contrast}: a pool's subjects have every contrast")
        if "brain" not in subject.masks:
            raise SubjectError(subject.name, None, "lacks the mask of its brain: make the pool with `phantom --stream`")
        path = subject.images[self.contrasts[0]]
        with faults_of(subject.name, path):
            return prepared_shape(path, image=True)


def pool(
    datalist: Path | str, split: str, *, sources: Sequence[str], target: str | Sequence[str], **how: Any
) -> PoolSlices:
    """Make the dataset of a split of the pool's datalist, for one task or from any to any.

    Args:
        datalist: of the pool.
        split: "training" or "validation".
        sources, target: contrasts, by any of their names; the same list for both is from any to any.
        how: further arguments of `PoolSlices`.

    Returns:
        The dataset, whose items are slices.

    Raises:
        ValueError: the datalist is not there or has no such subjects, or an argument may not be.
        SubjectError: a subject lacks a contrast or its brain's mask, or is of another size than the first.
    """
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


def _coil(sources: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """(M, H, W) -> (H, W), a gain of second order over the head, 1 in its mean: bright in the middle or at the rim."""
    bright = sources.max(0)
    box = filled_box(torch.from_numpy(np.ascontiguousarray(sources)))
    y, x = (  # no further than the box's edges: a head of a few pixels would see e to the square of a hundred boxes
        np.clip((np.arange(side) - part.start) * 2 / max(part.stop - part.start - 1, 1) - 1, -1, 1).astype(np.float32)
        for side, part in zip(bright.shape, box, strict=True)
    )
    y = y[:, None]
    bowl, down, across = rng.normal(0, (BOWL, SKEW, SKEW))
    up, right, twist = rng.normal(0, (LEAN, LEAN, TWIST))
    gain = np.exp(up * y + right * x + (bowl + down) * y * y + (bowl + across) * x * x + twist * x * y)
    return np.asarray(gain * (bright.sum() / max(float((gain * bright).sum()), 1e-6)), np.float32)


def _after(
    scanned: NDArray[np.float32], before: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float32]:
    """All (I, J): a T1 that was scanned, both targets -> the T1C of that scan: its grey values times AGENT_ROOM, and
    what the agent changes."""
    scale = float((scanned * before).sum()) / max(float((before * before).sum()), 1e-6)
    if scale < 1e-3:
        return after
    return np.clip(AGENT_ROOM * scanned + scale * (after - AGENT_ROOM * before), 0, 1)


def _bent(sources: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Each source by a gamma and a gain of its own."""
    gamma, gain = (np.exp(rng.normal(0, sd, (len(sources), 1, 1))).astype(np.float32) for sd in (GAMMA, GAIN))
    return np.clip(sources**gamma * gain, 0, 1)


def _state(folder: Path) -> _State:
    """Changes whenever a file of the folder is replaced: its files, and which ones they are."""
    return sorted((entry.name, entry.inode()) for entry in os.scandir(folder))


def _target_of(subject: Subject, contrast: str) -> Path:
    return subject.targets.get(contrast, subject.images[contrast])


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
