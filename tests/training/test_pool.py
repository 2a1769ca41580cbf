"""Slices of a pool that is renewed meanwhile, on canvases of any size."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pools import write_pool

from monai_ext.data.batching import Draw, ModalityConsistentBatches
from monai_ext.data.datalist import SubjectError
from monai_ext.data.slice_files import read_slices
from monai_ext.training.pool import BACKGROUND, HEAD, PoolSlices, VariedCanvas, _coil, pool

TASK = {"sources": ["T1", "T2"], "target": "FLAIR"}


def test_what_is_learnt_is_the_target_and_what_is_given_the_scan(tmp_path):
    data = pool(write_pool(tmp_path), "validation", **TASK, varied=False)
    item = data[0]
    number, folder = item["slice"], tmp_path / item["subject"]
    for name, file in (("sources", "T1"), ("target", "FLAIR_target")):
        np.testing.assert_array_equal(item[name][0], read_slices(folder / f"{file}.nii", number, number + 1)[0])


def test_the_t1c_to_be_made_is_the_t1_that_was_given_and_what_the_agent_changes(tmp_path):
    contrasts = ["T1", "T2", "T1C"]
    data = pool(write_pool(tmp_path), "training", sources=contrasts, target=contrasts, varied=False)
    without, given = (data[Draw(0, 0, condition)] for condition in ((False, True, False), (True, True, False)))
    number, folder = given["slice"], tmp_path / given["subject"]
    scan, t1, t1c = (
        read_slices(folder / f"{name}.nii", number, number + 1)[0] for name in ("T1", "T1_target", "T1C_target")
    )
    np.testing.assert_array_equal(without["target"][2], t1c)
    torch.testing.assert_close(given["target"][:2], without["target"][:2])
    room, scale = 0.40 / 0.60, (scan * t1).sum() / (t1 * t1).sum()
    inside = (t1 > 0) & (scan > 0)
    changed = given["target"][2].numpy() - room * scan
    np.testing.assert_allclose(changed[inside], scale * (t1c - room * t1)[inside], atol=1e-4)


def test_a_t1c_is_as_bright_as_the_t1_that_was_given(tmp_path):
    data = pool(write_pool(tmp_path), "training", sources=["T1"], target="T1C", shaded=0.0)
    ratios, given = [], []
    for seed in range(24):
        item = data[Draw(0, seed)]
        inside = item["weight"][0] == 1
        given.append(float(item["sources"][0, inside].mean()))
        ratios.append(float(item["target"][0, inside].mean()) / given[-1])
    assert max(given) / min(given) > 1.5
    assert max(ratios) / min(ratios) < 1.25


def test_validation_is_always_the_same_and_spread_over_the_brain(tmp_path):
    data = pool(write_pool(tmp_path), "validation", **TASK, varied=False, per_subject=3)
    numbers = [data[place]["slice"] for place in range(3)]
    assert numbers == sorted(set(numbers))
    assert torch.equal(data[1]["sources"], data[Draw(1, seed=7)]["sources"])


def test_a_seed_decides_what_training_sees(tmp_path):
    data = pool(write_pool(tmp_path), "training", **TASK)
    first, again, other = (data[Draw(0, seed)] for seed in (1, 1, 2))
    assert torch.equal(first["sources"], again["sources"])
    assert not torch.equal(first["sources"], other["sources"])


def test_a_head_of_a_few_pixels_is_shaded_and_nothing_else_is_lost():
    sliver = np.zeros((1, 240, 240), np.float32)
    sliver[:, 30:32, 200:202] = 0.5
    for seed in range(50):
        coil = _coil(sliver, np.random.default_rng(seed))
        assert np.isfinite(coil).all()
        assert (coil * sliver).sum() == pytest.approx(sliver.sum(), rel=1e-4)


def test_one_coil_shades_what_is_given_and_what_is_to_be_made_alike(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_ext.training.pool.GAMMA", 0.0)  # what each source has of its own
    monkeypatch.setattr("monai_ext.training.pool.GAIN", 0.0)
    folder = write_pool(tmp_path)
    plain, shaded = (pool(folder, "training", **TASK, shaded=share) for share in (0.0, 1.0))
    bowls = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        coil = _coil(np.full((1, 32, 24), 0.5, np.float32), rng)
        assert coil.min() > 0
        assert coil.mean() == pytest.approx(1, abs=1e-5)
        bowls.append(coil[16, 12] - coil[[0, -1]][:, [0, -1]].mean())
        draw = Draw(seed % len(plain), seed)
        one, other = plain[draw], shaded[draw]
        both = (one["sources"] > 0.02) & (other["sources"] < 1) & (one["target"] > 0.02) & (other["target"] < 1)
        gain = other["target"] / one["target"]
        torch.testing.assert_close((other["sources"] / one["sources"])[both], gain.expand_as(both)[both])
        assert gain[both.any(0, keepdim=True)].std() > 0.005
    assert min(bowls) < 0 < max(bowls), "bright in the middle, and at the rim"


def test_half_of_the_slices_go_through_the_lesion(tmp_path):
    data = pool(write_pool(tmp_path), "training", **TASK)
    through = [data[Draw(0, seed)]["slice"] == 3 for seed in range(60)]
    assert 0.4 < np.mean(through) < 0.8  # and one in six by chance


def test_a_lesion_counts_most_and_the_background_least(tmp_path):
    item = pool(write_pool(tmp_path), "validation", **TASK, varied=False, per_subject=6, lesion_weight=5.0)[3]
    assert item["slice"] == 3
    weight, target = item["weight"][0], item["target"][0]
    assert set(weight.unique().tolist()) == {np.float32(BACKGROUND), 1.0, 5.0}
    assert (weight[target == 0] == np.float32(BACKGROUND)).all()
    assert HEAD < 1


def test_a_condition_hides_sources_and_no_target(tmp_path):
    data = pool(write_pool(tmp_path), "training", sources=["T1", "T2", "ADC"], target=["T1", "T2", "ADC"])
    item = data[Draw(0, 0, (True, False, False))]
    assert item["sources"].flatten(1).any(1).tolist() == [True, False, False]
    assert item["target"].flatten(1).any(1).all()
    batches = ModalityConsistentBatches(data.kinds, batch_size=4, curriculum=0)
    assert sum(map(len, batches)) == len(data)


def test_a_folder_that_is_renewed_while_it_is_read_never_gives_two_phantoms_mixed(tmp_path, monkeypatch):
    data = pool(write_pool(tmp_path), "training", **TASK)
    other = write_pool(tmp_path / "other", training=1, validation=1).parent
    folder, renewed = tmp_path / "s000", []

    def renew(path: Path | str, first: int, stop: int) -> np.ndarray:
        if Path(path).name == "T2.nii" and not renewed:
            renewed.append(True)
            folder.rename(tmp_path / "old")
            shutil.copytree(other / "s001", folder)
        return read_slices(path, first, stop)

    monkeypatch.setattr("monai_ext.training.pool.read_slices", renew)
    data.varied = False
    item = data[0]
    new = {name: read_slices(folder / f"{name}.nii", item["slice"], item["slice"] + 1)[0] for name in ("T1", "T2")}
    np.testing.assert_array_equal(item["sources"], np.stack([new["T1"], new["T2"]]))


def test_a_subject_that_is_gone_is_named(tmp_path):
    data = pool(write_pool(tmp_path), "training", **TASK)
    shutil.rmtree(tmp_path / "s000")
    with pytest.raises(SubjectError, match=r"s000: .*cannot be read"):
        data[0]


def test_a_subject_without_its_brain_is_refused(tmp_path):
    path = write_pool(tmp_path)
    path.write_text(path.read_text().replace('"brain": "s001/brain.nii", ', ""))
    with pytest.raises(SubjectError, match="s001: lacks the mask of its brain"):
        pool(path, "training", **TASK)


def test_a_canvas_has_every_head_whole_and_its_target_with_it():
    torch.manual_seed(0)
    items = []
    for size in (5, 9, 12):
        image = torch.zeros(2, 30, 30)
        image[:, 3 : 3 + size, 8 : 8 + size] = torch.rand(2, size, size) + 0.1
        items.append({"sources": image, "target": image[:1] * 2, "weight": image[:1] + 1, "subject": "s"})
    sizes = set()
    for _ in range(8):
        batch = VariedCanvas(margin=20)(items)
        sizes.add(batch["sources"].shape[2:])
        assert all(side % 8 == 0 and 16 <= side <= 32 for side in batch["sources"].shape[2:])
        for number, item in enumerate(items):
            assert batch["sources"][number].sum() == pytest.approx(item["sources"].sum().item(), rel=1e-5)
            torch.testing.assert_close(batch["target"][number], batch["sources"][number][:1] * 2)
    assert len(sizes) > 2


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"per_subject": 0}, "per_subject must be"),
        ({"lesion_weight": 0.5}, "lesion_"),
        ({"shaded": 1.5}, "shaded must be"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, how, match):
    with pytest.raises(ValueError, match=match):
        pool(write_pool(tmp_path), "training", **TASK, **how)
    with pytest.raises(ValueError, match="at least one subject"):
        PoolSlices([], sources=["T1"], target=["T2"])
