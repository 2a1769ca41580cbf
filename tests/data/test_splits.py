"""Splits depend on names and seed alone, keep people whole, and give what was asked for or say why not."""

import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from monai_ext.data.datalist import Subject
from monai_ext.data.splits import parse_split, split_subjects


def people(names: Iterable[str], sessions: int = 1) -> list[Subject]:
    return [
        Subject(subject=name, dataset="d", images={"T1": Path("/x")}, session=str(session) if sessions > 1 else "")
        for name in names
        for session in range(sessions)
    ]


def test_a_split_is_the_same_on_every_machine() -> None:
    splits = split_subjects(people(f"IXI{n:03}" for n in range(20)), split=(3, 2, 1), seed=0)
    assert {name: [subject.name for subject in subjects] for name, subjects in splits.items()} == {
        "training": ["IXI004", "IXI010", "IXI016"],
        "validation": ["IXI007", "IXI008"],
        "test": ["IXI009"],
    }


def test_a_split_does_not_depend_on_the_order_and_does_on_the_seed() -> None:
    subjects = people((f"IXI{n:03}" for n in range(577)), sessions=2)
    shuffled = random.Random(0).sample(subjects, len(subjects))
    split = split_subjects(subjects, split=(500, 37, 40), seed=0)
    assert split == split_subjects(shuffled, split=(500, 37, 40), seed=0)
    assert split != split_subjects(subjects, split=(500, 37, 40), seed=1)


def test_a_persons_sessions_never_straddle_a_split() -> None:
    splits = split_subjects(people((str(n) for n in range(577)), sessions=3), split=(500, 37, 40), seed=0)
    who = {name: {subject.subject for subject in subjects} for name, subjects in splits.items()}
    assert [len(names) for names in who.values()] == [500, 37, 40]
    assert [len(subjects) for subjects in splits.values()] == [1500, 111, 120]
    assert len(set.union(*who.values())) == 577


def test_a_name_is_placed_alike_however_its_accents_are_spelled() -> None:
    for seed in range(20):
        composed, decomposed = (
            split_subjects(people([name, "b", "c"]), split=(1, 1, 1), seed=seed) for name in ("Zo\u00e9", "Zoe\u0301")
        )
        for split in composed:
            assert [len(s.subject) < 3 for s in composed[split]] == [len(s.subject) < 3 for s in decomposed[split]]


@pytest.mark.parametrize(
    ("text", "number", "counts"),
    [
        ("500/37/40", 577, (500, 37, 40)),
        ("3/1/1", 9, (3, 1, 1)),
        ("0.7/0.1/0.2", 577, (404, 58, 115)),
        ("70/10/20%", 577, (404, 58, 115)),
        ("80/10/10%", 5, (4, 1, 0)),
        ("1.0/0/0", 3, (3, 0, 0)),
        ("0/0/2", 2, (0, 0, 2)),
    ],
)
def test_counts_are_exact_and_parts_use_everyone(text: str, number: int, counts: tuple[int, ...]) -> None:
    splits = split_subjects(people(map(str, range(number))), split=parse_split(text), seed=0)
    assert tuple(len(subjects) for subjects in splits.values()) == counts


def test_more_people_asked_for_than_there_are_is_refused_with_the_same_proportions() -> None:
    message = "asks for 577 people, there are 100; in the same proportions that is --split 87/6/7"
    with pytest.raises(ValueError, match=message):
        split_subjects(people(map(str, range(100))), split=(500, 37, 40), seed=0)
    splits = split_subjects(people(map(str, range(100))), split=parse_split("87/6/7"), seed=0)
    assert sum(len(subjects) for subjects in splits.values()) == 100


@pytest.mark.parametrize("text", ["", "80/20", "a/b/c", "-1/2/3", "nan/1/1", "inf/1/1", "1/2/3/4"])
def test_a_split_that_is_not_three_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"--split must be three counts .*got {re.escape(repr(text))}"):
        parse_split(text)


@pytest.mark.parametrize(("text", "whole"), [("0.7/0.1/0.1", "1"), ("70/10/10%", "100"), ("0/0/0", "one person")])
def test_a_split_that_does_not_add_up_is_refused(text: str, whole: str) -> None:
    with pytest.raises(ValueError, match=f"--split.* {whole}"):
        parse_split(text)
