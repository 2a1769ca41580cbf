"""Modality-Consistent Batch Scheduler (PMM-Synth, arXiv 2602.19723): batches of one dataset and availability.

Step 1 groups the samples by kind, step 2 fills each group's last batch, step 3 shuffles within the groups,
cuts them into batches and shuffles the batches. Without a curriculum it serves any training on slices: every
draw is a function of (seed, epoch, batch), so a run resumes exactly, whatever its workers did.
"""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

# One stream of random numbers a purpose, so that a change to one leaves the others as they were.
_ORDER, _BATCH, _NAME = 0, 1, 2


class Kind(NamedTuple):
    """What the samples of a batch must share.

    Attributes:
        dataset: its name.
        available: which contrasts a sample has, in the order of the dataset's `contrasts`.
        size: pixels along the image's two axes.
    """

    dataset: str
    available: tuple[bool, ...]
    size: tuple[int, int] = (0, 0)  # slices of unequal sizes cannot be stacked either


class Draw(NamedTuple):
    """A dataset's key: which sample, with which random augmentation, the batch's synthesis condition, and its name.

    Attributes:
        sample: the item's number.
        seed: of the random augmentation.
        condition: for each contrast whether it is a source; None where sources and target are fixed.
        named: whether the item says of which dataset it is.
    """

    sample: int
    seed: int
    condition: tuple[bool, ...] | None = None  # True: a source; False: to be synthesised, or not there
    named: bool = True  # False: the network is not to be told of which dataset it is


def group_by_kind(kinds: Sequence[Hashable]) -> list[np.ndarray]:
    """Group the samples by kind (step 1).

    Args:
        kinds: one a sample; samples of equal kinds belong together.

    Returns:
        The samples' numbers by kind, in order of first appearance.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(number)
    return [np.array(group, dtype=np.int64) for group in groups.values()]


def draw_batches(groups: Sequence[np.ndarray], *, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw an epoch's batches, each out of one group, in random order (steps 2 and 3).

    A group's last batch is filled with samples drawn again from the group, as in the paper.

    Args:
        groups: the samples' numbers, as `group_by_kind` gives them.
        batch_size: samples a batch.
        rng: what draws.

    Returns:
        The samples' numbers, an array a batch.
    """
    batches = []
    for group in groups:
        order = rng.permutation(group)
        missing = -len(group) % batch_size
        if missing:
            again = np.resize(rng.permutation(group), missing)  # a small group goes round as often as it takes
            order = rng.permutation(np.concatenate([order, again]))
        batches += np.split(order, range(batch_size, len(order), batch_size))
    return [batches[number] for number in rng.permutation(len(batches))]


def most_missing(available: int, *, epoch: int, curriculum: int) -> int:
    """Say how many available contrasts may be targets: one at first, all but one from epoch `curriculum` on.

    The epochs before it are shared evenly by the numbers, since no paper gives a pace.

    Args:
        available: how many contrasts there are, at least 2.
        epoch: counted from 0.
        curriculum: the epoch from which any number may be.

    Returns:
        1 to available - 1.

    Example:
        >>> [most_missing(4, epoch=epoch, curriculum=6) for epoch in range(8)]
        [1, 1, 2, 2, 3, 3, 3, 3]
    """
    if epoch >= curriculum:
        return available - 1
    return 1 + epoch * (available - 1) // curriculum


def draw_condition(
    available: Sequence[bool], *, epoch: int, curriculum: int, rng: np.random.Generator
) -> tuple[bool, ...]:
    """Draw a synthesis condition: at least one available contrast is a source and at least one is a target.

    The number of targets is drawn first, so that one-to-many is trained as often as many-to-one.

    Args:
        available: for each contrast whether the samples have it.
        epoch: counted from 0.
        curriculum: see `most_missing`.
        rng: what draws.

    Returns:
        For each contrast whether it is a source. One that is available and no source is a target.
    """
    present = np.flatnonzero(available)
    targets = rng.integers(1, most_missing(len(present), epoch=epoch, curriculum=curriculum) + 1)
    condition = np.array(available, dtype=bool)
    condition[rng.permutation(present)[:targets]] = False
    return tuple(condition.tolist())


class ModalityConsistentBatches(Sampler[list[Draw]]):
    """A batch sampler for `DataLoader(dataset, batch_sampler=...)`, whose dataset takes `Draw` as key.

    A batch is shared by `world_size` processes, each of which takes its part: however many they are, an epoch has the
    same steps of the same samples. Call `advance()` after each step trained: workers fetch ahead, so only the caller
    knows what was used, and `state_dict()` then resumes at the very next batch.

    Args:
        kinds: each sample's, as `SliceDataset.kinds`.
        batch_size: samples a batch of all processes together, all of one kind.
        seed: of every draw.
        curriculum: None draws no conditions (sources and target are fixed); n draws one a batch, of one target in the
            first epoch and any number from epoch n on.
        unnamed: the share of batches, by chance, that do not say of which dataset they are, so that a dataset nobody
            knows is a case that is learnt.
        rank, world_size: of this process, and how many there are; `world_size` has to divide `batch_size`.

    Raises:
        ValueError: no samples, a number out of its range, processes that do not divide a batch, or a curriculum for
            samples of fewer than two contrasts.

    Example:
        >>> kinds = [Kind("ixi", (True, True))] * 4 + [Kind("brats", (True, False))] * 2
        >>> batches = ModalityConsistentBatches(kinds, batch_size=2)
        >>> len(batches)
        3
        >>> sorted(sorted(draw.sample for draw in batch)[-1] < 4 for batch in batches)  # two are of the first dataset
        [False, True, True]
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        *,
        batch_size: int = 16,
        seed: int = 0,
        curriculum: int | None = None,
        unnamed: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(kinds):
            raise ValueError("kinds is empty: there is no sample to draw batches from")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("world_size", world_size, 1),
            ("seed", seed, 0),
            ("rank", rank, 0),
            ("curriculum", curriculum or 0, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if isinstance(unnamed, bool) or not isinstance(unnamed, int | float) or not 0 <= unnamed < 1:
            raise ValueError(f"unnamed must be from 0 to below 1, got {unnamed!r}")
        if rank >= world_size:
            raise ValueError(f"rank must be below world_size, got rank={rank}, world_size={world_size}")
        if batch_size % world_size:
            raise ValueError(
                "batch_size is of all processes together and must be a multiple of world_size, so that each has the "
                f"same, got batch_size={batch_size}, world_size={world_size}"
            )

        self._groups = group_by_kind(kinds)
        self._kinds = list(kinds)
        if curriculum is not None:
            for group in self._groups:
                kind = kinds[group[0]]
                if sum(kind.available) < 2:
                    raise ValueError(
                        f"a synthesis condition needs a source and a target, but {len(group)} samples of "
                        f"dataset {kind.dataset!r} have {sum(kind.available)} contrasts; leave them out"
                    )
        self.batch_size, self.seed, self.curriculum = batch_size, seed, curriculum
        self.unnamed = float(unnamed)
        self.rank, self.world_size = rank, world_size
        self.epoch, self.position = 0, 0
        self._batches = sum(-(-len(group) // batch_size) for group in self._groups)

    def __len__(self) -> int:
        """Batches in a whole epoch, the same in every process and every epoch."""
        return self._batches

    def __iter__(self) -> Iterator[list[Draw]]:
        """The epoch's batches from `position` on, which `advance` and `set_epoch` no longer change."""
        epoch, first = self.epoch, self.position
        rng = np.random.default_rng([self.seed, epoch, _ORDER])
        batches = draw_batches(self._groups, batch_size=self.batch_size, rng=rng)
        return (self._draws(batches[number], number, epoch) for number in range(first, len(self)))

    def _draws(self, batch: np.ndarray, number: int, epoch: int) -> list[Draw]:
        rng = np.random.default_rng([self.seed, epoch, _BATCH, number])
        condition = None
        if self.curriculum is not None:
            available = self._kinds[batch[0]].available
            condition = draw_condition(available, epoch=epoch, curriculum=self.curriculum, rng=rng)
        seeds = rng.integers(2**32, size=len(batch))
        named = np.random.default_rng([self.seed, epoch, _NAME, number]).random() >= self.unnamed
        samples = zip(batch.tolist(), seeds.tolist(), strict=True)
        draws = [Draw(sample, seed, condition, bool(named)) for sample, seed in samples]
        return draws[self.rank :: self.world_size]

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, counted from 0; the epoch one is in already keeps its position.

        Args:
            epoch: of which `__iter__` gives the batches from now on; another one begins at its first batch.

        Raises:
            ValueError: the epoch is no whole number of at least 0.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch must be a whole number of at least 0, got {epoch!r}")
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def advance(self) -> None:
        """One more batch has been trained on; after an epoch's last batch, the next epoch begins."""
        self.position += 1
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for group in self._groups:
            digest.update(repr(tuple(self._kinds[group[0]])).encode() + group.tobytes())
        names = ("batch_size", "seed", "curriculum", "unnamed", "world_size")
        return {
            "samples": len(self._kinds),
            "kinds": digest.hexdigest()[:16],
            **{name: getattr(self, name) for name in names},
        }

    def state_dict(self) -> dict[str, Any]:
        """Tell the position and the settings; the same in every process, so that one process's checkpoint resumes
        them all.

        Returns:
            "epoch" and "position", the batch to come, with what `load_state_dict` compares: how many samples, a digest
            of their kinds, and the constructor's numbers but for `rank`. Plain values.
        """
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the run that stopped was.

        Args:
            state: of its `state_dict`.

        Raises:
            ValueError: the batches to come would not be those that the stopped run had before it: other settings or
                data.
        """
        state = {"unnamed": 0.0, **state}  # older ones named every batch, and do not say so
        for name, value in self._identity().items():
            if name not in state or state[name] != value:
                raise ValueError(
                    f"cannot resume: {name} is {value}, the stopped run had {state.get(name, 'none')}; "
                    "resume with its settings and data, or start anew"
                )
        epoch, position = state.get("epoch"), state.get("position")
        if not isinstance(epoch, int) or not isinstance(position, int) or epoch < 0 or not 0 <= position < len(self):
            raise ValueError(
                f"cannot resume: epoch must be at least 0 and position from 0 to {len(self) - 1}, "
                f"got epoch={epoch!r}, position={position!r}"
            )
        self.epoch, self.position = epoch, position
