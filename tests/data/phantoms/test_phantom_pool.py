"""A pool on disk: made, resumed, renewed under a reader, stopped by a signal, refused where there is no room."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from balls import write_labels

from monai_ext.__main__ import main
from monai_ext.data.datalist import read_datalist
from monai_ext.data.phantoms import stream as command
from monai_ext.data.phantoms.anatomy import step_for
from monai_ext.data.phantoms.pool import RECIPE, SIDECAR, Recipe, fill, stream
from monai_ext.data.phantoms.protocols import Echoes
from monai_ext.data.phantoms.workers import workers
from monai_ext.data.slices import SliceDataset
from monai_ext.data.volumes import read_volume

SMALL = ("--spacing", "5", "--contrasts", "T1,FLAIR", "--canvas", "32x28", "--depth", "26", "--size", "2")


@pytest.fixture
def recipe(head: Path) -> Recipe:
    return Recipe((head,), ("T1", "FLAIR"), spacing=(5.0, 5.0, 5.0), canvases=((32, 28), (28, 32)), depth=26)


def numbers(pool: Path) -> dict[str, int]:
    return {path.parent.name: json.loads(path.read_text())["number"] for path in sorted(pool.glob(f"*/{SIDECAR}"))}


def test_a_pool_is_read_as_prepared_subjects_with_targets_and_masks(tmp_path: Path, recipe: Recipe) -> None:
    assert list(fill(tmp_path, recipe, size=2, validation=1)) == ["v000", "s000", "s001"]
    datalist = read_datalist(tmp_path / "datalist.json")
    assert [subject.name for subject in datalist.splits["training"]] == ["s000", "s001"]
    assert [subject.name for subject in datalist.splits["validation"]] == ["v000"]
    dataset = SliceDataset(datalist.splits["training"][:1], sources=["T1"], target=["FLAIR"], masks=["brain", "lesion"])
    item = dataset[len(dataset) // 2]
    assert item["sources"].shape == item["target"].shape == (1, 32, 28)
    truth = read_volume(tmp_path / "s000/FLAIR_target.nii").array[:, :, item["slice"]]
    np.testing.assert_allclose(item["target"][0], truth, atol=1e-6)
    assert read_volume(tmp_path / "s001/T1.nii").shape == (28, 32, 26)  # slots take turns with the canvases


def test_what_is_missing_or_half_renewed_is_made_again_and_the_rest_stays(tmp_path: Path, recipe: Recipe) -> None:
    list(fill(tmp_path, recipe, size=2))
    kept = (tmp_path / "s000/T1.nii").stat().st_mtime_ns
    (tmp_path / "s001" / SIDECAR).unlink()
    (tmp_path / ".making-s001").mkdir()
    assert list(fill(tmp_path, recipe, size=3)) == ["s001", "s002"]
    assert (tmp_path / "s000/T1.nii").stat().st_mtime_ns == kept
    assert not list(tmp_path.glob(".making*"))


def test_several_processes_make_the_same_pool_and_renew_it_in_the_same_order(tmp_path: Path, recipe: Recipe) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    list(fill(alone, recipe, size=3, validation=1))
    with workers(recipe.anatomies, step=step_for(recipe.spacing), count=2) as each:
        assert set(fill(shared, recipe, size=3, validation=1, each=each)) == {"v000", "s000", "s001", "s002"}
        for name in ("v000/FLAIR.nii", "s002/T1_target.nii", "datalist.json"):
            assert (shared / name).read_bytes() == (alone / name).read_bytes()
        renewed = set()  # the slower of two may be overtaken, so that three renewals are not always of three slots
        for slot in islice(stream(shared, recipe, size=3, each=each), 30):
            renewed.add(slot)
            if len(renewed) == 3:
                break
    slots = ("s000", "s001", "s002")
    assert renewed == set(slots)
    assert all(numbers(shared)[slot] in range(3 + turn, 33, 3) for turn, slot in enumerate(slots))
    with pytest.raises(ValueError, match="--jobs must be at least 1, got 0"), workers((), step=1.0, count=0):
        pass


def test_the_oldest_slot_is_renewed_and_validation_never(tmp_path: Path, recipe: Recipe) -> None:
    list(fill(tmp_path, recipe, size=2, validation=1))
    before = numbers(tmp_path)
    renewed = stream(tmp_path, recipe, size=2)
    assert [next(renewed) for _ in range(3)] == ["s000", "s001", "s000"]
    assert numbers(tmp_path) == {"s000": 4, "s001": 3, "v000": before["v000"]}
    assert read_volume(tmp_path / "s000/T1.nii").shape == (32, 28, 26)


def test_a_number_is_a_subject_whatever_the_pool(tmp_path: Path, recipe: Recipe) -> None:
    list(fill(tmp_path / "one", recipe, size=1))
    list(fill(tmp_path / "two", recipe, size=2))
    for file in ("T1.nii", "FLAIR_target.nii", "lesion.nii"):
        assert (tmp_path / "one/s000" / file).read_bytes() == (tmp_path / "two/s000" / file).read_bytes()
    other = replace(recipe, seed=1)
    list(fill(tmp_path / "other", other, size=1))
    assert (tmp_path / "one/s000/T1.nii").read_bytes() != (tmp_path / "other/s000/T1.nii").read_bytes()


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_without_room_is_refused_before_anything_is_made(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ValueError, match=r"3 subjects need 0\.00 GB and 0\.00 GB are free: make the pool smaller"):
        list(fill(tmp_path, recipe, size=2))
    assert not list(tmp_path.iterdir())


def test_the_room_that_is_asked_for_is_what_a_subject_takes(tmp_path: Path, recipe: Recipe) -> None:
    list(fill(tmp_path, recipe, size=1))
    taken = sum(file.stat().st_size for file in (tmp_path / "s000").iterdir())
    assert taken == pytest.approx(recipe.bytes_each, rel=0.15)


def test_the_command_fills_a_pool_and_a_signal_ends_its_renewing(
    tmp_path: Path, head: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ("phantom", "--stream", str(tmp_path), "--anatomy", str(head.parent), *SMALL)
    assert main([*made, "--once"]) == 0
    assert numbers(tmp_path) == {"s000": 0, "s001": 1}
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(command.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert main([*made]) == 0
    assert numbers(tmp_path) == {"s000": 2, "s001": 1}
    assert "stopped; 1 subjects were made" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is handler


def test_masks_of_real_infarcts_are_warped_in(tmp_path: Path, recipe: Recipe) -> None:
    mask = np.zeros((60, 60, 60), dtype=np.int32)
    mask[10:25, 25:40, 25:40] = 1
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-90, -105, -85)
    masked = replace(recipe, masks=(write_labels(tmp_path / "mask.nii", mask, affine),), contrasts=("T1",))
    shown = [masked.make(n) for n in range(14)]
    strokes = [made for made in shown if made.facts["lesion"] == "stroke"]
    assert strokes
    assert any(bool(made.rendered.lesion.any()) for made in strokes)
    empty = replace(recipe, masks=(write_labels(tmp_path / "empty.nii", mask * 0, affine),), contrasts=("T1",))
    with pytest.raises(ValueError, match=r"empty\.nii: the mask of a lesion marks nothing"):
        [empty.make(n) for n in range(60)]


def test_a_pool_of_another_recipe_is_refused_and_left_as_it_was(tmp_path: Path, recipe: Recipe) -> None:
    list(fill(tmp_path, recipe, size=1))
    longer = replace(recipe, echoes=Echoes(flair=130), seed=1)
    with pytest.raises(ValueError, match=r"holds phantoms of another recipe \(seed, flair_echo\): give what they were"):
        list(fill(tmp_path, longer, size=2))
    assert numbers(tmp_path) == {"s000": 0}
    (tmp_path / RECIPE).write_text("{")
    with pytest.raises(ValueError, match=r"recipe\.json: .*remove the pool"):
        list(fill(tmp_path, recipe, size=2))


def test_a_longer_echo_makes_the_target_flair_alone_another_and_lesions_in_it_brighter(recipe: Recipe) -> None:
    longer = replace(recipe, echoes=Echoes(flair=130, t2=55))
    ratios = []
    for number in range(6):
        usual, other = recipe.make(number), longer.make(number)
        assert other.facts["target_flair_echo_ms"] == 130
        assert torch.equal(usual.rendered.targets["T1"], other.rendered.targets["T1"])
        assert all(torch.equal(usual.rendered.images[name], image) for name, image in other.rendered.images.items())
        ill = usual.rendered.lesion & (usual.rendered.targets["FLAIR"] > 0.5)  # scars, not their fluid
        if int(ill.sum()) > 5:
            ratios.append(
                float(other.rendered.targets["FLAIR"][ill].mean() / usual.rendered.targets["FLAIR"][ill].mean())
            )
    assert ratios
    assert min(ratios) > 1.02


def test_shorter_echoes_of_t2_are_of_sources_alone(recipe: Recipe) -> None:
    usual, other = (replace(recipe, contrasts=("T1", "T2"), echoes=Echoes(t2=t2)).make(3) for t2 in (55, 30))
    assert not torch.equal(usual.rendered.images["T2"], other.rendered.images["T2"])
    assert torch.equal(usual.rendered.images["T1"], other.rendered.images["T1"])
    assert torch.equal(usual.rendered.targets["T2"], other.rendered.targets["T2"])


def bad_arguments() -> Iterator[tuple[tuple[str, ...], str]]:
    yield ("--size", "0"), "--size and --depth must be at least 1"
    yield ("--canvas", "32"), "--canvas takes sizes such as 96x112,112x128, got '32'"
    yield (
        ("--flair_echo", "nan"),
        "an echo of FLAIR is 60 to 300 ms and the shortest of T2 20 to 100 ms, got nan and 55",
    )
    yield ("--t2_echo", "5"), "got 110 and 5"
    yield ("--canvas", "4x4"), "--canvas takes sizes of 16 to 1024 voxels"


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
def test_a_pool_that_makes_no_sense_is_refused(
    tmp_path: Path, head: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert main(["phantom", "--stream", str(tmp_path / "p"), "--anatomy", str(head.parent), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_dataset_of_label_maps_is_written_as_the_sites_are(tmp_path: Path, head: Path) -> None:
    arguments = ("--anatomy", str(head.parent), "--site", "brats", "--subjects", "1", "--spacing", "5")
    assert main(["phantom", "--out", str(tmp_path / "d"), *arguments]) == 0
    (subject,) = read_datalist(tmp_path / "d/datalist.json").subjects
    assert set(subject.images) == {"T1", "T2", "T1C", "FLAIR"}
    assert subject.label is not None
    assert set(np.unique(read_volume(subject.label).array)) <= {0, 1, 2, 3}
    brain = read_volume(tmp_path / "d/.brain" / f"{subject.name}.nii.gz")
    assert brain.shape == read_volume(subject.images["T1"]).shape
    assert 200 < brain.array.sum() * 125 / 1000 < 800  # mL
    truth = json.loads((tmp_path / "d/truth" / f"{subject.name}.json").read_text())
    assert truth["anatomy"] == "ball"
    assert truth["offsets"]["T2"] == np.eye(4).tolist()


def test_options_that_would_do_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "--out", str(tmp_path / "d"), "--size", "3"]) == 2
    assert "--size go with --stream, not with --out" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
