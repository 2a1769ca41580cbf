"""prepare: one grid a subject in [0, 1], whole or not at all, again only when something changed, no subject lost."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image

from monai_ext.__main__ import main
from monai_ext.data import gridded, prepared
from monai_ext.data import prepare as command
from monai_ext.data.datalist import Subject, read_datalist
from monai_ext.data.presets import PRESETS
from monai_ext.data.resampling import resample
from monai_ext.data.volumes import Volume, read_volume, write_volume

SHAPE = (24, 28, 10)
AFFINE = np.array([[-2.0, 0, 0, 23], [0, -2, 0, 27], [0, 0, 3, -13.5], [0, 0, 0, 1]])  # left, posterior, superior


def head(
    *, shape: tuple[int, int, int] = SHAPE, affine: np.ndarray = AFFINE, seed: int = 0, centre: Any = 0.0
) -> Volume:
    """A smooth ball on a zero background, brightest at `centre` (world mm)."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) - centre
    distance = np.linalg.norm(world / [1, 1.2, 1], axis=-1)
    level = 100 + 10 * np.random.default_rng(seed).random()
    return Volume(np.where(distance < 15, level * (1.5 - distance / 15), 0).astype(np.float32), affine)


def dataset(root: Path, subjects: dict[str, dict[str, Volume]]) -> Path:
    """Files and a datalist with all subjects in training, the last in test."""
    entries = []
    for name, images in subjects.items():
        entry = {"subject": name}
        for contrast, volume in images.items():
            path = root / name / f"{contrast}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, volume)
            entry[contrast] = f"{name}/{contrast}.nii.gz"
        entries.append(entry)
    datalist = root / "datalist.json"
    datalist.write_text(json.dumps({"name": "toy", "training": entries[:-1], "test": entries[-1:]}))
    return datalist


def three(root: Path) -> Path:
    return dataset(root, {name: {"T1": head(seed=n), "T2": head(seed=n + 9)} for n, name in enumerate("abc")})


def prepare(datalist: Path, out: Path, *options: str) -> int:
    return main(["prepare", "--datalist", str(datalist), "--out", str(out), *options])


def stored(path: Path) -> dict[str, int]:
    """Each file below and when it was written."""
    return {str(file.relative_to(path)): file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_a_subject_becomes_a_folder_of_one_grid(tmp_path):
    out = tmp_path / "out"
    assert prepare(three(tmp_path / "in"), out, "--size", "32x20") == 0
    assert sorted(file.name for file in (out / "a").iterdir()) == ["T1.nii", "T2.nii", "mask.nii", "prepared.json"]
    for contrast in ("T1", "T2"):
        image = nib.load(out / "a" / f"{contrast}.nii")
        assert image.shape == (32, 20, 10)
        assert image.get_data_dtype() == np.uint16
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert 0 <= image.get_fdata().min() < image.get_fdata().max() <= 1
    datalist = read_datalist(out / "datalist.json")
    assert [subject.name for subject in datalist.splits["training"]] == ["a", "b"]
    assert [subject.name for subject in datalist.splits["test"]] == ["c"]
    assert datalist.splits["test"][0].images["T2"] == out / "c" / "T2.nii"


def test_a_slice_is_one_block_of_the_file(tmp_path):
    assert prepare(three(tmp_path / "in"), tmp_path / "out", "--size", "16") == 0
    path = tmp_path / "out" / "b" / "T1.nii"
    image = nib.load(path)
    size = 16 * 16 * 2
    with path.open("rb") as file:
        file.seek(image.dataobj.offset + 6 * size)
        block = np.frombuffer(file.read(size), dtype="<u2").reshape(16, 16, order="F")
    np.testing.assert_allclose(block / 65535, image.get_fdata()[:, :, 6], atol=1e-7)


def test_the_foreground_s_percentile_becomes_one_and_nothing_is_below_zero(tmp_path):
    source = head()
    array = source.array + np.where(source.array > 0, 0, -3.0)
    array[12, 14, 5] = 1e6
    datalist = dataset(tmp_path / "in", {"a": {"T1": source, "T2": Volume(array.astype(np.float32), AFFINE)}})
    assert prepare(datalist, tmp_path / "out") == 0
    scaled = read_volume(tmp_path / "out" / "a" / "T2.nii").array
    top = json.loads((tmp_path / "out" / "a" / "prepared.json").read_text())["images"]["T2"]["range"]
    assert top == [0.0, pytest.approx(np.percentile(array[source.array > 0], 99.5))]
    assert scaled.min() == 0
    assert np.mean(scaled[source.array[::-1, ::-1] > 0] == 1) == pytest.approx(0.005, abs=0.003)


def test_the_percentile_of_the_whole_volume_is_a_lower_one_of_the_foreground(tmp_path, capsys):
    source = head()
    datalist = dataset(tmp_path / "in", {"a": {"T1": source}})
    assert prepare(datalist, tmp_path / "out", "--percentile-of", "volume", "--size", "64") == 0
    record = json.loads((tmp_path / "out" / "a" / "prepared.json").read_text())
    assert record["parameters"]["percentile_of"] == "volume"
    # air that the crop adds does not count: an inference, which crops nothing, has to find the same
    assert record["images"]["T1"]["range"] == [0.0, pytest.approx(np.percentile(source.array, 99.5))]
    assert record["images"]["T1"]["range"][1] < np.percentile(source.array[source.array > 0], 99.5)
    assert prepare(datalist, tmp_path / "out", "--size", "64") == 0
    assert "1 prepared, 0 unchanged" in capsys.readouterr().out


def test_a_volume_of_hardly_anything_but_air_has_no_such_percentile(tmp_path, capsys):
    small = head()
    small.array[np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - [12, 14, 5], axis=-1) > 1.5] = 0
    datalist = dataset(tmp_path / "in", {"a": {"T1": small}})
    assert prepare(datalist, tmp_path / "out", "--percentile-of", "volume") == 1
    assert "the 99.5th percentile of T1's whole volume is 0" in capsys.readouterr().err


def test_what_version_0_1_0_prepared_is_as_if_it_had_said_foreground(tmp_path, capsys):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    assert prepare(datalist, out) == 0
    for name in "abc":
        record = json.loads((out / name / "prepared.json").read_text())
        del record["parameters"]["percentile_of"]
        (out / name / "prepared.json").write_text(json.dumps(record))
    assert prepare(datalist, out) == 0
    assert "0 prepared, 3 unchanged, 0 failed" in capsys.readouterr().out


def test_other_grids_meet_in_the_world(tmp_path):
    spot = np.array([4.0, -5.0, 3.0])
    sagittal = np.array([[0, 0, 2.5, -24], [1.5, 0, 0, -30], [0, 1.5, 0, -24], [0, 0, 0, 1.0]])
    images = {"T1": head(centre=spot), "T2": head(shape=(40, 32, 20), affine=sagittal, centre=spot)}
    assert prepare(dataset(tmp_path / "in", {"a": images}), tmp_path / "out", "--spacing", "1", "--size", "48") == 0
    t1, t2 = (read_volume(tmp_path / "out" / "a" / f"{name}.nii") for name in ("T1", "T2"))
    np.testing.assert_allclose(t1.spacing, [1, 1, 3])
    for volume in (t1, t2):
        np.testing.assert_array_equal(volume.affine, t1.affine)
        weights = volume.array**8
        centre = [(weights * axis).sum() / weights.sum() for axis in np.indices(volume.shape)]
        assert np.linalg.norm(apply_affine(volume.affine, centre) - spot) < 0.5


def test_what_was_prepared_goes_back_onto_the_reference(tmp_path):
    datalist = dataset(tmp_path / "in", {"a": {"T1": head(), "T2": head(seed=1)}})
    assert prepare(datalist, tmp_path / "out", "--size", "26x30") == 0
    record = json.loads((tmp_path / "out" / "a" / "prepared.json").read_text())
    assert record["reference"]["contrast"] == "T1"
    back = resample(
        read_volume(tmp_path / "out" / "a" / "T1.nii"),
        record["reference"]["shape"],
        np.array(record["reference"]["affine"]),
    )
    top = record["images"]["T1"]["range"][1]
    np.testing.assert_allclose(back.array * top, np.minimum(head().array, top), atol=top / 65535)


@pytest.mark.parametrize(
    ("preset", "size"),
    [("native", (24, 28)), ("ixi", (256, 256)), ("brats", (240, 240)), ("pmm", (192, 192)), ("isles", (192, 192)),
     ("fdgan", (256, 256)), ("hmf-brats", (256, 256)), ("hmf-ixi", (256, 256))],
)  # fmt: skip
def test_a_preset_gives_the_paper_s_size(tmp_path, preset, size):
    contrast = PRESETS[preset].reference[0]
    datalist = dataset(tmp_path / "in", {"a": {contrast: head()}})
    assert prepare(datalist, tmp_path / "out", "--preset", preset) == 0
    volume = read_volume(tmp_path / "out" / "a" / f"{contrast}.nii")
    assert volume.shape == (*size, 10)
    assert volume.array.max() == 1


def test_every_preset_is_tried():
    marks = test_a_preset_gives_the_paper_s_size.pytestmark[0]
    assert {row[0] for row in marks.args[1]} == set(PRESETS)


def test_nothing_changed_means_nothing_written(tmp_path, capsys):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    assert prepare(datalist, out) == 0
    before = stored(out)
    assert prepare(datalist, out) == 0
    after = stored(out)
    del before["datalist.json"], after["datalist.json"]
    assert after == before
    assert "0 prepared, 3 unchanged, 0 failed" in capsys.readouterr().out


def test_only_what_changed_is_prepared_again(tmp_path, capsys):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    prepare(datalist, out)
    write_volume(tmp_path / "in" / "b" / "T2.nii.gz", head(seed=50))
    (out / "c" / "T1.nii").write_bytes(b"")  # damaged since
    assert prepare(datalist, out) == 0
    assert "2 prepared, 1 unchanged" in capsys.readouterr().out
    assert prepare(datalist, out, "--size", "20") == 0
    assert "3 prepared, 0 unchanged" in capsys.readouterr().out
    assert read_volume(out / "c" / "T1.nii").shape == (20, 20, 10)


def test_a_killed_run_is_taken_up_where_it_was(tmp_path):
    images = {f"s{n:02d}": {"T1": head(seed=n), "T2": head(seed=n)} for n in range(30)}
    datalist, out = dataset(tmp_path / "in", images), tmp_path / "out"
    line = [sys.executable, "-m", "monai_ext", "prepare", "--datalist", str(datalist), "--out", str(out)]
    process = subprocess.Popen([*line, "--size", "400"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("s*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {folder.name: stored(folder) for folder in out.glob("s*")}
    assert 2 <= len(done) < 30
    assert prepare(datalist, out, "--size", "400") == 0
    assert {name: stored(out / name) for name in done} == done
    assert sorted(path.name for path in out.iterdir()) == ["datalist.json", *images]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    prepare(datalist, out)
    before = stored(out / "a")
    (out / "a").rename(out / ".replaced-a")
    (tmp_path / "in" / "a" / "T1.nii.gz").write_bytes(b"")  # it cannot be made again
    assert prepare(datalist, out) == 1
    assert stored(out / "a") == before
    assert not (out / ".replaced-a").exists()


def test_a_replacement_that_fails_half_way_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "a"
    (tmp_path / ".replaced-a").mkdir()
    (tmp_path / ".replaced-a" / "old").touch()

    def fail() -> None:
        with prepared._whole_folder(folder):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (folder / "old").exists()


def test_two_runs_into_one_folder_do_not_meet(tmp_path, capsys):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    with command.alone(out):
        assert prepare(datalist, out) == 2
    assert f"another run is writing into {out}" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    assert prepare(datalist, out) == 0


@pytest.mark.parametrize("killed", [False, True])
def test_another_dataset_never_replaces_what_is_there(tmp_path, capsys, killed):
    out = tmp_path / "out"
    assert prepare(three(tmp_path / "in"), out) == 0
    if killed:
        (out / "datalist.json").unlink()
    before = stored(out)
    other = three(tmp_path / "other")
    other.write_text(other.read_text().replace('"toy"', '"another"'))
    assert prepare(other, out) == (1 if killed else 2)
    said = "was prepared from dataset 'toy', not 'another'" if killed else "holds dataset 'toy', not 'another'"
    assert said in capsys.readouterr().err
    assert stored(out) == before


def test_a_folder_that_sources_lie_in_is_never_replaced(tmp_path, capsys):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    prepare(datalist, out)
    before = stored(out)
    again = tmp_path / "again.json"
    again.write_text((out / "datalist.json").read_text().replace('"root": "."', '"root": "out"'))
    assert prepare(again, out, "--size", "16") == 1
    assert "lies in the folder that would be replaced" in capsys.readouterr().err
    assert stored(out) == before


def test_two_processes_write_what_one_writes(tmp_path):
    datalist = three(tmp_path / "in")
    assert prepare(datalist, tmp_path / "one") == 0
    assert prepare(datalist, tmp_path / "two", "--jobs", "2") == 0
    for path in (tmp_path / "one").rglob("*.nii"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def ask_for_too_much(path: Path) -> None:
    """A header of 32000 voxels a side, and next to nothing behind it."""
    header = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), AFFINE).header
    header["dim"][1:4] = 32000
    header["vox_offset"] = 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(100)))


BAD = {
    "is 32,768,000,000,000 voxels, at most 536,870,912": ask_for_too_much,
    "truncated or damaged": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "is empty (0 bytes)": lambda path: path.write_bytes(b""),
    "is text, not an image": lambda path: path.write_text("404: Not Found"),
    "stack of 4 contrasts": lambda path: nib.save(nib.Nifti1Image(np.ones((3, 3, 3, 4)), AFFINE), path),
    "NaN or infinite": lambda path: write_volume(path, Volume(np.full(SHAPE, np.nan, dtype=np.float32), AFFINE)),
    "shows nothing: every voxel is 0": lambda path: write_volume(path, Volume(np.zeros(SHAPE), AFFINE)),
    "fields of view do not overlap": lambda path: write_volume(
        path, head(affine=AFFINE + np.array([[0, 0, 0, 500]] + [[0] * 4] * 3), centre=[500, 0, 0])
    ),
    "nowhere above zero": lambda path: write_volume(path, Volume(-head().array, AFFINE)),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_file_is_reported_and_the_others_are_done(tmp_path, capsys, reason):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    path = tmp_path / "in" / "b" / "T2.nii.gz"
    BAD[reason](path)
    assert prepare(datalist, out, "--register", "none") == 1
    shown = capsys.readouterr()
    assert "2 prepared, 0 unchanged, 1 failed" in shown.out
    assert "1 of 3 subjects could not be prepared" in shown.err
    (line,) = (line for line in shown.err.splitlines() if line.split()[:1] == ["b"])
    assert reason in line
    assert line.count(str(path)) == 1
    assert [subject.name for subject in read_datalist(out / "datalist.json").subjects] == ["a", "c"]
    assert sorted(folder.name for folder in out.iterdir()) == ["a", "c", "datalist.json"]


def test_a_faulty_entry_of_the_datalist_is_reported_with_the_rest(tmp_path, capsys):
    datalist = three(tmp_path / "in")
    (tmp_path / "in" / "a" / "T1.nii.gz").unlink()
    assert prepare(datalist, tmp_path / "out") == 1
    assert "1 of 3 subjects could not be prepared" in capsys.readouterr().err


def test_a_subject_without_the_reference_is_reported(tmp_path, capsys):
    datalist = dataset(tmp_path / "in", {"a": {"T1": head()}, "b": {"T2": head()}})
    assert prepare(datalist, tmp_path / "out", "--reference", "t1w") == 1
    assert "has T2, but the grid is to come from T1" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("lost"), UnboundLocalError("none"), FileNotFoundError(2, "gone", "/in/x")])
def test_whatever_is_raised_is_one_subjects_fault(tmp_path, monkeypatch, capsys, error):
    ordinary = command.prepare_subject

    def breaks(subject: Subject, *args: Any, **kwargs: Any) -> Any:
        if subject.subject == "b":
            raise error
        return ordinary(subject, *args, **kwargs)

    monkeypatch.setattr(command, "prepare_subject", breaks)
    assert prepare(three(tmp_path / "in"), tmp_path / "out") == 1
    assert f"cannot be prepared: {type(error).__name__}" in capsys.readouterr().err
    assert len(read_datalist(tmp_path / "out" / "datalist.json").subjects) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("images", {"T1": 5}), ("mask_kept", "all"), ("grid", []), ("bytes", {"../in/list.json": 1}), ("reference", None)],
)
def test_a_sidecar_that_somebody_changed_is_not_believed(tmp_path, capsys, key, value):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    assert prepare(datalist, out) == 0
    sidecar = out / "a" / "prepared.json"
    whole = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**whole, key: value}))
    capsys.readouterr()
    assert prepare(datalist, out) == 0
    assert "1 prepared, 2 unchanged, 0 failed" in capsys.readouterr().out
    assert json.loads(sidecar.read_text()) == whole


def test_a_full_disk_ends_the_run_and_keeps_what_was_done(tmp_path, monkeypatch, capsys):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    written: list[Path] = []

    def until_full(path: Path, *args: Any, **kwargs: Any) -> None:
        if len(written) == 4:  # in the second subject
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write_volume(path, *args, **kwargs)

    monkeypatch.setattr(prepared, "write_volume", until_full)
    assert prepare(datalist, out) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["a"]
    monkeypatch.undo()
    assert prepare(datalist, out) == 0
    assert "2 prepared, 1 unchanged" in capsys.readouterr().out


def test_a_read_only_output_is_found_out_before_any_work(tmp_path, monkeypatch, capsys):
    def read_only(path: Path, _data: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", read_only)
    monkeypatch.setattr(command, "prepare_one", lambda *_, **__: pytest.fail("work was begun"))
    assert prepare(three(tmp_path / "in"), tmp_path / "out") == 2
    assert "Read-only file system" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert prepare(three(tmp_path / "in"), tmp_path / "out") == 2
    assert "File exists" in capsys.readouterr().err


def test_a_folder_of_sources_is_never_replaced(tmp_path, capsys):
    datalist = three(tmp_path / "in").rename(tmp_path / "toy.json")
    datalist.write_text(datalist.read_text().replace('{"name"', '{"root": "in", "name"'))
    before = stored(tmp_path / "in" / "a")
    assert prepare(datalist, tmp_path / "in") == 1
    assert "holds no prepared.json: choose another --out" in capsys.readouterr().err
    assert stored(tmp_path / "in" / "a") == before


def test_the_datalist_itself_is_never_replaced(tmp_path, capsys):
    datalist = three(tmp_path / "in")
    before = datalist.read_text()
    assert prepare(datalist, tmp_path / "in") == 2
    assert "is where the datalist lies" in capsys.readouterr().err
    assert datalist.read_text() == before


def test_paths_may_have_spaces_and_any_letters(tmp_path):
    datalist = dataset(tmp_path / "мои данные", {"Jürgen 1": {"T1": head(), "T2": head()}})
    assert prepare(datalist, tmp_path / "脑 out", "--qc") == 0
    assert (tmp_path / "脑 out" / "Jürgen 1" / "qc.png").stat().st_size > 1000


def test_a_brain_mask_takes_off_all_else(tmp_path):
    source = head()
    ring = np.where(source.array > 0, 0, 30).astype(np.float32)
    images = {"T1": source, "T2": Volume(source.array + ring, AFFINE)}
    assert prepare(dataset(tmp_path / "in", {"a": images}), tmp_path / "out", "--brain-mask", "zero") == 0
    brain = source.array[::-1, ::-1] > 0
    t2 = read_volume(tmp_path / "out" / "a" / "T2.nii").array
    assert not t2[~brain].any()
    assert (t2[brain] > 0).all()
    np.testing.assert_array_equal(read_volume(tmp_path / "out" / "a" / "mask.nii").array > 0, brain)


def test_a_mask_file_is_found_by_its_pattern_and_missed_by_name(tmp_path, capsys):
    datalist, half = three(tmp_path / "in"), np.zeros(SHAPE, dtype=np.float32)
    half[:12] = 1
    for name in "ab":
        write_volume(tmp_path / "in" / f"{name}_mask.nii.gz", Volume(half, AFFINE), dtype=np.uint8)
    write_volume(tmp_path / "in" / "b_mask.nii.gz", Volume(0 * half, AFFINE), dtype=np.uint8)
    assert prepare(datalist, tmp_path / "out", "--brain-mask", "{subject}_mask.nii.gz") == 1
    shown = capsys.readouterr()
    assert "the mask marks nothing" in shown.err
    assert "c_mask.nii.gz" in shown.err
    t1 = read_volume(tmp_path / "out" / "a" / "T1.nii").array
    assert t1[12:].any()
    assert not t1[:12].any()  # the file counts from right to left


def test_a_label_moves_with_the_contrast_that_it_was_drawn_on(tmp_path, monkeypatch):
    shift = np.eye(4)
    shift[0, 3] = 6.0  # T2 shows everything 6 mm further to the right
    monkeypatch.setattr(gridded, "register_rigid", lambda *_: shift)
    there = head(centre=[6, 0, 0], affine=AFFINE + np.array([[0, 0, 0, 1]] + [[0] * 4] * 3))
    datalist = dataset(tmp_path / "in", {"a": {"T1": head(), "T2": there}})
    spot = np.zeros(SHAPE, dtype=np.float32)
    spot[tuple(np.rint(apply_affine(np.linalg.inv(there.affine), [6, 0, 1.5])).astype(int))] = 4
    write_volume(tmp_path / "in" / "a" / "spot.nii.gz", Volume(spot, there.affine), dtype=np.uint8)
    content = json.loads(datalist.read_text())
    content["test"][0]["label"] = "a/spot.nii.gz"
    datalist.write_text(json.dumps(content))
    assert prepare(datalist, tmp_path / "out", "--register", "rigid", "--qc") == 0
    label = read_volume(tmp_path / "out" / "a" / "label.nii", allow_constant=True)
    assert nib.load(tmp_path / "out" / "a" / "label.nii").get_data_dtype() == np.uint8
    assert np.unique(label.array).tolist() == [0, 4]
    world = apply_affine(label.affine, np.argwhere(label.array == 4))
    assert np.abs(world.mean(axis=0) - [0, 0, 1.5]).max() <= 1.0
    record = json.loads((tmp_path / "out" / "a" / "prepared.json").read_text())
    assert record["images"]["T2"]["moved_mm"] == pytest.approx(6)
    assert read_datalist(tmp_path / "out" / "datalist.json").subjects[0].label == tmp_path / "out" / "a" / "label.nii"


@pytest.mark.parametrize("reference", ["T1", "DWI", "ADC"])
def test_dwi_and_adc_are_moved_as_one_scan(tmp_path, monkeypatch, reference):
    calls: list[Volume] = []

    def never_twice_the_same(_reference: Volume, moving: Volume) -> np.ndarray:
        calls.append(moving)
        matrix = np.eye(4)
        matrix[0, 3] = len(calls)
        return matrix

    monkeypatch.setattr(gridded, "register_rigid", never_twice_the_same)
    datalist = dataset(tmp_path / "in", {"a": {"ADC": head(seed=1), "DWI": head(seed=2), "T1": head()}})
    assert prepare(datalist, tmp_path / "out", "--register", "rigid", "--reference", reference) == 0
    images = json.loads((tmp_path / "out" / "a" / "prepared.json").read_text())["images"]
    assert images["DWI"]["to_source"] == images["ADC"]["to_source"]
    assert images["T1"]["to_source"] != images["DWI"]["to_source"]
    assert len(calls) == 1
    assert reference != "T1" or np.array_equal(calls[0].array, head(seed=2).array[::-1, ::-1])


def test_dwi_and_adc_on_two_grids_are_registered_each(monkeypatch):
    monkeypatch.setattr(gridded, "register_rigid", lambda _, moving: np.diag([*moving.spacing, 1.0]))
    images = {"T1": head(), "DWI": head(), "ADC": head(affine=AFFINE * [[1], [1], [1.1], [1]])}
    placed = gridded._placed(
        Subject("a", "toy", {}), images, "T1", preset=replace(PRESETS["native"], register="rigid")
    )[0]
    assert not np.array_equal(placed["DWI"], placed["ADC"])


def test_a_label_of_fractions_is_reported(tmp_path, capsys):
    datalist = dataset(tmp_path / "in", {"a": {"T1": head(), "label": Volume(head().array + 0.5, AFFINE)}})
    assert prepare(datalist, tmp_path / "out") == 1
    assert "a label map holds whole numbers from 0 up" in capsys.readouterr().err


def test_a_label_too_large_to_store_is_reported_and_the_others_are_done(tmp_path, capsys):
    datalist = three(tmp_path / "in")
    path = tmp_path / "in" / "b" / "label.nii.gz"
    write_volume(path, Volume(np.where(head().array > 0, 70000, 0), AFFINE), dtype=np.int32)
    content = json.loads(datalist.read_text())
    content["training"][1]["label"] = "b/label.nii.gz"
    datalist.write_text(json.dumps(content))
    assert prepare(datalist, tmp_path / "out") == 1
    shown = capsys.readouterr()
    assert "2 prepared, 0 unchanged, 1 failed" in shown.out
    assert f"{path}  a label map holds numbers up to 65535, got 70000" in shown.err


@pytest.mark.parametrize("fault", [ValueError("an odd\nnumber"), MemoryError(), RuntimeError("ITK says so")])
@pytest.mark.parametrize("step", ["prepare_subject", "write_qc"])
def test_whatever_a_subject_raises_the_others_are_done(tmp_path, monkeypatch, capsys, fault, step):
    real = getattr(command, step)

    def raises_for_b(first: Any, *args: Any, **kwargs: Any) -> Any:
        if "b" in (getattr(first, "name", None), str(first)):
            raise fault
        return real(first, *args, **kwargs)

    monkeypatch.setattr(command, step, raises_for_b)
    assert prepare(three(tmp_path / "in"), tmp_path / "out", "--qc") == 1
    shown = capsys.readouterr()
    assert "2 prepared, 0 unchanged, 1 failed" in shown.out
    assert f"cannot be prepared: {type(fault).__name__}: " in shown.err


def test_a_contrast_that_is_constant_inside_the_crop_has_a_montage(tmp_path):
    flat = np.full(SHAPE, 5, dtype=np.float32)
    flat[0] = 1
    datalist = dataset(tmp_path / "in", {"a": {"T1": head(), "T2": Volume(flat, AFFINE)}})
    assert prepare(datalist, tmp_path / "out", "--size", "8", "--qc") == 0
    assert len(np.unique(nib.load(tmp_path / "out" / "a" / "T2.nii").get_fdata())) == 1
    assert (tmp_path / "out" / "a" / "qc.png").stat().st_size > 1000


def test_a_montage_has_a_row_a_contrast(tmp_path):
    heights = []
    for contrasts in (("T1", "T2"), ("T1", "T2", "PD")):
        folder = tmp_path / str(len(contrasts))
        assert prepare(dataset(folder, {"a": {name: head() for name in contrasts}}), folder / "out", "--qc") == 0
        heights.append(Image.open(folder / "out" / "a" / "qc.png").size[1])
    assert heights[1] == pytest.approx(heights[0] * 3 / 2, rel=0.05)


def test_a_montage_is_made_later_for_what_was_prepared_before(tmp_path, capsys):
    datalist, out = three(tmp_path / "in"), tmp_path / "out"
    prepare(datalist, out)
    assert prepare(datalist, out, "--qc") == 0
    assert "3 unchanged" in capsys.readouterr().out
    assert len(list(out.glob("*/qc.png"))) == 3


def test_a_size_that_cuts_into_the_head_is_said(tmp_path, capsys):
    assert prepare(three(tmp_path / "in"), tmp_path / "out", "--size", "8") == 0
    assert "the size cuts into the foreground of 3 subjects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--jobs", "0"], "--jobs must be at least 1, got 0"),
     (["--brain-mask", "hd-bet"], "--brain-mask must be none, zero, otsu, or a file with"),
     (["--brain-mask", "{person}.nii"], "--brain-mask must be none, zero, otsu, or a file with"),
     (["--reference", "T9"], "T9")],
)  # fmt: skip
def test_an_option_s_value_is_refused_by_name(tmp_path, capsys, options, message):
    assert prepare(three(tmp_path / "in"), tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [["--size", "4"], ["--size", "1x2x3"], ["--size", "abc"], ["--spacing", "1,1"], ["--spacing", "-1"],
     ["--spacing", "0.0005"], ["--spacing", "1,1,0.05"], ["--spacing", "abc"], ["--spacing", "nan"]],
)  # fmt: skip
def test_a_size_or_spacing_that_makes_no_sense_is_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        prepare(tmp_path / "none.json", tmp_path / "out", *option)
    said = capsys.readouterr().err
    assert f"argument {option[0]}: expected " in said
    assert f"got {option[1]!r}" in said


def die_of_a(subject: Subject) -> command.Done:
    if subject.name == "a":
        os._exit(9)
    time.sleep(0.2)  # so that the others are not done when `a` dies
    return command.Done(subject, record={})


def test_of_a_broken_pool_only_the_one_that_dies_alone_is_blamed():
    subjects = [Subject(subject=name, dataset="d", images={}) for name in "bacd"]
    ends = {end.subject.name: end.failure for end in command._ends(die_of_a, subjects, jobs=2)}
    assert sorted(ends) == ["a", "b", "c", "d"]
    assert "its process was killed, alone too" in str(ends.pop("a"))
    assert set(ends.values()) == {None}


def test_a_real_stroke_in_metaimage_and_nifti_is_indexed_and_prepared(tmp_path, real_data):
    index = ["index", "--root", str(real_data), "--exclude", "*.dcm", "[!s]*", "--split", "1/0/0"]
    assert main([*index, "--out", str(tmp_path / "d.json"), "--choose", "DWI=*.mha", "ADC=*.nii.gz"]) == 0
    assert prepare(tmp_path / "d.json", tmp_path / "out", "--preset", "isles", "--qc") == 0
    dwi, adc = (read_volume(tmp_path / "out" / "stroke_isles0001" / f"{name}.nii") for name in ("DWI", "ADC"))
    assert dwi.shape == adc.shape == (192, 192, 73)
    assert ((dwi.array > 0) & (adc.array > 0)).sum() > 0.9 * (dwi.array > 0).sum()


def test_a_core_that_is_dark_on_the_reference_stays_in_the_brain(tmp_path):
    """As a tumour's necrosis is on T1: it reaches the brain's edge, and on T2 it is bright."""
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    shape = (90, 90, 70)
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) - (np.array(shape) - 1) * 1.25
    radius = np.linalg.norm(world, axis=-1)
    core = np.linalg.norm(world - [50, 0, 0], axis=-1) < 20
    scalp = np.where((radius > 78) & (radius < 86), 0.9, 0.05)
    noise = np.random.default_rng(0).normal(0, 0.02, shape)
    t1 = np.where(radius < 70, np.where(core, 0.1, 0.7), scalp) + noise
    t2 = np.where(radius < 70, np.where(core, 0.9, 0.6), scalp) + noise
    images = {"T1": Volume(t1.astype(np.float32), affine), "T2": Volume(t2.astype(np.float32), affine)}
    assert prepare(dataset(tmp_path / "in", {"a": images}), tmp_path / "out", "--brain-mask", "otsu") == 0
    mask = read_volume(tmp_path / "out" / "a" / "mask.nii").array > 0
    assert mask[core & (radius < 66)].mean() > 0.99
    assert not mask[radius > 80].any()
