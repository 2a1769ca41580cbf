"""Patches of prepared volumes: the right voxels, anew each draw, padded where a volume is smaller."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_slices import SHAPE, make_subject, volume
from torch.utils.data import DataLoader

from monai_ext.data.batching import Draw, ModalityConsistentBatches
from monai_ext.data.patches import PatchDataset

SIZE = (4, 3, 5)


def patches(root: Path, **options) -> PatchDataset:
    subjects = [make_subject(root, name, "T1 T2 PD") for name in ("a", "b")]
    return PatchDataset(
        subjects, **{"sources": ["T1", "T2"], "target": ["PD"], "patch_size": SIZE, "per_subject": 3, **options}
    )


def places(item: dict, whole: np.ndarray, channel: torch.Tensor) -> list[tuple[int, int]]:
    """Where in the plane a patch's first voxels lie."""
    k = item["slice"]
    found = []
    for i in range(SHAPE[0] - SIZE[0] + 1):
        for j in range(SHAPE[1] - SIZE[1] + 1):
            block = whole[i : i + SIZE[0], j : j + SIZE[1], k : k + SIZE[2]]
            if np.allclose(block, channel, atol=1e-6):
                found.append((i, j))
    return found


def test_a_patch_is_one_block_of_each_of_the_subjects_volumes(tmp_path: Path) -> None:
    dataset = patches(tmp_path)
    assert len(dataset) == 6
    subject = make_subject(tmp_path, "b", "T1 T2 PD")
    for seed in range(20):
        item = dataset[Draw(4, seed)]
        assert item["subject"] == "b"
        assert item["sources"].shape == (2, *SIZE)
        assert item["target"].shape == (1, *SIZE)
        where = [places(item, volume(subject, name), channel) for name, channel in zip(
            ("T1", "T2", "PD"), [*item["sources"], *item["target"]], strict=True
        )]  # fmt: skip
        assert where[0] == where[1] == where[2]
        assert len(where[0]) == 1


def test_draws_reach_every_place_and_one_seed_gives_one_patch(tmp_path: Path) -> None:
    dataset = patches(tmp_path)
    one, again = dataset[Draw(0, 5)], dataset[Draw(0, 5)]
    assert torch.equal(one["sources"], again["sources"])
    subject = make_subject(tmp_path, "a", "T1 T2 PD")
    seen = set()
    for seed in range(200):
        item = dataset[Draw(seed % 3, seed)]
        seen |= {(*place, item["slice"]) for place in places(item, volume(subject, "T1"), item["sources"][0])}
    assert {i for i, _, _ in seen} == {0, 1, 2}
    assert {j for _, j, _ in seen} == {0, 1, 2}
    assert {k for _, _, k in seen} == {0, 1, 2, 3}


def test_without_a_draw_an_item_is_always_the_same(tmp_path: Path) -> None:
    dataset = patches(tmp_path)
    assert torch.equal(dataset[2]["target"], dataset[2]["target"])


def test_a_volume_smaller_than_a_patch_lies_in_its_middle(tmp_path: Path) -> None:
    dataset = patches(tmp_path, patch_size=(8, 9, 12))
    subject = make_subject(tmp_path, "a", "T1 T2 PD")
    for seed in range(10):
        item = dataset[Draw(0, seed)]
        inner = item["sources"][0, 1:7, 2:7, -item["slice"] : -item["slice"] + 8]
        np.testing.assert_allclose(inner, volume(subject, "T1"), atol=1e-6)
        assert np.isclose(item["sources"][0].sum(), volume(subject, "T1").sum())


def test_patches_of_volumes_of_unequal_size_share_a_batch(tmp_path: Path) -> None:
    subjects = [make_subject(tmp_path, "a", "T1 PD"), make_subject(tmp_path, "c", "T1 PD", shape=(9, 7, 6))]
    dataset = PatchDataset(subjects, sources=["T1"], target=["PD"], patch_size=SIZE, per_subject=2)
    loader = DataLoader(dataset, batch_sampler=ModalityConsistentBatches(dataset.kinds, batch_size=4))
    (batch,) = loader
    assert sorted(batch["subject"]) == ["a", "a", "c", "c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": (4, 4)}, "three numbers"),
        ({"patch_size": (4, 0, 4)}, "at least 1"),
        ({"per_subject": 0}, "per_subject"),
    ],
)
def test_senseless_sizes_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patches(tmp_path, **change)
