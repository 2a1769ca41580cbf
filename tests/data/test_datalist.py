"""A datalist is read whole, or its faults are named: a subject's with subject, file and reason."""

import errno
import json
import pickle
from pathlib import Path

import pytest

from monai_ext.data.datalist import Datalist, Subject, SubjectError, read_datalist, report_failures, write_datalist


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for name in ("a/T1.nii", "a/T2.nii", "b/T1.nii", "é è/T1 ünï.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"image")
    return tmp_path


def put(folder: Path, **content: object) -> Path:
    (folder / "datalist.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "datalist.json"


def good(folder: Path) -> Datalist:
    first = Subject(subject="a", dataset="d", images={"T1": folder / "a/T1.nii", "T2": folder / "a/T2.nii"})
    second = Subject(
        subject="b",
        dataset="other",
        images={"T1": folder / "b/T1.nii"},
        session="2",
        label=folder / "a/T2.nii",
        targets={"FLAIR": folder / "a/T1.nii"},
        masks={"brain": folder / "a/T2.nii"},
    )
    third = Subject(subject="é è", dataset="d", images={"T1": folder / "é è/T1 ünï.nii"})
    return Datalist(name="d", root=folder, splits={"training": (first, second), "validation": (), "test": (third,)})


def test_what_is_written_is_read_back(dataset: Path) -> None:
    write_datalist(dataset / "lists/datalist.json", good(dataset))
    back = read_datalist(dataset / "lists/datalist.json")
    assert back == good(dataset)
    assert [subject.name for subject in back.subjects] == ["a", "b_2", "é è"]


def test_entries_are_flat_relative_and_readable(dataset: Path) -> None:
    write_datalist(dataset / "datalist.json", good(dataset))
    text = (dataset / "datalist.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["root"] == "."
    assert content["training"][0] == {"subject": "a", "T1": "a/T1.nii", "T2": "a/T2.nii"}
    assert content["training"][1]["dataset"] == "other"
    assert content["training"][1]["targets"] == {"FLAIR": "a/T1.nii"}
    assert "é è/T1 ünï.nii" in text


def test_a_dataset_moves_with_its_datalist(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_datalist(dataset / "datalist.json", good(dataset))
    moved = dataset.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert read_datalist(moved / "datalist.json") == good(moved)


def test_a_datalist_may_lie_away_from_its_data(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("work") / "datalist.json"
    write_datalist(path, good(dataset))
    assert json.loads(path.read_text(encoding="utf-8"))["root"] == dataset.as_posix()
    assert read_datalist(path) == good(dataset)


def test_files_may_be_links_into_a_store(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.mktemp("store") / "x.nii"
    store.write_bytes(b"image")
    (dataset / "b/T2.nii").symlink_to(store)
    path = put(dataset, training=[{"subject": "b", "T2": "b/T2.nii"}])
    assert read_datalist(path).subjects[0].images["T2"] == dataset / "b/T2.nii"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"targets": "a/T1.nii"}, "targets must be an object of one path a name"),
        ({"targets": {"T1": 3}}, "targets must be an object of one path a name"),
        ({"targets": {"T9": "a/T1.nii"}}, "targets has the unknown name 'T9'; known are T1"),
        ({"masks": {"skull": "a/T1.nii"}}, "masks has the unknown name 'skull'; known are brain, lesion"),
        ({"masks": {"brain": "../a.nii"}}, "climbs out of the datalist's root"),
        ({"targets": {"T1": "a/T3.nii"}}, "cannot be read"),
    ],
)
def test_targets_and_masks_are_checked_as_images_are(dataset: Path, extra: dict, message: str) -> None:
    path = put(dataset, training=[{"subject": "a", "T1": "a/T1.nii", **extra}])
    with pytest.raises(SubjectError, match=message):
        read_datalist(path)


def test_a_byte_order_mark_is_no_fault(dataset: Path) -> None:
    (dataset / "datalist.json").write_text('{"training": [{"subject": "a", "T1": "a/T1.nii"}]}', encoding="utf-8-sig")
    assert read_datalist(dataset / "datalist.json").name == "datalist"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": [', "not a datalist: Expecting value: line 1"),
        ("\x00\x01", "not a datalist"),
        ("[]", "a datalist is a JSON object, got a list"),
        ('{"train": []}', "unknown key 'train'; a datalist has name, root, training, validation, test"),
        ('{"training": {}}', "training must be a list of subjects, got dict"),
        ('{"name": 3}', "name and root must be text"),
        ('{"root": "nowhere"}', "root 'nowhere' is not a folder: .*set it to where the images are"),
        ('{"training": [{"subject": "a", "T1": "x", "T1": "y"}]}', "the key 'T1' is there twice"),
    ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "datalist.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_datalist(tmp_path / "datalist.json")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_bytes(b"\x1f\x8b\xff")
    with pytest.raises(ValueError, match=r"datalist\.json: not a datalist: .*codec can't decode"):
        read_datalist(tmp_path / "datalist.json")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"subject": "x", "T1": "a/T9.nii"}, r"^x: .*T9\.nii: cannot be read: No such file"),
        ({"subject": "x", "T1": "../T1.nii"}, r"^x: \.\./T1\.nii: climbs out of the datalist's root"),
        ({"subject": "x", "T1": "a/../../T1.nii"}, "climbs out"),
        ({"subject": "x", "T1": "/etc/hostname"}, "climbs out"),
        ({"subject": "x", "T1": "a"}, r"^x: .*a: is not a file"),
        ({"subject": "x", "T1": "a\0b"}, "^x: .*cannot be read: .*null"),
        ({"subject": "x", "label": "a/T1.nii"}, "^x: has no image; give at least one of T1, T2, PD"),
        ({"subject": "x", "t1ce": "a/T1.nii"}, "^x: unknown key 't1ce'; known are subject, session.*T1C"),
        ({"subject": "x", "T1": ["a/T1.nii"]}, r"^x: T1 must be text, got \['a/T1\.nii'\]"),
        ({"subject": "../x", "T1": "a/T1.nii"}, r"subject must be a folder's plain name, got '\.\./x'"),
        ({"subject": "..", "T1": "a/T1.nii"}, "subject must be a folder's plain name"),
        ({"subject": "", "T1": "a/T1.nii"}, "subject must be a folder's plain name, got ''"),
        ({"subject": "x", "session": "1/2", "T1": "a/T1.nii"}, "session must be a folder's plain name"),
        ({"T1": "a/T1.nii"}, r"^training\[0\]: has no key 'subject'"),
        ("a/T1.nii", r"^training\[0\]: must be an object with a subject"),
    ],
)
def test_a_faulty_subject_is_named_and_the_others_are_read(dataset: Path, entry: object, message: str) -> None:
    path = put(dataset, training=[entry, {"subject": "a", "T1": "a/T1.nii"}])
    with pytest.raises(SubjectError, match=message):
        read_datalist(path)
    failures: list[SubjectError] = []
    assert [subject.name for subject in read_datalist(path, failures=failures).subjects] == ["a"]
    assert len(failures) == 1


def test_a_link_that_leads_to_itself_is_the_subjects_fault(dataset: Path) -> None:
    (dataset / "a/FLAIR.nii").symlink_to("FLAIR.nii")
    path = put(dataset, training=[{"subject": "x", "FLAIR": "a/FLAIR.nii"}])
    with pytest.raises(SubjectError, match=r"^x: .*FLAIR\.nii: cannot be read: Too many levels of symbolic links"):
        read_datalist(path)


def test_a_visit_given_twice_is_refused(dataset: Path) -> None:
    path = put(dataset, training=[{"subject": "a", "T1": "a/T1.nii"}, {"subject": "a", "T2": "a/T2.nii"}])
    with pytest.raises(SubjectError, match=r"^a: .*is there twice; give each visit once"):
        read_datalist(path)


def test_two_visits_that_would_share_a_folder_are_refused(dataset: Path) -> None:
    entries = [{"subject": "a_1", "T1": "a/T1.nii"}, {"subject": "a", "session": "1", "T1": "a/T1.nii"}]
    with pytest.raises(SubjectError, match=r"^a_1: .*is there twice"):
        read_datalist(put(dataset, training=entries))


def test_a_person_in_two_splits_is_refused(dataset: Path) -> None:
    one = {"subject": "a", "session": "1", "T1": "a/T1.nii"}
    path = put(dataset, training=[one], test=[{**one, "session": "2"}])
    with pytest.raises(SubjectError, match=r"^a_2: .*is in training and in test; all of a person's sessions belong"):
        read_datalist(path)


def test_a_path_outside_the_root_is_not_written(dataset: Path) -> None:
    with pytest.raises(SubjectError, match=r"^a: .*T1\.nii: is outside the datalist's root"):
        write_datalist(dataset / "datalist.json", Datalist(name="d", root=dataset / "b", splits=good(dataset).splits))
    assert not (dataset / "datalist.json").exists()


def test_a_full_disk_leaves_the_old_datalist_and_nothing_else(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_datalist(dataset / "datalist.json", good(dataset))
    before = {path: path.read_bytes() for path in dataset.iterdir() if path.is_file()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"nothing was written: No space left on device: .*datalist\.json"):
        write_datalist(dataset / "datalist.json", Datalist(name="new", root=dataset, splits={}))
    assert {path: path.read_bytes() for path in dataset.iterdir() if path.is_file()} == before


def test_an_interrupted_write_leaves_nothing_behind(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(dataset.iterdir())

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_datalist(dataset / "datalist.json", good(dataset))
    assert sorted(dataset.iterdir()) == before


def test_an_output_that_cannot_be_written_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(OSError, match=r"nothing was written: Read-only file system: .*datalist\.json"):
        write_datalist(dataset / "datalist.json", good(dataset))


def test_a_fault_comes_back_whole_from_another_process() -> None:
    fault = pickle.loads(pickle.dumps(SubjectError("a", Path("x.nii"), "is bad")))
    assert (fault.subject, fault.path, fault.reason) == ("a", Path("x.nii"), "is bad")
    assert str(fault) == "a: x.nii: is bad"


def test_failures_are_a_table_and_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_failures([], total=3, what="indexed") == 0
    assert capsys.readouterr().err == ""
    faults = [SubjectError("a", Path("x.nii"), "is bad"), SubjectError("bcd", None, "two\nlines")]
    assert report_failures(faults, total=3, what="indexed") == 1
    assert capsys.readouterr().err.splitlines() == [
        "2 of 3 subjects could not be indexed:",
        "  subject  file   reason",
        "  a        x.nii  is bad",
        "  bcd      -      two",
        "                  lines",
    ]
