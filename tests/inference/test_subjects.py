"""Who is synthesised: one of three ways to say it, each misuse its own message, no subject lost."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data.utils import decollate_batch
from monai.transforms import Compose
from torch.utils.data import DataLoader

from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.inference.subjects import AlreadyDone, Cases, SubjectVolumes, collate, find_cases
from monai_ext.modalities import make_task

TASK: dict[str, Any] = {"sources": ["T1", "T2"], "target": "PD"}


def found(*, sources: Any, target: Any, **where: Any) -> Cases:
    """Those whom a bundle's config finds."""
    return find_cases(task=make_task(sources, target), **where)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def names(cases: Cases) -> list[str]:
    return [subject.name for subject in cases.subjects]


def test_one_subject_is_named_after_its_folder_or_as_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "ann/a.nii.gz", "ann/b.nii"))
    images = {"t1w": "ann/a.nii.gz", "T2": Path("ann/b.nii")}
    (subject,) = found(**TASK, images=images).subjects
    assert subject.name == "ann"
    assert subject.images == {"T1": tmp_path / "ann/a.nii.gz", "T2": tmp_path / "ann/b.nii"}
    assert names(found(**TASK, images=images, name="case 7")) == ["case 7"]


def test_a_folder_of_subjects_and_a_folder_of_one_are_both_taken(tmp_path):
    root = touch(tmp_path, *(f"{case}/{name}.nii.gz" for case in ("a", "b") for name in ("T1", "t2w", "flair")))
    assert names(found(**TASK, folder=root)) == ["a", "b"]
    assert names(found(**TASK, folder=str(root / "b"))) == ["b"]


def test_a_subject_that_lacks_a_source_is_a_fault_beside_the_others(tmp_path):
    root = touch(tmp_path, "a/T1.nii.gz", "a/T2.nii.gz", "b/T1.nii.gz", "b/FLAIR.nii.gz")
    cases = found(**TASK, folder=root)
    assert names(cases) == ["a"]
    assert [str(fault) for fault in cases.failures] == ["b: lacks T2, has T1, FLAIR: these weights need T1, T2"]


def test_what_was_synthesised_before_is_never_a_source(tmp_path):
    root = touch(
        tmp_path, "a/T1.nii.gz", "a/T2_synthetic.nii.gz", "T2/a_synthetic.nii.gz", "b/T1.nii.gz", "b/T2.nii.gz"
    )
    cases = found(**TASK, folder=root)
    assert names(cases) == ["b"]
    assert [fault.subject for fault in cases.failures] == ["a"]


def test_dicom_beside_nifti_is_passed_over_and_alone_it_is_named(tmp_path):
    root = touch(tmp_path, "a/T1.nii.gz", "a/T2.nii.gz", "a/raw/1.dcm", "b/1.DCM")
    cases = found(**TASK, folder=root)
    assert names(cases) == ["a"]
    assert [(fault.subject, fault.reason) for fault in cases.failures] == [
        ("b", "holds only DICOM: convert it to NIfTI first")
    ]
    with pytest.raises(ValueError, match=r"holds no image whose name says its contrast .* but DICOM"):
        found(**TASK, folder=root / "b")


def test_where_a_person_must_choose_index_is_named(tmp_path):
    root = touch(tmp_path, "a/x_T1.nii.gz", "a/y_T1.nii.gz", "a/T2.nii.gz", "b/T1.nii.gz", "b/T2.nii.gz")
    cases = found(**TASK, folder=root)
    assert names(cases) == ["b"]
    assert "2 files could be its T1" in cases.failures[0].reason
    assert "python -m monai_ext index takes --choose" in cases.failures[0].reason


def datalist(root: Path) -> Path:
    root = touch(root, *(f"{case}/{name}.nii" for case in "abc" for name in ("T1", "T2", "PD")))
    entries = {case: {"subject": case, "T1": f"{case}/T1.nii", "T2": f"{case}/T2.nii"} for case in "abc"}
    entries["c"]["PD"] = "c/PD.nii"
    path = root / "datalist.json"
    path.write_text(json.dumps({"training": [entries["a"]], "test": [entries["b"], entries["c"]]}))
    return path


def test_a_datalist_gives_all_its_subjects_or_a_split(tmp_path):
    path = datalist(tmp_path)
    assert names(found(**TASK, datalist=path)) == ["a", "b", "c"]
    assert names(found(**TASK, datalist=str(path), split="test")) == ["b", "c"]


def test_one_that_has_the_target_is_synthesised_too_unless_only_the_missing_are(tmp_path, capsys):
    path = datalist(tmp_path)
    assert names(found(**TASK, datalist=path, only_missing=True)) == ["a", "b"]
    assert "c: has PD, left out by only_missing" in capsys.readouterr().out


def test_a_faulty_entry_of_a_datalist_is_reported_with_the_rest(tmp_path):
    path = datalist(tmp_path)
    (tmp_path / "b" / "T2.nii").unlink()
    cases = found(**TASK, datalist=path)
    assert names(cases) == ["a", "c"]
    assert [fault.subject for fault in cases.failures] == ["b"]


IMAGES = {"T1": "a.nii.gz", "T2": "b.nii.gz"}
MISUSES = {
    "give exactly one of images .*, got none": {},
    "give exactly one of images .*, got images and dataset_dir": {"images": IMAGES, "folder": "."},
    "give exactly one of images .*, got dataset_dir and datalist": {"folder": ".", "datalist": "d.json"},
    "lacks T2, has T1: these weights need T1, T2": {"images": {"T1": "a.nii.gz"}},
    "unknown contrast 'T11'; the nearest known ones: t1": {"images": {"T11": "a.nii.gz"}},
    "unknown contrast 'T3'": {"target": "T3", "images": IMAGES},
    "T2 is a source and the target": {"target": "t2w", "images": IMAGES},
    "each source is given once, got T1 twice": {"sources": ["T1", "t1w"], "images": IMAGES},
    "images names T1 twice": {"images": {"T1": "a.nii.gz", "t1w": "b.nii.gz"}},
    r"sources must be a list of contrasts such as \['T1', 'T2'\], got 'T1'": {"sources": "T1", "images": IMAGES},
    "there must be a source and a target": {"sources": [], "images": IMAGES},
    r"b\.nii\.gzz: is not there; did you mean b\.nii\.gz\?": {"images": {"T1": "a.nii.gz", "T2": "b.nii.gzz"}},
    "empty: is not a file": {"images": {"T1": "a.nii.gz", "T2": "empty"}},
    "name must be a folder's plain name, got '../x'": {"images": IMAGES, "name": "../x"},
    "name goes with images, got name='x' with dataset_dir": {"folder": ".", "name": "x"},
    "split goes with datalist, got split='test' with images": {"images": IMAGES, "split": "test"},
    "empty holds no image whose name says its contrast .* but nothing": {"folder": "empty"},
    r"holds no image whose name says its contrast .* but scan\.nii": {"folder": "unnamed"},
    "case: has no image with a contrast's name, only case/scan.nii": {"folder": "strange"},
    "dataset_dir must be a folder, got .*nowhere: it is not there": {"folder": "nowhere"},
    r"none\.json: there is no such datalist": {"datalist": "none.json"},
    "split must be one of training, validation, test, or null": {"datalist": "d.json", "split": "tests"},
    r"d\.json has no subject in its validation split": {"datalist": "d.json", "split": "validation"},
}  # fmt: skip


def strict(cases: Cases) -> list[Subject]:
    """Its subjects as they are read, or the first fault."""
    for fault in cases.failures:
        raise fault
    return [item["subject"] for item in SubjectVolumes(cases, transform=dict)]


@pytest.mark.parametrize("message", MISUSES)
def test_each_misuse_has_its_own_message(tmp_path, monkeypatch, message):
    monkeypatch.chdir(touch(tmp_path, "a.nii.gz", "b.nii.gz", "unnamed/scan.nii", "strange/case/scan.nii"))
    Path("empty").mkdir()
    Path("d.json").write_text(json.dumps({"test": [{"subject": "s", "T1": "a.nii.gz", "T2": "b.nii.gz"}]}))
    with pytest.raises(ValueError, match=message):
        strict(found(**{**TASK, **MISUSES[message]}))


def ten() -> list[Subject]:
    return [Subject(f"s{number}", "toy", {}) for number in range(10)]


def transform(faults: dict[str, Exception]):
    def one(data: dict[str, Any]) -> dict[str, Any]:
        name = data["subject"].name
        if name in faults:
            raise faults[name]
        return {"image": torch.ones(2, 3, 3, 3), "subject": name, "prepared": data["subject"]}

    return Compose([one])


def test_of_ten_subjects_three_are_named_and_seven_go_on(capsys):
    faults = {
        "s2": SubjectError("s2", Path("/data/T1.nii"), "is empty (0 bytes)"),
        "s5": ValueError("an odd\nnumber"),
        "s9": MemoryError(),
    }
    volumes = SubjectVolumes(ten(), transform=transform(faults))
    given = [batch["subject"] for batch in DataLoader(volumes, collate_fn=collate)]
    assert len(given) == 7
    with pytest.raises(SystemExit) as end:
        volumes.finish()
    assert end.value.code == 1
    shown = capsys.readouterr()
    assert "7 of 10 subjects synthesised" in shown.out
    assert "3 of 10 subjects could not be synthesised" in shown.err
    rows = [" ".join(line.split()) for line in shown.err.splitlines()]
    assert "s2 /data/T1.nii is empty (0 bytes)" in rows
    assert "s5 - cannot be prepared: ValueError: an odd number" in rows
    assert "s9 - cannot be prepared: MemoryError: no more was said" in rows


def test_nothing_wrong_ends_quietly_and_what_was_done_before_is_no_fault(capsys):
    volumes = SubjectVolumes(ten(), transform=transform({"s0": AlreadyDone("s0", None, "is there")}))
    assert len(list(volumes)) == 9
    volumes.finish()
    shown = capsys.readouterr()
    assert shown.out == "9 of 10 subjects synthesised, 1 were there already, of the same weights and scans\n"
    assert shown.err == ""


@pytest.mark.parametrize(
    "error", [KeyError("lost"), TypeError("odd"), OverflowError("large"), UnboundLocalError("none")]
)
def test_whatever_is_raised_is_one_subjects_fault(capsys, error):
    volumes = SubjectVolumes(ten(), transform=transform({"s1": error}))
    assert len(list(volumes)) == 9
    with pytest.raises(SystemExit):
        volumes.finish()
    assert f"s1 - cannot be prepared: {type(error).__name__}" in " ".join(capsys.readouterr().err.split())


def test_faults_found_before_count_too(capsys):
    cases = Cases(ten()[:2], [SubjectError("gone", None, "lacks T2, has T1")])
    volumes = SubjectVolumes(cases, transform=transform({}))
    assert len(list(volumes)) == len(list(volumes)) == 2
    with pytest.raises(SystemExit):
        volumes.finish()
    assert "1 of 3 subjects could not be synthesised" in capsys.readouterr().err


def test_a_full_disk_is_no_subjects_fault():
    volumes = SubjectVolumes(ten(), transform=transform({"s1": OSError(28, os.strerror(28), "/out")}))
    with pytest.raises(OSError, match="No space left on device"):
        list(volumes)


def test_a_batch_is_taken_apart_by_monai_into_what_it_was_made_of():
    item = {"image": torch.rand(2, 3, 4, 5), "subject": "ann", "prepared": ten()[0], "root": Path("/x")}
    batch = collate([item])
    assert batch["image"].shape == (1, 2, 3, 4, 5)
    (back,) = decollate_batch(batch)
    torch.testing.assert_close(back.pop("image"), item.pop("image"))
    assert back == item
