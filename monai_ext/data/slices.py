"""Slices of prepared subjects as training items, by the papers' rules, each read when asked for.

Nothing is kept but names and numbers: no file stays open and no volume in memory, whatever the number of subjects
and workers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from monai_ext.data.batching import Draw, Kind
from monai_ext.data.datalist import MASKS, Subject, SubjectError
from monai_ext.data.slice_files import clear_unseen, count_foreground, prepared_shape, read_slices
from monai_ext.modalities import canonical

RULES = '"every", "nonempty", ("middle", n) or ("brain", n)'


class _Row(NamedTuple):
    """What is kept of a subject: `sources`, `targets` and `masks` are in the order of the dataset's own."""

    name: str
    person: str
    sources: tuple[str | None, ...]
    targets: tuple[str | None, ...]
    masks: tuple[str, ...]
    depth: int
    kind: Kind


def parse_rule(rule: str | Sequence[Any]) -> tuple[str, int | None]:
    """Read a slice rule from a config's text or list.

    Args:
        rule: "every", "nonempty", ("middle", n) or ("brain", n), n at least 1.

    Returns:
        The rule's name, and its number of slices or None.

    Raises:
        ValueError: it is no rule.

    Example:
        >>> parse_rule("nonempty"), parse_rule(["middle", 100])
        (('nonempty', None), ('middle', 100))
    """
    parts = (rule,) if isinstance(rule, str) else tuple(rule)
    if parts in (("every",), ("nonempty",)):
        return parts[0], None
    if len(parts) == 2 and parts[0] in ("middle", "brain"):
        count = parts[1]
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return parts[0], count
    raise ValueError(f"slices must be {RULES} with n at least 1, got {rule!r}")


def choose_slices(content: np.ndarray, *, rule: str, count: int | None) -> np.ndarray:
    """Choose slices by a rule. Where a volume has fewer than `count` to choose from, all of them are taken.

    Args:
        content: (K,), how many foreground voxels each slice has.
        rule: as `parse_rule` gives it.
        count: how many slices, for the rules that have a number.

    Returns:
        The slices' numbers, rising.
    """
    if rule == "every":
        return np.arange(len(content))
    filled = np.flatnonzero(content)
    if rule == "nonempty" or count is None or len(filled) <= count:
        return filled
    if rule == "middle":
        first = (len(filled) - count) // 2
        return filled[first : first + count]
    # "brain": those that hold the most of it; a stable sort, so that ties fall alike on every machine
    return np.sort(filled[np.argsort(-content[filled], kind="stable")[:count]])


class SliceDataset(Dataset[dict[str, Any]]):
    """Slices of prepared subjects, one item a slice, read from its file when asked for.

    An item has "sources" (M, H, W) and "target" (K, H, W), float32 in [0, 1], H and W the volume's i and j axes;
    "subject", "slice" and "dataset", which say where it is from; and "available", which of `contrasts` the subject has:
    the sources, then those targets that are no source. A subject's `targets` are what is read into "target", its images
    where it has none.

    A key is a number or a `Draw`. A `Draw` seeds the transform; torch's own generator does for a plain number: a
    loader's workers and epochs then draw apart. Its condition is then "condition", and what it leaves to synthesise is
    zero in "sources" and whole in "target". One that is not `named` has "" for its "dataset".

    Args:
        data: prepared subjects.
        sources, target: contrasts, the channels of "sources" and of "target"; apart (a fixed task) or one list (any
            from any).
        slices: "every", "nonempty", ("middle", n) of the non-empty, or ("brain", n), those with most brain.
        allow_missing: zeros for a contrast that a subject lacks.
        neighbours: n puts n slices of either side beside each source: M * (2n + 1) channels, edge slices repeated.
        masks: those of the subjects' masks that come along as "masks" (N, H, W), 1 inside; `transform` must move them
            too where it moves images.
        transform: a MONAI dictionary transform over "sources" and "target".
        size: that of what `transform` makes, where it makes all slices alike; None where it leaves their size.
        failures: joined by subjects that cannot serve, while the others are taken.

    Raises:
        ValueError: an argument that may not be, or no subject can serve.
        SubjectError: a subject cannot serve, where `failures` is None.

    Example:
        >>> import tempfile
        >>> from monai_ext.data.volumes import Volume, write_volume
        >>> folder = Path(tempfile.mkdtemp())  # as `prepare` leaves it: 16 bits that are [0, 1], RAS, axial slices last
        >>> image = Volume(np.full((16, 16, 4), 0.5, np.float32), np.eye(4))
        >>> for contrast in ("T1", "T2"):
        ...     write_volume(folder / f"{contrast}.nii", image, dtype=np.uint16, slope=1 / 65535)
        >>> subject = Subject("IXI012", "ixi", {"T1": folder / "T1.nii", "T2": folder / "T2.nii"})
        >>> data = SliceDataset([subject], sources=["T1"], target=["T2"])
        >>> len(data), data[0]["sources"].shape, data[0]["subject"]
        (4, torch.Size([1, 16, 16]), 'IXI012')
    """

    def __init__(
        self,
        data: Sequence[Subject],
        *,
        sources: Sequence[str],
        target: Sequence[str],
        slices: str | Sequence[Any] = "nonempty",
        allow_missing: bool = False,
        neighbours: int = 0,
        masks: Sequence[str] = (),
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        size: tuple[int, int] | None = None,
        failures: list[SubjectError] | None = None,
    ) -> None:
        self.sources, self.target = _names("sources", sources), _names("target", target)
        if self.sources != self.target and set(self.sources) & set(self.target):
            raise ValueError(
                "sources and target must have no contrast in common, or be the same list, "
                f"got sources={list(self.sources)}, target={list(self.target)}"
            )
        if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 0:
            raise ValueError(f"neighbours must be a whole number of at least 0, got {neighbours!r}")
        unknown = [name for name in masks if name not in MASKS]
        if isinstance(masks, str) or unknown:
            raise ValueError(f"masks must be a list of {' and '.join(MASKS)}, got {masks!r}")
        self.masks = tuple(masks)
        self.contrasts = tuple(dict.fromkeys(self.sources + self.target))
        self.rule, self.count = parse_rule(slices)
        self.allow_missing, self.neighbours, self.transform, self.size = allow_missing, neighbours, transform, size

        self._rows: list[_Row] = []
        chosen: list[np.ndarray] = []
        for subject in data:
            try:
                row, numbers = self._examine(subject)
            except SubjectError as fault:
                if failures is None:
                    raise
                failures.append(fault)
            else:
                self._rows.append(row)
                chosen.append(numbers)
        if not chosen:
            raise ValueError(f"no slices: none of the {len(data)} subjects can serve")
        self._slice_of = np.concatenate(chosen).astype(np.int32)
        self._row_of = np.repeat(np.arange(len(chosen), dtype=np.int32), [len(numbers) for numbers in chosen])

    def __len__(self) -> int:
        return len(self._slice_of)

    @property
    def kinds(self) -> list[Kind]:
        """Each item's dataset, availability and size, for `ModalityConsistentBatches`."""
        kinds = [row.kind if self.size is None else row.kind._replace(size=self.size) for row in self._rows]
        return [kinds[number] for number in self._row_of]

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        draw = key if isinstance(key, Draw) else None
        index = draw.sample if draw else key
        row, number = self._rows[self._row_of[index]], int(self._slice_of[index])
        sources, target = self._read(row, number)
        item: dict[str, Any] = {
            "sources": torch.from_numpy(sources),
            "target": torch.from_numpy(target),
            "subject": row.name,
            "slice": number,
            "dataset": row.kind.dataset if draw is None or draw.named else "",
            "available": torch.tensor(row.kind.available),
        }
        if self.masks:
            item["masks"] = torch.from_numpy(self._read_masks(row, number))
        item = self._transformed(item, draw, row.kind.available)
        if draw and draw.condition is not None:
            if self.sources != self.target or len(draw.condition) != len(self.contrasts):
                raise ValueError(
                    "a synthesis condition has an entry a contrast, and sources and target are one list; "
                    f"got {draw.condition}, sources={list(self.sources)}, target={list(self.target)}"
                )
            item["sources"] = self._keep(item["sources"], self.sources, draw.condition)
            item["condition"] = torch.tensor(draw.condition)
        return item

    def _transformed(self, item: dict[str, Any], draw: Draw | None, available: Sequence[bool]) -> dict[str, Any]:
        if self.transform is None:
            return item
        if hasattr(self.transform, "set_random_state"):
            # a transform's own state is copied into every worker, of every epoch; torch's differs in each
            self.transform.set_random_state(seed=draw.seed if draw else int(torch.randint(2**31, ())))
        item = self.transform(item)
        for name in ("sources", "target"):  # what is absent stays zero after a shift of intensity
            plain = torch.as_tensor(item[name], dtype=torch.float32).as_subclass(torch.Tensor)
            item[name] = self._keep(plain, getattr(self, name), available)
        return item

    def _keep(self, images: torch.Tensor, contrasts: Sequence[str], available: Sequence[bool]) -> torch.Tensor:
        """Images with every channel of a contrast that is not kept set to zero."""
        if all(available):
            return images
        for channels, contrast in zip(images.chunk(len(contrasts)), contrasts, strict=True):
            if not available[self.contrasts.index(contrast)]:
                channels.zero_()
        return images

    def _read(self, row: _Row, number: int) -> tuple[np.ndarray, np.ndarray]:
        around = np.arange(number - self.neighbours, number + self.neighbours + 1).clip(0, row.depth - 1)
        sources = np.zeros((len(self.sources), len(around), *row.kind.size), dtype=np.float32)
        target = np.zeros((len(self.target), *row.kind.size), dtype=np.float32)
        own_slices: dict[str, np.ndarray] = {}
        for image, path in zip(sources, row.sources, strict=True):
            if path is not None:
                first = int(around[0])
                read = self._slices(row, path, first, int(around[-1]) + 1)
                image[...], own_slices[path] = read[around - first], read[number - first]
        for image, path in zip(target, row.targets, strict=True):
            if path is not None:
                image[...] = own_slices[path] if path in own_slices else self._slices(row, path, number, number + 1)[0]
        return sources.reshape(-1, *row.kind.size), target

    def _read_masks(self, row: _Row, number: int) -> np.ndarray:
        return np.stack([self._slices(row, path, number, number + 1)[0] > 0 for path in row.masks]).astype(np.float32)

    def _slices(self, row: _Row, path: str, first: int, stop: int) -> np.ndarray:
        with faults_of(row.name, Path(path), where=f"slice {first}: "):
            return read_slices(path, first, stop)

    def _examine(self, subject: Subject) -> tuple[_Row, np.ndarray]:
        """A subject's row and its chosen slices, or a SubjectError that says why it cannot serve."""
        sources = [subject.images.get(contrast) for contrast in self.sources]
        targets = [subject.targets.get(contrast, subject.images.get(contrast)) for contrast in self.target]
        path_of = {**dict(zip(self.target, targets, strict=True)), **dict(zip(self.sources, sources, strict=True))}
        available = tuple(path_of[contrast] is not None for contrast in self.contrasts)
        present = [contrast for contrast, is_there in zip(self.contrasts, available, strict=True) if is_there]
        missing = [contrast for contrast in self.contrasts if contrast not in present]
        if missing and not self.allow_missing:
            reason = f"lacks {', '.join(missing)}; leave it out, or take zeros instead with allow_missing"
            raise SubjectError(subject.name, None, reason)
        if not any(a != b for a in present if a in self.sources for b in present if b in self.target):
            reason = (
                f"has {', '.join(present) or 'none'} of {', '.join(self.contrasts)}: "
                "it takes a source and another contrast as target"
            )
            raise SubjectError(subject.name, None, reason)
        for name in self.masks:
            if name not in subject.masks:
                reason = f"has no mask {name!r}; phantoms have them, as `masks` of the datalist"
                raise SubjectError(subject.name, None, reason)

        files = list(dict.fromkeys(path for path in [*sources, *targets] if path is not None))
        mask = files[0].parent / "mask.nii"
        masks = [mask] if mask.exists() else []
        truths = [subject.masks[name] for name in self.masks]
        shapes = {}
        for path in [*files, *masks, *truths]:
            with faults_of(subject.name, path):
                shapes[path] = prepared_shape(path, image=path in files)
        shape = shapes[files[0]]
        for path, other in shapes.items():
            if other != shape:
                reason = f"is {other}, but {files[0].name} is {shape}; prepare it again"
                raise SubjectError(subject.name, path, reason)
        content = self._content(subject.name, files, masks, shape[2])
        numbers = choose_slices(content, rule=self.rule, count=self.count)
        if not len(numbers):
            raise SubjectError(subject.name, [*masks, *files][0], "every slice is empty")
        kind = Kind(dataset=subject.dataset, available=available, size=shape[:2])
        row = _Row(
            name=subject.name,
            person=subject.subject,
            sources=tuple(None if path is None else str(path) for path in sources),
            targets=tuple(None if path is None else str(path) for path in targets),
            masks=tuple(str(path) for path in truths),
            depth=shape[2],
            kind=kind,
        )
        return row, numbers

    def _content(self, name: str, files: Sequence[Path], masks: Sequence[Path], depth: int) -> np.ndarray:
        """Foreground voxels in each slice: the mask's, or else the emptiest contrast's."""
        if self.rule == "every":
            return np.ones(depth, dtype=np.int64)
        if self.rule == "brain" and not masks:
            raise SubjectError(name, files[0].parent, "has no mask.nii, which the rule 'brain' needs; prepare one")
        counted = []
        for path in masks or files:
            with faults_of(name, path):
                counted.append(count_foreground(path, depth))
        content = np.min(counted, axis=0)
        if masks:
            for path in files:
                with faults_of(name, path):
                    clear_unseen(content, path)
        return content


def _names(what: str, contrasts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(contrasts, str) or not contrasts:
        raise ValueError(f"{what} must be a list of at least one contrast, got {contrasts!r}")
    names = tuple(canonical(contrast) for contrast in contrasts)
    if len(set(names)) < len(names):
        raise ValueError(f"{what} names a contrast twice: {list(contrasts)} means {list(names)}")
    return names


@contextmanager
def faults_of(subject: str, path: Path, *, where: str = "") -> Iterator[None]:
    """Turn what goes wrong with a file into its subject's fault.

    Args:
        subject: whose file it is.
        path: the file.
        where: what the message begins with.

    Yields:
        None, once, for the block that reads the file.

    Raises:
        SubjectError: in place of a ValueError or an OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise SubjectError(subject, path, f"{where}cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SubjectError(subject, path, f"{where}{error}") from error
