"""Each bundle from a patient's scans to a synthetic one on the patient's own grid, and what it says where it cannot."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from running import COMPACT, TINY, refused

WIDTH = {"width": TINY["width"]}


@pytest.fixture(scope="session")
def task(bundle: Path) -> tuple[list[str], str]:
    """The bundle's own sources and target; of one that takes what there is, those that its evaluation asks for."""
    content = ConfigParser.load_config_file(bundle / "configs/evaluate.json")
    return content["sources"], content["target"]


@pytest.fixture(scope="session")
def takes_any(bundle: Path) -> bool:
    """Whether it takes whatever contrasts a subject has, and makes the missing ones."""
    return ConfigParser.load_config_file(bundle / "configs/inference.json")["sources"] is None


@pytest.fixture
def infer(bundle: Path, trained: Path, bundle_run: Callable, tmp_path: Path, task: tuple, takes_any: bool) -> Callable:
    def run(check: bool = True, **ids: object):
        ids = {
            **({"target": task[1]} if takes_any else {}),
            "output_dir": tmp_path / "out",
            "weights": trained / "model.pt",
            **WIDTH,
            **ids,
        }
        return bundle_run(bundle, "inference", check=check, **ids)

    return run


def cases(raw: Path) -> list[Path]:
    return sorted(path for path in raw.iterdir() if path.is_dir() and any(path.glob("*T1.nii.gz")))


def scan(case: Path, contrast: str) -> Path:
    return next(path for path in case.glob("*.nii.gz") if path.name.removesuffix(".nii.gz").split("_")[-1] == contrast)


def copied(case: Path, to: Path, contrasts: list[str]) -> Path:
    to.mkdir(parents=True)
    for contrast in contrasts:
        shutil.copy(scan(case, contrast), to / f"{contrast}.nii.gz")
    return to


def test_one_subject_by_name_is_written_on_its_own_grid_and_says_that_it_is_synthetic(
    bundle: Path, infer: Callable, raw: Path, task: tuple, tmp_path: Path
):
    sources, target = task
    case = copied(cases(raw)[0], tmp_path / "patient", sources)
    turned = case / f"{sources[0]}.nii.gz"  # as a scanner may store it: left to right, and thicker axes first
    image = nib.load(turned).as_reoriented(np.array([[1, 1], [0, -1], [2, -1]]))
    nib.save(image, turned)
    images = {contrast: str(case / f"{contrast}.nii.gz") for contrast in sources}
    infer(images=images, reference=sources[0], quick_look="true")
    out = tmp_path / "out" / "patient"
    made, reference = nib.load(out / f"{target}_synthetic.nii.gz"), nib.load(turned)
    assert made.shape == reference.shape
    np.testing.assert_array_equal(made.affine, reference.affine)
    assert made.get_data_dtype() == np.float32
    assert made.header["descrip"].item().decode().startswith(f"SYNTHETIC {target}")
    voxels = made.get_fdata()
    assert 0 <= voxels.min() < voxels.max() <= 1
    about = json.loads((out / f"{target}_synthetic.json").read_text())
    assert about["synthetic"] is True
    assert about["bundle"] == bundle.name
    assert list(about["sources"]) == sources
    assert re.fullmatch("[0-9a-f]{64}", about["weights_sha256"])
    assert (out / f"{target}_synthetic.png").stat().st_size > 1000


def test_of_ten_subjects_three_broken_seven_are_written_and_three_named(
    infer: Callable, raw: Path, task: tuple, takes_any: bool, tmp_path: Path
):
    sources, target = task
    folder = tmp_path / "patients"
    for number in range(10):
        copied(cases(raw)[number % 5], folder / f"case{number}", sources)
    cut = folder / "case2" / f"{sources[0]}.nii.gz"
    cut.write_bytes(cut.read_bytes()[:2000])
    (folder / "case5" / f"{sources[-1]}.nii.gz").unlink()
    text = folder / "case7" / f"{sources[0]}.nii.gz"
    text.write_text("<html>not found</html>")
    if takes_any or len(sources) == 1:  # one source fewer is no fault, or without it a folder holds no subject
        (folder / "case5" / f"{sources[0]}.nii.gz").write_bytes(b"")
    done = infer(check=False, dataset_dir=folder)
    assert done.returncode == 1
    written = sorted(path.parent.name for path in (tmp_path / "out").rglob(f"{target}_synthetic.nii.gz"))
    assert written == [f"case{number}" for number in (0, 1, 3, 4, 6, 8, 9)]
    told = done.stderr[done.stderr.index("3 of 10 subjects could not be synthesised") :]
    for name, reason in (("case2", "truncated or damaged"), ("case5", "lacks|empty"), ("case7", "is text")):
        assert re.search(rf"{name} .*({reason})", told), told
    assert not list((tmp_path / "out").rglob(".partial*"))


def test_a_datalists_split_is_synthesised_from_any_folder_and_done_subjects_are_left(
    infer: Callable, raw: Path, tmp_path: Path
):
    done = infer(datalist=raw / "index.json", split="test")
    assert "2 of 2 subjects synthesised" in done.stdout
    files = sorted((tmp_path / "out").rglob("*.nii.gz"))
    times = [path.stat().st_mtime_ns for path in files]
    again = infer(datalist=raw / "index.json", split="test")
    assert "2 were there already" in again.stdout
    assert [path.stat().st_mtime_ns for path in files] == times
    other = infer(check=False, datalist=raw / "index.json", split="test", register="rigid")
    assert other.returncode == 1
    assert "is kept: give another output_dir, or overwrite true" in other.stderr
    infer(datalist=raw / "index.json", split="test", overwrite="true")
    assert all(path.stat().st_mtime_ns > before for path, before in zip(files, times, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "{'{first}': '/nowhere/a.nii.gz'}"}, r"a\.nii\.gz"),
        ({"images": "{'T9': '/a.nii.gz'}"}, r"T9.*known"),
        ({"target": "{first}", "sources": "{sources}", "datalist": "{index}"}, "source and the target"),
        ({"dataset_dir": "{empty}"}, "holds no image whose name says its contrast"),
        ({"dataset_dir": "{empty}", "datalist": "{index}"}, "exactly one of images"),
        ({}, r"exactly one of images.*, got none"),
        ({"weights": "/nowhere/model.pt", "datalist": "{index}"}, r"/nowhere/model\.pt"),
        ({"datalst": "{index}"}, "did you mean 'datalist'"),
    ],
)
def test_each_misuse_has_its_own_message(
    bundle: Path, trained: Path, raw: Path, task: tuple, tmp_path: Path, change: dict, message: str, capsys
):
    (tmp_path / "empty").mkdir()
    places = {
        "{first}": task[0][0],
        "{sources}": str(task[0]),
        "{index}": str(raw / "index.json"),
        "{empty}": str(tmp_path / "empty"),
    }
    for place, value in places.items():
        change = {key: text.replace(place, value) for key, text in change.items()}
    ids = {
        "bundle_root": str(bundle),
        "output_dir": str(tmp_path / "out"),
        "weights": str(trained / "model.pt"),
        **WIDTH,
    }
    said = refused(capsys, bundle / "configs/inference.json", **(ids | change))
    assert re.search(message, said), said


def test_an_evaluation_leaves_a_run_folder_with_its_robustness(
    bundle: Path, trained: Path, prepared: Path, bundle_run: Callable, task: tuple, tmp_path: Path
):
    sources, target = task
    moved = f"[{{'kind': 'translate', 'contrast': '{sources[-1]}', 'levels': [0, 1.5]}}]"
    ids = {"dataset_dir": prepared, "output_dir": tmp_path, "weights": trained / "model.pt", "perturbations": moved}
    if bundle.name == "pmm_synth":
        ids["every_task"] = False  # its own tests see to the matrix
    bundle_run(bundle, "evaluate", COMPACT, **ids, **TINY)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["bundle"] == bundle.name
    assert record["target"] == [target]
    assert record["weights"]["sha256"] == json.loads((trained / "model.json").read_text())["sha256"]
    rows = (tmp_path / "subjects.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3 * (1 + 2)  # subjects, regions, and untouched beside two levels
    assert len(list((tmp_path / "volumes").rglob(f"{target}_synthetic.nii.gz"))) == 2


@pytest.mark.long
def test_a_real_patient_goes_through(infer: Callable, task: tuple, real_data: Path, tmp_path: Path):
    """Three scans of one visit, each on its own grid, of a head with its skull."""
    sources, target = task
    there = {"T1": "T1W", "T2": "T2W", "FLAIR": "FLAIR"}
    stand_in = dict(
        zip(sources, there.values(), strict=False)
    )  # whatever the bundle's contrasts: the way is what counts
    images = {contrast: str(real_data / "ms_raw_patient01" / f"{name}.nii.gz") for contrast, name in stand_in.items()}
    infer(images=images, register="rigid", subject="patient01")
    made = nib.load(tmp_path / "out" / "patient01" / f"{target}_synthetic.nii.gz")
    assert made.get_fdata().std() > 0
