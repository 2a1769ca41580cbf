"""Modality-consistent batches: complete, homogeneous, sharded, repeatable, resumable."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from monai_ext.data.batching import (
    Draw,
    Kind,
    ModalityConsistentBatches,
    draw_batches,
    draw_condition,
    group_by_kind,
    most_missing,
)

DATASETS = ("ttg", "tti", "brats", "isles")


def random_kinds(seed: int, *, modalities: int = 6) -> list[Kind]:
    """A random availability table: up to 120 samples of four datasets, each of two contrasts or more."""
    rng = np.random.default_rng(seed)
    kinds = []
    for _ in range(rng.integers(1, 121)):
        available = np.zeros(modalities, dtype=bool)
        available[rng.permutation(modalities)[: rng.integers(2, modalities + 1)]] = True
        kinds.append(Kind(dataset=DATASETS[rng.integers(4)], available=tuple(available.tolist())))
    return kinds


def samples(batches: list[list[Draw]]) -> list[int]:
    return [draw.sample for batch in batches for draw in batch]


@pytest.mark.parametrize("seed", range(30))
def test_a_batch_never_mixes_kinds(seed: int) -> None:
    kinds = random_kinds(seed)
    for batch in ModalityConsistentBatches(kinds, batch_size=5, seed=seed):
        assert len({kinds[draw.sample] for draw in batch}) == 1


def test_slices_of_unequal_size_share_no_batch() -> None:
    kinds = [Kind("ixi", (True, True), size) for size in [(8, 8), (8, 9)] * 6]
    for batch in ModalityConsistentBatches(kinds, batch_size=12):
        assert len({kinds[draw.sample].size for draw in batch}) == 1


@pytest.mark.parametrize("seed", range(30))
def test_as_in_the_paper_every_batch_is_whole_and_repeats_only_what_that_needs(seed: int) -> None:
    kinds, batch_size = random_kinds(seed), 7
    sampler = ModalityConsistentBatches(kinds, batch_size=batch_size, seed=seed)
    sampler.set_epoch(seed % 3)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert {len(batch) for batch in batches} == {batch_size}
    counts = Counter(samples(batches))
    for group in group_by_kind(kinds):
        drawn = [counts[number] for number in group.tolist()]
        assert sum(drawn) == -(-len(group) // batch_size) * batch_size
        assert min(drawn) >= 1
        assert max(drawn) - min(drawn) <= 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_processes_share_each_batch_of_one(seed: int, world_size: int) -> None:
    settings = {"kinds": random_kinds(seed), "batch_size": 12, "seed": seed, "curriculum": 2}
    single = list(ModalityConsistentBatches(**settings))
    shares = [
        list(ModalityConsistentBatches(**settings, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert [len(share) for share in shares] == [len(single)] * world_size
    for whole, *parts in zip(single, *shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        assert {draw.condition for part in parts for draw in part} == {whole[0].condition}
        together = Counter(draw.sample for part in parts for draw in part)
        assert together == Counter(draw.sample for draw in whole)


def test_processes_draw_the_augmentations_of_one() -> None:
    settings = {"kinds": [Kind("a", (True,))] * 8, "batch_size": 4}
    single = [draw for batch in ModalityConsistentBatches(**settings) for draw in batch]
    parts = [ModalityConsistentBatches(**settings, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(single) == sorted(draw for part in parts for batch in part for draw in batch)


def test_same_seed_same_order_and_another_epoch_or_seed_another() -> None:
    kinds = random_kinds(3)
    sampler = ModalityConsistentBatches(kinds, batch_size=4, seed=5, curriculum=10)
    first = list(sampler)
    assert list(sampler) == first
    assert list(ModalityConsistentBatches(kinds, batch_size=4, seed=5, curriculum=10)) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert samples(second) != samples(first)
    assert samples(list(ModalityConsistentBatches(kinds, batch_size=4, seed=6))) != samples(first)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_batches_are_shuffled_across_groups_and_within() -> None:
    kinds = [Kind("a", (True, True))] * 400 + [Kind("b", (True, True))] * 400
    order = samples(list(ModalityConsistentBatches(kinds, batch_size=4)))
    changes = sum((left < 400) != (right < 400) for left, right in zip(order[:-4:4], order[4::4], strict=True))
    assert 70 < changes < 130, "200 batches in random order change group about 100 times"
    within = [number for number in order if number < 400]
    assert abs(np.corrcoef(np.arange(400), within)[0, 1]) < 0.2


def test_every_draw_has_an_augmentation_seed_of_its_own() -> None:
    seeds = [draw.seed for batch in ModalityConsistentBatches([Kind("a", (True,))] * 5, batch_size=4) for draw in batch]
    assert len(set(seeds)) == len(seeds) == 8


@pytest.mark.parametrize("seed", range(30))
def test_a_condition_leaves_a_source_and_an_available_target(seed: int) -> None:
    kinds = random_kinds(seed)
    sampler = ModalityConsistentBatches(kinds, batch_size=3, seed=seed, curriculum=4)
    for epoch in range(6):
        sampler.set_epoch(epoch)
        for batch in sampler:
            (condition,) = {draw.condition for draw in batch}
            available = np.array(kinds[batch[0].sample].available)
            source = np.array(condition)
            assert not (source & ~available).any(), "what is not there is never a source"
            assert source.any()
            limit = most_missing(int(available.sum()), epoch=epoch, curriculum=4)
            assert 1 <= (available & ~source).sum() <= limit


def test_without_a_curriculum_no_condition_is_drawn() -> None:
    kinds = [Kind("ixi", (True, False))] * 3
    assert all(draw.condition is None for batch in ModalityConsistentBatches(kinds) for draw in batch)


def test_the_curriculum_rises_from_one_missing_to_any() -> None:
    limits = [most_missing(6, epoch=epoch, curriculum=10) for epoch in range(14)]
    assert limits == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 5, 5]
    assert [most_missing(6, epoch=epoch, curriculum=0) for epoch in range(2)] == [5, 5]
    assert [most_missing(2, epoch=epoch, curriculum=10) for epoch in (0, 5, 50)] == [1, 1, 1]
    assert [most_missing(6, epoch=epoch, curriculum=2) for epoch in range(3)] == [1, 3, 5]


def test_conditions_take_every_number_of_targets_equally_often() -> None:
    rng = np.random.default_rng(0)
    available = (True, True, False, True, True)
    drawn = Counter(draw_condition(available, epoch=9, curriculum=3, rng=rng) for _ in range(3000))
    assert len(drawn) == 2**4 - 2, "every proper part of the four"
    by_number = Counter()
    for condition, times in drawn.items():
        by_number[4 - sum(condition)] += times
    assert all(abs(by_number[number] - 1000) < 120 for number in (1, 2, 3))


def test_a_stopped_epoch_resumes_at_its_next_batch() -> None:
    kinds = random_kinds(11)
    settings = {"batch_size": 4, "seed": 2, "curriculum": 3}
    whole = ModalityConsistentBatches(kinds, **settings)
    everything = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        everything += list(whole)

    stop = len(whole) + 2
    stopped = ModalityConsistentBatches(kinds, **settings)
    for _ in range(stop):
        stopped.advance()
    resumed = ModalityConsistentBatches(kinds, **settings)
    resumed.load_state_dict(stopped.state_dict())
    assert (resumed.epoch, resumed.position) == (1, 2)
    rest = list(resumed)
    resumed.set_epoch(1)
    assert list(resumed) == rest, "naming the epoch one is in loses no position"
    resumed.set_epoch(2)
    rest += list(resumed)
    assert rest == everything[stop:]
    assert len(resumed) == len(whole), "an epoch's length does not depend on where it was resumed"


def test_the_state_is_what_was_trained_on_and_not_what_workers_fetched_ahead() -> None:
    sampler = ModalityConsistentBatches([Kind("a", (True, True))] * 40, batch_size=4)
    loader = DataLoader(Echo(), batch_sampler=sampler, num_workers=1, prefetch_factor=4)
    batches = iter(loader)
    seen = []
    for _ in range(3):
        seen.append(next(batches).tolist())
        sampler.advance()
    state = sampler.state_dict()
    rest = [batch.tolist() for batch in batches]
    sampler.load_state_dict(state)
    assert [batch.tolist() for batch in loader] == rest
    assert sorted(number for batch in seen + rest for number in batch) == list(range(40))


class Echo(Dataset[torch.Tensor]):
    """An item is the number of the sample that it was asked for."""

    def __getitem__(self, key: Draw) -> torch.Tensor:
        return torch.tensor(key.sample)


def test_a_change_while_iterating_does_not_disturb_the_epoch() -> None:
    sampler = ModalityConsistentBatches(random_kinds(4), batch_size=2)
    expected, seen = list(sampler), []
    for batch in sampler:
        seen.append(batch)
        sampler.advance()
    assert seen == expected
    assert (sampler.epoch, sampler.position) == (1, 0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 3}, "batch_size"),
        ({"world_size": 2}, "world_size"),
        ({"curriculum": 2}, "curriculum"),
        ({"unnamed": 0.5}, "unnamed"),
        ({"kinds": [Kind("a", (True, True))] * 9}, "samples"),
        ({"kinds": [Kind("b", (True, True))] * 8}, "kinds"),
    ],
)
def test_resuming_with_other_settings_or_data_is_refused(change: dict, name: str) -> None:
    settings = {"kinds": [Kind("a", (True, True))] * 8, "batch_size": 4}
    state = ModalityConsistentBatches(**settings).state_dict()
    other = ModalityConsistentBatches(**{**settings, **change})
    with pytest.raises(ValueError, match=f"cannot resume: {name} is"):
        other.load_state_dict(state)


@pytest.mark.parametrize("change", [{"epoch": -1}, {"position": 2}, {"position": None}])
def test_a_broken_state_is_refused(change: dict) -> None:
    sampler = ModalityConsistentBatches([Kind("a", (True, True))] * 8, batch_size=4)
    with pytest.raises(ValueError, match="position from 0 to 1"):
        sampler.load_state_dict({**sampler.state_dict(), **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"world_size": 0}, "world_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 3, "world_size": 2}, "must be a multiple of world_size, .* got batch_size=3, world_size=2"),
        ({"rank": 2, "world_size": 2}, "rank must be below world_size, got rank=2, world_size=2"),
        ({"curriculum": -3}, "curriculum must be a whole number of at least 0, got -3"),
        ({"unnamed": 1.0}, "unnamed must be from 0 to below 1, got 1.0"),
        ({"unnamed": -0.1}, "unnamed must be from 0 to below 1, got -0.1"),
        ({"unnamed": "often"}, "unnamed must be from 0 to below 1, got 'often'"),
        ({"kinds": []}, "kinds is empty"),
        ({"kinds": [Kind("tti", (True, False))] * 2, "curriculum": 5}, "2 samples of dataset 'tti' have 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalityConsistentBatches(**{"kinds": [Kind("a", (True, True))], **arguments})


@pytest.mark.parametrize("epoch", [-1, 0.5, True])
def test_an_epoch_is_a_whole_number(epoch: float) -> None:
    sampler = ModalityConsistentBatches([Kind("a", (True, True))])
    with pytest.raises(ValueError, match="epoch must be a whole number"):
        sampler.set_epoch(epoch)


def test_drawing_batches_changes_nothing_but_the_generator() -> None:
    groups = [np.arange(5), np.arange(5, 7)]
    draw_batches(groups, batch_size=4, rng=np.random.default_rng(0))
    assert [group.tolist() for group in groups] == [[0, 1, 2, 3, 4], [5, 6]]


def test_so_many_batches_are_unnamed_as_wholes_and_all_else_stays_as_it_was() -> None:
    settings = {"kinds": [Kind("a", (True, True))] * 4000, "batch_size": 4, "curriculum": 0}
    every, some = (list(ModalityConsistentBatches(**settings, unnamed=share)) for share in (0.0, 0.15))
    assert all(draw.named for batch in every for draw in batch)
    assert [[draw[:3] for draw in batch] for batch in some] == [[draw[:3] for draw in batch] for batch in every]
    named = [{draw.named for draw in batch} for batch in some]
    assert all(len(said) == 1 for said in named)
    assert 0.11 < named.count({False}) / len(named) < 0.19
