"""The dicom command: a study in, a new series out, read back by other programs; each bad study refused by name."""

import json
import shutil
import subprocess
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_study import DESCRIPTIONS, FRAME, STUDY, write_series, write_study
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import JPEG2000Lossless
from running import BUNDLES, smallest_weights

from monai_ext.__main__ import main
from monai_ext.data.dicom import choose, contrast_of, read_series, read_study, sorted_slices
from monai_ext.data.volumes import read_volume, write_volume
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.synthesis.dicom_writer import WHITEST
from monai_ext.synthesis.dicom_writer import write_series as write_synthetic

HALF_STEP = 1.01e-5


@pytest.fixture(scope="module")
def weights(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallest_weights(bundle, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), *DESCRIPTIONS)


@pytest.fixture(scope="module")
def written(bundle: Path, weights: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the new series."""
    out = tmp_path_factory.mktemp("out")
    words = ["--study", study, "--bundle", bundle, "--weights", weights, "--out", out, "--uid-root", "1.2.826.0.1"]
    words += ["--target", BundleSynthesiser(bundle, weights=weights).targets[-1]]
    assert main(["dicom", *map(str, words)]) == 0
    return min(out.iterdir())


def images(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def as_nifti(study: Path, contrasts: list[str], folder: Path) -> dict[str, Path]:
    files = {contrast: folder / f"{contrast}.nii.gz" for contrast in contrasts}
    for contrast, series in choose(read_study(study), contrasts, {}).items():
        write_volume(files[contrast], read_series(sorted_slices(series)))
    return files


def test_the_series_is_the_nifti_that_the_bundle_writes(bundle, weights, study, written, tmp_path):
    synthesiser = BundleSynthesiser(bundle, weights=weights)
    target = synthesiser.targets[-1]
    files = as_nifti(study, [name for name in synthesiser.contrasts if name != target], tmp_path)
    path = synthesiser(files, tmp_path / "out", target=target)[target]
    assert written.name == f"SYNTHETIC_{target}"
    nifti = nib.load(path)
    expected = read_volume(path, allow_constant=True)
    for volume in (read_series(sorted_slices(read_study(written)[0])), _by_itk(written, tmp_path)):
        assert volume.shape == nifti.shape
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
        np.testing.assert_allclose(volume.array / WHITEST, expected.array, atol=HALF_STEP)


def _by_itk(folder: Path, tmp_path: Path):
    """As ITK's GDCM reads the series, rescale and geometry included."""
    names = itk.GDCMSeriesFileNames.New(Directory=str(folder))
    (uid,) = names.GetSeriesUIDs()
    itk.imwrite(itk.imread(list(names.GetFileNames(uid)), itk.F), str(tmp_path / "itk.nii.gz"))
    return read_volume(tmp_path / "itk.nii.gz", allow_constant=True)


def test_every_image_says_that_it_is_synthetic_and_of_what(bundle, written, study):
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in study.rglob("*.dcm")}
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    for image in images(written):
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        target = written.name.removeprefix("SYNTHETIC_")
        assert image.SeriesDescription.startswith(f"SYNTHETIC {target} ({bundle.name} {version}) from ")
        assert "not to be used clinically" in image.DerivationDescription
        assert image.BurnedInAnnotation == "NO"
        assert {item.ReferencedSOPInstanceUID for item in image.SourceImageSequence} <= uids


def test_a_series_that_was_computed_is_no_source_and_no_acquired_contrast(study, written, tmp_path):
    both = tmp_path / "study"
    shutil.copytree(study, both / "scans")
    shutil.copytree(written, both / "back_from_the_archive")
    target = written.name.removeprefix("SYNTHETIC_")
    scans = read_study(both)
    (computed,) = (scan for scan in scans if scan.synthetic)
    assert contrast_of(computed.headers[0]) is None
    assert str(computed).endswith("synthetic")
    acquired = [contrast_of(scan.headers[0]) for scan in read_study(study)]
    assert [contrast_of(scan.headers[0]) for scan in scans if scan is not computed] == acquired
    with pytest.raises(ValueError, match=rf"is synthetic: it was computed, and is no source for {target}"):
        choose(scans, [target], {target: computed.number})


def test_one_of_a_series_of_two_echoes_is_named_by_its_echo(two):
    for number, path in enumerate(sorted((two / "T1").rglob("*.dcm"))):
        change(path, SeriesDescription="TSE", EchoTime=14 if number % 2 else 96)
    scans = read_study(two)
    with pytest.raises(ValueError, match="all match T1: say which with --series T1=NUMBER@ECHO"):
        choose(scans, ["T1"], {"T1": "1"})
    chosen = choose(scans, ["T1"], {"T1": "1@96"})["T1"]
    assert {float(header.EchoTime) for header in chosen.headers} == {96.0}
    assert "echo 96" in str(chosen)


def test_a_scanners_own_synthetic_series_is_a_scan(study):
    header = read_study(study)[0].headers[0].copy()
    header.Manufacturer, header.SeriesDescription = "GE MEDICAL SYSTEMS", "Synthetic T1W (MAGiC)"
    assert contrast_of(header) == "T1"
    header.SeriesDescription = "SYNTHETIC T1 (agi_net 0.2.0) from T2"  # ours, whose maker an archive has changed
    assert contrast_of(header) is None


def written_of(array: np.ndarray, study: Path, folder: Path) -> list[pydicom.Dataset]:
    """The images of a reproducible series with these voxels, at the T1's place."""
    reference = sorted_slices(choose(read_study(study), ["T1"], {})["T1"])
    record = {"bundle": "agi_net", "version": "1", "weights_sha256": "0" * 64, "target": "FLAIR"}
    folder.mkdir()
    given = {"record": record, "reference": reference, "sources": {"T1": reference}, "number": 9}
    write_synthetic(folder, array.astype(np.float32), **given, reproducible=True)
    return images(folder)


def test_a_viewer_shows_grey_values_by_the_window_that_the_series_has(study, tmp_path):
    """By DICOM's linear function, of which a window of width 1 leaves black and white alone."""
    shape = read_series(sorted_slices(choose(read_study(study), ["T1"], {})["T1"])).shape
    ramp = np.broadcast_to(np.linspace(0, 1, shape[0])[:, None, None], shape)
    for image in written_of(ramp, study, tmp_path / "series"):
        grey = apply_voi_lut(apply_modality_lut(image.pixel_array, image), image)
        np.testing.assert_allclose((grey / grey.max()).T, ramp[:, :, 0], atol=2e-3)


def test_other_voxels_are_another_series_also_where_it_is_to_be_reproducible(study, tmp_path):
    shape = read_series(sorted_slices(choose(read_study(study), ["T1"], {})["T1"])).shape
    made = [written_of(np.full(shape, value), study, tmp_path / str(n)) for n, value in enumerate((0.1, 0.9, 0.1))]
    uids = [[image.SOPInstanceUID for image in series] for series in made]
    assert uids[0] == uids[2]
    assert not set(uids[0]) & set(uids[1])


def test_a_site_that_the_weights_do_not_tell_apart_is_refused_by_name(bundle, weights, study, tmp_path, capsys):
    words = ["--study", study, "--bundle", bundle, "--weights", weights, "--out", tmp_path, "--site", "nowhere"]
    words += ["--target", BundleSynthesiser(bundle, weights=weights).targets[-1]]
    assert main(["dicom", *map(str, words)]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "nowhere" in said if bundle.name == "pmm_synth" else f"{bundle.name} tells no sites apart" in said


def test_a_t1c_says_that_it_cannot_know_enhancement(bundle, weights, study, tmp_path):
    if bundle.name != "pmm_synth":
        pytest.skip("makes no T1C")
    words = ["--study", study, "--bundle", bundle, "--weights", weights, "--out", tmp_path, "--target", "T1C"]
    assert main(["dicom", *map(str, words)]) == 0
    for image in images(tmp_path / "SYNTHETIC_T1C"):
        assert "enhancement in this T1C is guessed" in image.DerivationDescription
        assert "enhancement in this T1C is guessed" in image.ImageComments


def test_the_patient_the_study_and_the_frame_are_carried_over(written, study):
    source = pydicom.dcmread(next(study.rglob("*.dcm")))
    for image in images(written):
        assert (image.StudyInstanceUID, image.FrameOfReferenceUID) == (STUDY, FRAME)
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
            assert image[keyword].value == source[keyword].value
        assert image.SeriesNumber > len(DESCRIPTIONS)


def test_the_uids_are_new_and_below_the_root(written):
    there = images(written)
    uids = {str(image.SOPInstanceUID) for image in there} | {str(image.SeriesInstanceUID) for image in there}
    assert len(uids) == len(there) + 1
    assert all(uid.startswith("1.2.826.0.1.") and len(uid) <= 64 for uid in uids)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy, of Debian's dicom3tools")
def test_dciodvfy_finds_no_error(written):
    for path in sorted(written.iterdir())[::4]:
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert "Error" not in done.stdout + done.stderr, done.stderr


# What follows does not depend on the bundle: one stands for all.


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that make T2 of T1 and FLAIR."""
    folder = tmp_path_factory.mktemp("first")
    return smallest_weights(BUNDLES[0], folder, sources=["T1", "FLAIR"], target=["T2"])


def dicom(first: Path, study: Path, out: Path, *more: str) -> int:
    words = ["--study", study, "--bundle", BUNDLES[0], "--weights", first, "--out", out, *more]
    return main(["dicom", *map(str, words)])


def refusal(first: Path, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What the command says; nothing is written."""
    assert dicom(first, study, tmp_path / "out", *more) == 2
    assert not any(tmp_path.glob("out/*"))
    return capsys.readouterr().err


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A study to spoil: T1 is series 1, FLAIR series 2."""
    return write_study(tmp_path / "study", "T1", "FLAIR")


def change(path: Path, **values: object) -> None:
    image = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(image, keyword, value)
    image.save_as(path)


def test_reproducible_files_are_the_same_to_the_byte(first, two, tmp_path):
    for name in ("one", "other"):
        assert dicom(first, two, tmp_path / name, "--reproducible") == 0
    for path in (tmp_path / "one" / "SYNTHETIC_T2").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / "SYNTHETIC_T2" / path.name).read_bytes()


def test_otherwise_each_run_makes_a_series_of_its_own(first, two, tmp_path):
    for name in ("one", "other"):
        assert dicom(first, two, tmp_path / name) == 0
    uids = {images(tmp_path / name / "SYNTHETIC_T2")[0].SeriesInstanceUID for name in ("one", "other")}
    assert len(uids) == 2
    assert all(uid.startswith("2.25.") for uid in uids)


def test_what_is_there_is_kept(first, two, tmp_path, capsys):
    assert dicom(first, two, tmp_path / "out") == 0
    assert dicom(first, two, tmp_path / "out") == 2
    assert "is there already and is kept" in capsys.readouterr().err


def test_no_matching_series_is_refused_with_what_there_is(first, tmp_path, capsys):
    study = write_study(tmp_path / "study", "T1", "ADC")
    said = refusal(first, study, tmp_path, capsys)
    assert "no series shows FLAIR: name one with --series FLAIR=NUMBER" in said
    assert "series 2 'DIFFUSION_ADC' (10 slices): ADC" in said


def test_two_matching_series_are_refused_until_one_is_named(first, two, tmp_path, capsys):
    write_series(two / "again", number=7, SeriesDescription="T1 SE TRA again")
    said = refusal(first, two, tmp_path, capsys)
    assert "series 1 'T1 SE TRA' and 7 'T1 SE TRA again' all match T1: say which with --series T1=NUMBER" in said
    for name in ("7", "t1 se tra again", "1.2.3.4.5.7"):
        assert choose(read_study(two), ["T1"], {"T1": name})["T1"].number == "7"


def test_a_series_that_is_named_but_not_there_is_refused(first, two, tmp_path, capsys):
    assert "no series is '9', asked for as T1" in refusal(first, two, tmp_path, capsys, "--series", "T1=9")
    said = refusal(first, two, tmp_path, capsys, "--series", "ADC=1")
    assert "--series names ADC, but the sources are T1, FLAIR" in said
    assert "such as T1=5, got 'T1'" in refusal(first, two, tmp_path, capsys, "--series", "T1")


def test_a_missing_slice_is_refused(first, two, tmp_path, capsys):
    (two / "T1" / "004.dcm").unlink()
    said = refusal(first, two, tmp_path, capsys)
    assert "series 1 'T1 SE TRA' lacks 1 slice: after 5.00 mm comes 15.00 mm" in said


def test_unequal_spacing_is_refused(first, two, tmp_path, capsys):
    path = two / "T1" / "001.dcm"
    position = list(pydicom.dcmread(path).ImagePositionPatient)
    change(path, ImagePositionPatient=[*position[:2], position[2] + 1])
    assert "has unequal spacing: 6.00 mm after 20.00 mm, elsewhere 5.00 mm" in refusal(first, two, tmp_path, capsys)


def test_a_slice_that_is_there_twice_is_refused(first, two, tmp_path, capsys):
    shutil.copy(two / "T1" / "001.dcm", two / "T1" / "copy.dcm")
    assert "has two slices at 25.00 mm" in refusal(first, two, tmp_path, capsys)


def test_mixed_orientations_are_refused(first, two, tmp_path, capsys):
    change(two / "T1" / "003.dcm", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert "mixed orientations: 1 of 10 slices" in refusal(first, two, tmp_path, capsys)


def test_slices_of_different_size_are_refused(first, two, tmp_path, capsys):
    change(two / "T1" / "003.dcm", PixelSpacing=[6, 5])
    assert "has slices of different PixelSpacing: [6.0, 5.0], [6.0, 6.0]" in refusal(first, two, tmp_path, capsys)


def test_a_sheared_series_is_refused(first, two, tmp_path, capsys):
    for path in (two / "T1").iterdir():
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        change(path, ImagePositionPatient=[x, y + z / 10, z])
    assert "is sheared: its slices drift sideways by 4.50 mm" in refusal(first, two, tmp_path, capsys)


def test_a_single_slice_is_refused(first, two, tmp_path, capsys):
    for path in sorted((two / "T1").iterdir())[1:]:
        path.unlink()
    assert "has one slice: a volume needs more" in refusal(first, two, tmp_path, capsys)


def test_a_compressed_syntax_that_cannot_be_read_is_refused(first, two, tmp_path, capsys):
    for path in (two / "T1").iterdir():
        image = pydicom.dcmread(path)
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless
        image.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51no picture"])
        image["PixelData"].VR = "OB"
        image.save_as(path)
    said = refusal(first, two, tmp_path, capsys)
    assert "is compressed as JPEG 2000 Image Compression (Lossless Only), which cannot be read here" in said


def test_a_compressed_syntax_that_can_be_read_is_read(two):
    before = read_series(sorted_slices(read_study(two)[0]))
    for path in (two / "T1").iterdir():
        image = pydicom.dcmread(path)
        image.compress(pydicom.uid.RLELossless)
        image.save_as(path)
    np.testing.assert_array_equal(read_series(sorted_slices(read_study(two)[0])).array, before.array)


@pytest.mark.parametrize(
    ("keyword", "value"), [("PatientName", "Another^One"), ("PatientBirthDate", "19710101"), ("PatientName", "")]
)
def test_one_id_does_not_make_two_people_one(two, keyword, value):
    change(two / "T1" / "001.dcm", **{keyword: value})
    with pytest.raises(ValueError, match=rf"holds 2 patients, expected one: .*\({keyword}\)"):
        read_study(two)


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_id_matches_nobody(two, value):
    for path in two.rglob("*.dcm"):
        change(path, PatientID=value)
    with pytest.raises(ValueError, match="has no PatientID"):
        read_study(two)


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("RescaleSlope", None, "has RescaleSlope None, expected a number but 0"),
        ("RescaleSlope", "0", "has RescaleSlope 0"),
        ("PixelSpacing", ["0", "6"], "both must be above zero"),
        ("PixelSpacing", ["-6", "6"], "both must be above zero"),
        ("PixelSpacing", None, "lacks PixelSpacing"),
        ("PixelData", b"", "has no PixelData"),
        ("ImageOrientationPatient", ["1", "0", "0"], "expected 6 numbers"),
        ("ImagePositionPatient", ["1", "0"], "expected 3 numbers"),
        ("SOPClassUID", None, "damaged|is None"),
    ],
)
def test_an_attribute_that_cannot_be_is_one_line(two, keyword, value, reason):
    for path in (two / "T1").iterdir():
        change(path, **{keyword: value})
    with pytest.raises(ValueError, match=reason) as refused:
        read_series(sorted_slices(choose(read_study(two), ["T1"], {})["T1"]))
    assert "\n" not in str(refused.value)


def test_an_empty_frame_of_reference_is_not_a_common_one(first, two, tmp_path, capsys):
    for path in two.rglob("*.dcm"):
        change(path, FrameOfReferenceUID="")
    said = refusal(first, two, tmp_path, capsys, "--register", "none")
    assert "T1 and FLAIR has no FrameOfReferenceUID" in said
    assert "leave --register none out" in said


def test_a_study_of_two_patients_is_refused(first, two, tmp_path, capsys):
    change(two / "T1" / "001.dcm", PatientID="N1")
    assert "holds 2 patients, expected one: 'N0', 'N1'" in refusal(first, two, tmp_path, capsys)


def test_two_studies_are_refused(first, two, tmp_path, capsys):
    change(two / "T1" / "001.dcm", StudyInstanceUID="1.2.3.9")
    assert "holds 2 studies, expected one" in refusal(first, two, tmp_path, capsys)


@pytest.mark.parametrize("frame", ["", "1.2.3.9"])
def test_without_a_common_frame_of_reference_series_are_registered_and_it_is_said(first, two, tmp_path, caplog, frame):
    for path in (two / "T1").iterdir():
        change(path, FrameOfReferenceUID=frame)
    assert dicom(first, two, tmp_path / "out", "--reproducible") == 0
    (said,) = [line for line in caplog.messages if "is not known: they are registered" in line]
    assert ("has no FrameOfReferenceUID" if not frame else "different frames of reference") in said
    caplog.clear()
    assert dicom(first, two, tmp_path / "asked", "--reproducible", "--register", "rigid") == 0
    assert "they are registered" not in caplog.text
    for path in (tmp_path / "out" / "SYNTHETIC_T2").iterdir():
        assert path.read_bytes() == (tmp_path / "asked" / "SYNTHETIC_T2" / path.name).read_bytes()


def test_two_frames_of_reference_are_not_left_where_they_are(first, two, tmp_path, capsys):
    for path in (two / "T1").iterdir():
        change(path, FrameOfReferenceUID="1.2.3.9")
    assert "different frames of reference" in refusal(first, two, tmp_path, capsys, "--register", "none")


def test_a_folder_without_mr_is_refused(first, tmp_path, capsys):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "notes.txt").write_text("no DICOM")
    assert "holds no MR image in DICOM" in refusal(first, tmp_path / "study", tmp_path, capsys)
    assert "is no folder" in refusal(first, tmp_path / "none", tmp_path, capsys)


def test_a_target_that_the_weights_do_not_make_is_refused(first, two, tmp_path, capsys):
    assert "synthesises T2 from T1,FLAIR; asked for was PD" in refusal(first, two, tmp_path, capsys, "--target", "PD")


def test_a_site_that_the_weights_do_not_know_is_refused(first, two, tmp_path, capsys):
    (said,) = refusal(first, two, tmp_path, capsys, "--site", "nowhere").strip().splitlines()
    assert said == "dicom: agi_net tells no sites apart: leave the site out"


def test_a_uid_root_that_is_none_is_refused(first, two, tmp_path, capsys):
    assert "the UID root must be numbers with dots" in refusal(first, two, tmp_path, capsys, "--uid-root", "1.x")


def header(description: str, **more: object) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.SeriesDescription = description
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("contrast", "dataset"),
    [
        ("T1", header("t1_mprage_sag")),
        ("T1C", header("T1 SE TRA +C")),
        ("T1C", header("t1_mprage_sag", ContrastBolusAgent="Gadovist")),
        ("T2", header("T2 TSE TRA", ScanningSequence="SE")),
        (None, header("T2 EG TRA", ScanningSequence="GR")),
        (None, header("t2star")),
        ("FLAIR", header("AX T2 FLAIR")),
        ("PD", header("PD+T2 TSE", EchoTime=14)),
        ("T2", header("PD+T2 TSE", EchoTime=96)),
        ("DWI", header("ep2d_diff", SequenceName="*ep_b1000t")),
        (None, header("ep2d_diff", SequenceName="*ep_b0")),
        ("ADC", header("ep2d_diff", ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"])),
        (None, header("AAHScout T1")),
        ("T1", header("AX", ScanningSequence="SE", EchoTime=10, RepetitionTime=500)),
        ("T2", header("AX", ScanningSequence="SE", EchoTime=100, RepetitionTime=4000)),
        ("FLAIR", header("AX", ScanningSequence=["SE", "IR"], EchoTime=100, RepetitionTime=9000, InversionTime=2500)),
        (None, header("AX")),
    ],
)
def test_the_contrast_is_told_by_description_and_sequence(contrast, dataset):
    assert contrast_of(dataset) == contrast


@pytest.mark.long
def test_a_real_study_in_different_planes_goes_through(real_data, tmp_path):
    study = real_data / "dicom_volunteer"
    if not study.is_dir():
        pytest.skip(f"there is no {study}")
    sources = ["FLAIR", "T1", "DWI", "ADC"]
    weights = smallest_weights(BUNDLES[0], tmp_path, sources=sources, target=["T2"])
    assert dicom(weights, study, tmp_path / "out", "--reference", "FLAIR") == 0
    there = images(tmp_path / "out" / "SYNTHETIC_T2")
    reference = pydicom.dcmread(min((study / "06_T2_FLAIR_TRA").iterdir()))
    assert len(there) == 30
    assert (there[0].Rows, there[0].Columns) == (reference.Rows, reference.Columns)
    assert there[0].FrameOfReferenceUID == reference.FrameOfReferenceUID
    assert there[0].PatientID == reference.PatientID
    chosen = choose(read_study(study), sources, {})
    assert [series.number for series in chosen.values()] == ["6", "5", "9", "10"]
    assert chosen["DWI"].b == 1000
