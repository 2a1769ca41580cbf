"""A file's header is not believed: what it declares is held against what is there before memory is taken for it."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from monai_ext.__main__ import main
from monai_ext.data.datalist import SubjectError, read_datalist
from monai_ext.data.resampling import resample
from monai_ext.data.volumes import Volume, read_volume, write_volume

OFFSET = 108  # of vox_offset in a NIfTI-1 header
PEAK = """
import sys
from monai_ext.data.volumes import read_volume
import nibabel, numpy
open("/proc/self/clear_refs", "w").write("5")
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
before = status("VmRSS")
try:
    read_volume(sys.argv[1])
except ValueError as error:
    print(error)
print(status("VmHWM") - before)
"""


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(np.int16)


def nifti(path: Path, values: np.ndarray, change: Callable[[np.ndarray], None], *, payload: bytes | None = None):
    """A NIfTI whose header's fields `change` sets past nibabel's checks."""
    header = nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1])).header
    header["vox_offset"] = 352
    change(header)
    body = header.binaryblock + bytes(4) + (values.tobytes(order="F") if payload is None else payload)
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan, -1, 1e30])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_offset_that_is_no_place_in_a_file_is_refused(tmp_path, values, name, offset):
    path = nifti(tmp_path / name, values, lambda header: header.__setitem__("vox_offset", offset))
    with pytest.raises(ValueError, match=r"damaged \(its voxels begin at byte"):
        read_volume(path)


def peak(path: Path) -> tuple[str, int]:
    """What reading says, and by how many MB it grew the process."""
    ran = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    *said, grown = ran.stdout.splitlines()
    return "\n".join(said), int(grown) // 1024


@pytest.mark.parametrize(("side", "reason"), [(1500, "voxels, at most"), (700, "its header declares")])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_small_file_that_declares_gigabytes_takes_no_memory(tmp_path, values, name, side, reason):
    def large(header):
        header["dim"][1:4] = side

    said, grown = peak(nifti(tmp_path / name, values, large, payload=bytes(25_000)))
    assert reason in said
    assert grown < 30


def test_compressed_voxels_that_end_early_take_memory_for_what_is_there(tmp_path, values):
    def large(header):
        header["dim"][1:4] = 500  # 250 MB of int16

    random = np.random.default_rng(0).integers(0, 256, 400_000, dtype=np.uint8).tobytes()
    said, grown = peak(nifti(tmp_path / "a.nii.gz", values, large, payload=random))
    assert "truncated or damaged" in said
    assert grown < 30


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_scaled_image_is_what_nibabel_reads(tmp_path, values, suffix):
    path = tmp_path / f"a{suffix}"
    write_volume(path, Volume(values.astype(np.float32) / 7, np.diag([2.0, 2, 2, 1])), dtype=np.int16, slope=0.013)
    expected = nib.load(path).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(read_volume(path).array, expected)


def test_the_most_voxels_are_as_told(tmp_path, values, monkeypatch):
    path = nifti(tmp_path / "a.nii.gz", values, lambda _: None)
    monkeypatch.setenv("MONAI_EXT_MAX_VOXELS", "210")
    assert read_volume(path).shape == (5, 6, 7)
    monkeypatch.setenv("MONAI_EXT_MAX_VOXELS", "209")
    with pytest.raises(ValueError, match=r"5 x 6 x 7 is 210 voxels, at most 209 are read.*set MONAI_EXT_MAX_VOXELS"):
        read_volume(path)
    for wrong in ("0", "-1", "many", "1" * 30):
        monkeypatch.setenv("MONAI_EXT_MAX_VOXELS", wrong)
        with pytest.raises(ValueError, match="must be a whole number above 0"):
            read_volume(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, suffix):
    (pipe, folder), device = ((tmp_path / f"{kind}{suffix}") for kind in ("pipe", "folder")), tmp_path / f"null{suffix}"
    os.mkfifo(pipe)
    folder.mkdir()
    device.symlink_to("/dev/zero")
    for path, kind in ((pipe, "pipe"), (folder, "folder"), (device, "device")):
        with pytest.raises(ValueError, match=f"is a {kind}, expected a regular file"):
            read_volume(path)


def test_a_datalist_that_is_a_pipe_is_refused_at_once(tmp_path, capsys):
    os.mkfifo(tmp_path / "list.json")
    assert main(["prepare", "--datalist", str(tmp_path / "list.json"), "--out", str(tmp_path / "out")]) == 2
    assert "list.json: not a datalist: is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize(("sizes", "reason"), [("700 700 700", "its header declares"), ("2000 2000 2000", "at most")])
def test_other_formats_are_held_to_what_is_there(tmp_path, values, suffix, sizes, reason):
    path = tmp_path / f"a{suffix}"
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(values.T)), str(path))
    path.write_bytes(path.read_bytes().replace(b"5 6 7", sizes.encode()))
    with pytest.raises(ValueError, match=reason):
        read_volume(path)


@pytest.mark.parametrize("named", ["../secret.raw", "/etc/passwd", "LIST", "slice%03d.raw 1 5 1", ".hidden"])
def test_a_header_names_no_file_but_one_beside_it(tmp_path, named):
    path = tmp_path / "a.mhd"
    text = f"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = {named}\n"
    path.write_text(text)
    (tmp_path.parent / "secret.raw").write_bytes(b"01234567")
    with pytest.raises(ValueError, match="read from one file beside it alone"):
        read_volume(path)


@pytest.mark.parametrize(
    "text",
    [
        "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nelementdatafile = LOCAL\n"
        "ElementDataFile = ../secret.raw\n",
        "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nelementdatafile = LOCAL\n"
        + "Comment = x\n" * 9000
        + "ElementDataFile = ../secret.raw\n",
        "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nComment = x\x0bElementDataFile = LOCAL\n"
        "ElementDataFile = ../secret.raw\n",
    ],
)
def test_a_metaimage_cannot_name_a_second_file_that_only_itk_sees(tmp_path, text):
    (tmp_path / "a.mhd").write_text("ObjectType = Image\n" + text)
    (tmp_path.parent / "secret.raw").write_bytes(b"01234567")
    with pytest.raises(ValueError, match=r"twice|does not end|read from one file beside it alone"):
        read_volume(tmp_path / "a.mhd")


@pytest.mark.parametrize("between", ["data file: a.raw\n", "# x\n" * 20000])
def test_an_nrrd_cannot_name_a_second_file_that_only_itk_sees(tmp_path, between):
    text = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n{between}data file: ../secret.raw\n\n"
    (tmp_path / "a.nhdr").write_text(text)
    for file in (tmp_path.parent / "secret.raw", tmp_path / "a.raw"):
        file.write_bytes(b"01234567")
    with pytest.raises(ValueError, match=r"twice|does not end"):
        read_volume(tmp_path / "a.nhdr")


def test_a_data_file_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.raw")
    (tmp_path / "a.nhdr").write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: a.raw\n\n"
    )
    with pytest.raises(ValueError, match=r"a\.raw is a pipe"):
        read_volume(tmp_path / "a.nhdr")


def test_more_dimensions_than_there_is_room_for_are_refused(tmp_path):
    many = " ".join(["2"] * 500)
    (tmp_path / "a.mhd").write_text(
        f"NDims = 500\nDimSize = {many}\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    )
    with pytest.raises(ValueError, match="its number of dimensions is '500'"):
        read_volume(tmp_path / "a.mhd")


@pytest.mark.parametrize("step", [0.0001, 5000])
def test_voxels_of_another_unit_are_refused(tmp_path, values, step):
    nib.save(nib.Nifti1Image(values, np.diag([step, 1, 1, 1])), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"expected 0\.01 to 30"):
        read_volume(tmp_path / "a.nii")


def test_no_grid_is_made_that_is_larger_than_an_image_may_be(values):
    with pytest.raises(ValueError, match="the grid to resample on is too large"):
        resample(Volume(values, np.eye(4)), (5000, 5000, 5000), np.eye(4))


BAD_NAMES = {
    ".preparing-b": "begins with a dot",
    ".replaced-b": "begins with a dot",
    "datalist.json": "a file of ours",
    "b" * 250: "takes 250 bytes, at most 180",
    "é" * 91: "takes 182 bytes",
    "NUL": "Windows has a device",
    "com1.x": "Windows has a device",
    "a\x1bb": "control character",
    "a\u2028b": "control character",
    "a\ud800": "half a letter|must be text",
    "a/b": "slash",
    "a ": "space",
    "..": "begins with a dot",
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_is_no_folder_of_its_own_is_that_subjects_fault(tmp_path, name, values, capsys):
    for subject in ("a", "b"):
        (tmp_path / subject).mkdir()
        for contrast in ("T1", "T2"):
            write_volume(tmp_path / subject / f"{contrast}.nii", Volume(values, np.diag([25.0, 25, 25, 1])))
    entries = [{"subject": who, "T1": f"{at}/T1.nii", "T2": f"{at}/T2.nii"} for who, at in (("a", "a"), (name, "b"))]
    (tmp_path / "list.json").write_text(json.dumps({"name": "d", "root": ".", "training": entries}))
    failures: list[SubjectError] = []
    assert [one.name for one in read_datalist(tmp_path / "list.json", failures=failures).subjects] == ["a"]
    (fault,) = failures
    assert any(part in fault.reason for part in BAD_NAMES[name].split("|"))
    assert str(fault).isprintable()
    command = ["prepare", "--datalist", str(tmp_path / "list.json"), "--out", str(tmp_path / "out")]
    assert main([*command, "--register", "none"]) == 1
    assert "1 prepared, 0 unchanged, 0 failed" in capsys.readouterr().out
    assert [one.name for one in read_datalist(tmp_path / "out" / "datalist.json").subjects] == ["a"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "datalist.json"}


@pytest.mark.parametrize("name", ["datalist.json", "b" * 250, "NUL", "a\x1bb", "a "], ids=ascii)
def test_index_refuses_the_same_names(tmp_path, name, values, capsys):
    for subject in ("good", name):
        (tmp_path / "in" / subject).mkdir(parents=True)
        write_volume(tmp_path / "in" / subject / "T1.nii", Volume(values, np.eye(4)))
    assert main(["index", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "list.json")]) == 1
    assert "subject must be a folder's plain name" in capsys.readouterr().err
    assert [one.name for one in read_datalist(tmp_path / "list.json").subjects] == ["good"]


def test_json_nested_without_end_is_refused_in_a_line(tmp_path, capsys):
    (tmp_path / "list.json").write_text('{"training": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert main(["prepare", "--datalist", str(tmp_path / "list.json"), "--out", str(tmp_path / "out")]) == 2
    assert "is nested too deeply to be read" in capsys.readouterr().err


def test_half_a_letter_is_no_name(tmp_path):
    (tmp_path / "list.json").write_text('{"name": "\\ud800", "training": []}')
    with pytest.raises(ValueError, match=r"must be text, got '\\ud800'"):
        read_datalist(tmp_path / "list.json")


@pytest.mark.parametrize(("more", "done"), [({}, {"é", "b"}), ({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"b"})])
def test_where_the_locale_is_c_any_letters_are_read_or_are_one_subjects_fault(tmp_path, values, more, done):
    """Python reads names as UTF-8 there, unless it is told not to: then one with other letters is no text."""
    for subject in ("é", "b"):
        (tmp_path / "in" / subject).mkdir(parents=True)
        write_volume(tmp_path / "in" / subject / "T1.nii", Volume(values, np.diag([20.0, 20, 20, 1])))
    environment = {**os.environ, "LC_ALL": "C", **more}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "monai_ext", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    indexed = run("index", "--root", tmp_path / "in", "--out", tmp_path / "list.json")
    assert indexed.returncode == 2 - len(done), indexed.stderr
    prepared = run("prepare", "--datalist", tmp_path / "list.json", "--out", tmp_path / "out")
    assert prepared.returncode == 0, prepared.stderr
    assert {one.name for one in read_datalist(tmp_path / "out/datalist.json").subjects} == done
