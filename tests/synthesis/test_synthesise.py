"""monai-ext synthesise as a person types it: what is made, of what and by whom, and each mistake in one line."""

import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_study import write_series, write_study
from installed_weights import collection, say_more, scan

from monai_ext import Synthesiser, catalogue, synthesise
from monai_ext.__main__ import main
from monai_ext.data.phantoms.patients import make_phantom
from monai_ext.data.phantoms.sites import SITES
from monai_ext.files import sha256
from monai_ext.inference.alike import Alike
from monai_ext.inference.checks import Finding, Findings, Look, Pair
from monai_ext.inference.recogniser import POSES, Seen
from monai_ext.synthesis import batch, looking
from monai_ext.synthesis.batch import summary
from monai_ext.synthesis.bundle import BundleSynthesiser


def typed(*words: object) -> int:
    return main(["synthesise", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which the command ends."""
    capsys.readouterr()
    assert typed(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("synthesise: ")
    return lines[0]


def die(*_: object, **__: object) -> None:
    """As a process that the system kills."""
    os._exit(1)


def record(image: Path) -> dict:
    return json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())


@pytest.mark.usefixtures("installed")
class TestOnePatient:
    def test_two_files_and_a_target_are_enough(self, patient, tmp_path, capsys):
        assert typed(patient / "T1.nii.gz", patient / "T2.nii.gz", "--target", "FLAIR", "-o", tmp_path / "out") == 0
        image = tmp_path / "out" / "patient" / "FLAIR_synthetic.nii.gz"
        said = record(image)
        assert (said["target"], said["bundle"], list(said["sources"])) == ("FLAIR", "agi_net", ["T1", "T2"])
        made, source = nib.load(image), nib.load(patient / "T1.nii.gz")
        assert made.shape == source.shape
        np.testing.assert_array_equal(made.affine, source.affine)
        assert np.asarray(made.dataobj).max() > 0
        assert image.with_name("FLAIR_synthetic.png").is_file()
        printed = capsys.readouterr().out
        assert "FLAIR by agi_net" in printed
        assert str(image) in printed

    def test_what_is_there_is_kept_and_said_and_made_anew_when_asked(self, patient, tmp_path, capsys):
        words = (patient / "T1.nii.gz", patient / "T2.nii.gz", "--target", "FLAIR", "-o", tmp_path / "out")
        image = tmp_path / "out" / "patient" / "FLAIR_synthetic.nii.gz"
        assert typed(*words) == 0
        first = image.stat().st_mtime_ns
        capsys.readouterr()
        assert typed(*words) == 0
        assert image.stat().st_mtime_ns == first
        assert "kept" in capsys.readouterr().out
        assert typed(*words, "--overwrite") == 0
        assert image.stat().st_mtime_ns > first

    def test_names_that_do_not_tell_are_told_and_the_targets_may_be_several(self, tmp_path):
        one, two = scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b.nii.gz", seed=1)
        assert typed(f"T1={one}", f"t2w={two}", "--target", "FLAIR,T1C", "-o", tmp_path / "out") == 0
        folder = tmp_path / "out" / tmp_path.name
        makers = {t: record(folder / f"{t}_synthetic.nii.gz")["bundle"] for t in ("FLAIR", "T1C")}
        assert makers == {"FLAIR": "agi_net", "T1C": "pmm_synth"}
        assert record(folder / "T1C_synthetic.nii.gz")["sources"]["T2"]["sha256"] == sha256(two)

    def test_what_no_fixed_task_fits_is_made_of_whichever_are_there(self, patient, tmp_path):
        assert typed(patient / "T1.nii.gz", "--target", "FLAIR", "-o", tmp_path / "out") == 0
        assert record(tmp_path / "out" / "patient" / "FLAIR_synthetic.nii.gz")["bundle"] == "pmm_synth"

    def test_a_method_can_be_asked_for(self, patient, tmp_path):
        words = (patient / "T1.nii.gz", patient / "T2.nii.gz", "--target", "FLAIR", "-o", tmp_path / "out")
        assert typed(*words, "--method", "pmm_synth", "--threads", 1, "--device", "cpu") == 0
        assert record(tmp_path / "out" / "patient" / "FLAIR_synthetic.nii.gz")["bundle"] == "pmm_synth"

    def test_weights_of_ones_own_are_taken_by_what_their_json_says(self, both, patient, tmp_path):
        mine = tmp_path / "mine"
        shutil.copytree(both / "agi_net" / "models", mine)
        shutil.copy(mine / "model.pt", mine / "best.pt")
        shutil.copy(mine / "model.json", mine / "best.json")
        assert typed(patient, "--target", "missing", "--weights", mine / "best.pt", "-o", tmp_path / "out") == 0
        made = list((tmp_path / "out").rglob("*.nii.gz"))
        assert [path.name for path in made] == ["FLAIR_synthetic.nii.gz"]
        assert record(made[0])["weights_sha256"] == sha256(mine / "best.pt")


@pytest.mark.usefixtures("installed")
class TestManyPatients:
    def test_each_gets_what_is_missing_and_the_broken_are_named(self, tmp_path, capsys):
        root = tmp_path / "patients"
        for name, contrasts in {"p1": ("T1", "T2"), "p2": ("T1", "FLAIR"), "p3": ("T1", "T2")}.items():
            for seed, contrast in enumerate(contrasts):
                scan(root / name / f"{contrast}.nii.gz", seed=seed)
        (root / "p3" / "T2.nii.gz").write_bytes(b"not an image")
        assert typed(root, "--target", "FLAIR", "-o", tmp_path / "out") == 1
        printed = capsys.readouterr()
        assert "1 of 3 subjects could not be synthesised" in printed.err
        assert "p3" in printed.err.partition("could not be")[2]
        assert "p2: has FLAIR" in printed.out + printed.err
        made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.nii.gz"))
        assert made == ["p1/FLAIR_synthetic.nii.gz"]

    def test_whatever_stops_one_the_others_are_done(self, tmp_path, capsys):
        root, out = tmp_path / "patients", tmp_path / "out"
        for name in ("p1", "p2", "p3"):
            for seed, contrast in enumerate(("T1", "T2")):
                scan(root / name / f"{contrast}.nii.gz", seed=seed)
        plain = gzip.decompress((root / "p1" / "T2.nii.gz").read_bytes())
        unknown = plain[:70] + (83).to_bytes(2, "little") + plain[72:]
        (root / "p1" / "T2.nii.gz").write_bytes(gzip.compress(unknown))
        out.mkdir()
        (out / "p2").write_text("a file in the way")
        assert typed(root, "--target", "FLAIR", "-o", out) == 1
        said = capsys.readouterr().err.partition("2 of 3 subjects could not be synthesised")[2]
        assert "its voxels are of kind 83" in said
        assert "File exists" in said or "Not a directory" in said
        assert (out / "p3" / "FLAIR_synthetic.nii.gz").is_file()

    @pytest.mark.long  # new processes
    def test_several_at_once_give_what_one_after_another_gives(self, both, tmp_path, capsys):
        root = tmp_path / "patients"
        for seed, name in enumerate(("p1", "p2", "p3")):
            for contrast in ("T1", "T2"):
                scan(root / name / f"{contrast}.nii.gz", seed=seed + len(contrast + name))
        (root / "p3" / "T2.nii.gz").write_bytes(b"not an image")
        words = (root, "--target", "FLAIR", "--weights", both / "agi_net" / "models" / "model.pt", "--trust-names")
        images = {}
        for jobs in (1, 2):
            out = tmp_path / f"out{jobs}"
            assert typed(*words, "-o", out, "--jobs", jobs) == 1
            printed = capsys.readouterr()
            assert "1 of 3 subjects could not be synthesised" in printed.err
            assert printed.out.count("FLAIR by agi_net") == 2
            images[jobs] = {path.parent.name: nib.load(path).get_fdata() for path in out.rglob("*.nii.gz")}
        assert images[1].keys() == images[2].keys() == {"p1", "p2"}
        for name, image in images[1].items():
            np.testing.assert_allclose(images[2][name], image, atol=1e-5)

    @pytest.mark.long  # new processes
    def test_a_process_that_dies_is_told_and_not_waited_for(self, both, tmp_path, capsys, monkeypatch):
        for name in ("p1", "p2"):
            scan(tmp_path / "patients" / name / "T1.nii.gz")
        monkeypatch.setattr(batch, "_end_here", die)
        words = (tmp_path / "patients", "--target", "FLAIR", "--weights", both / "pmm_synth" / "models" / "model.pt")
        assert typed(*words, "-o", tmp_path / "out", "--jobs", 2) == 1
        said = capsys.readouterr().err
        assert "2 of 2 subjects could not be synthesised" in said
        assert said.count("its process was killed, alone too: most likely it needs more memory than there is") == 2

    def test_a_bids_tree_and_a_datalist_are_recognised(self, tmp_path):
        root = tmp_path / "bids"
        for seed, suffix in enumerate(("T1w", "T2w")):
            scan(root / "sub-01" / "anat" / f"sub-01_{suffix}.nii.gz", seed=seed)
        assert typed(root, "--target", "FLAIR", "-o", tmp_path / "out") == 0
        assert (tmp_path / "out" / "sub-01" / "FLAIR_synthetic.nii.gz").is_file()
        assert main(["index", "--root", str(root), "--out", str(root / "list.json"), "--split", "1/0/0"]) == 0
        assert typed(root / "list.json", "--target", "FLAIR", "-o", tmp_path / "again") == 0
        assert (tmp_path / "again" / "sub-01" / "FLAIR_synthetic.nii.gz").is_file()
        files = sorted(root.rglob("*.nii.gz"))
        assert typed(*files, "--target", "FLAIR", "-o", tmp_path / "files") == 0
        assert (tmp_path / "files" / "sub-01" / "FLAIR_synthetic.nii.gz").is_file()


@pytest.mark.usefixtures("installed")
class TestStudies:
    def test_a_study_is_recognised_by_its_content(self, tmp_path, capsys):
        study = write_study(tmp_path / "study", "T1", "T2")
        for number, path in enumerate(sorted(study.rglob("*.dcm"))):
            path.rename(path.with_name(f"IM{number}"))  # as many a disc from a hospital has them
        assert typed(study, "--target", "FLAIR", "-o", tmp_path / "out") == 0
        image = tmp_path / "out" / "FLAIR_synthetic.nii.gz"
        assert record(image)["bundle"] == "agi_net"
        series = list((tmp_path / "out" / "SYNTHETIC_FLAIR").iterdir())
        assert len(series) == nib.load(image).shape[2] == 10
        assert str(image) in capsys.readouterr().out
        line = refused(capsys, study, "--target", "FLAIR", "-o", tmp_path / "out")
        assert "is there already" in line
        shutil.rmtree(tmp_path / "out" / "SYNTHETIC_FLAIR")
        assert f"{image} is there already" in refused(capsys, study, "--target", "FLAIR", "-o", tmp_path / "out")
        assert typed(study, "--target", "FLAIR", "-o", tmp_path / "out", "--overwrite") == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "SYNTHETIC_FLAIR").iterdir()}
        assert typed(study, "--target", "FLAIR", "-o", tmp_path / "out", "--overwrite") == 0
        after = {path.name: path.read_bytes() for path in (tmp_path / "out" / "SYNTHETIC_FLAIR").iterdir()}
        assert before.keys() == after.keys()
        assert before != after  # a series anew has UIDs of its own
        assert not list((tmp_path / "out").glob(".partial*"))

    def test_series_of_two_frames_of_reference_are_registered_unless_asked_otherwise(self, tmp_path, capsys, caplog):
        study = write_study(tmp_path / "study", "T1")
        write_series(study / "T2", number=2, SeriesDescription="T2 TSE TRA", FrameOfReferenceUID="1.2.3.9")
        words = (study, "--target", "FLAIR", "-o", tmp_path / "out")
        assert "different frames of reference" in refused(capsys, *words, "--register", "none")
        assert not any(tmp_path.glob("out/*"))
        assert typed(*words) == 0
        assert "they are registered" in caplog.text
        sources = record(tmp_path / "out" / "FLAIR_synthetic.nii.gz")["sources"].values()
        assert any("registration" in source["placed_by"] for source in sources)

    def test_the_dicom_command_needs_no_more_than_a_target(self, tmp_path, capsys):
        study = write_study(tmp_path / "study", "T1", "T2")
        words = ["dicom", "--study", str(study), "--out", str(tmp_path / "out")]
        assert main(words) == 2
        assert "--target" in capsys.readouterr().err
        assert main([*words, "--target", "FLAIR"]) == 0
        (series,) = (tmp_path / "out").iterdir()
        (first, *_) = sorted(series.iterdir())
        assert "agi_net" in str(pydicom.dcmread(first))

    def test_two_patients_are_refused(self, tmp_path, capsys):
        study = write_study(tmp_path / "study", "T1")
        write_series(study / "T2", number=2, SeriesDescription="T2 TSE TRA", PatientID="N1")
        line = refused(capsys, study, "--target", "FLAIR", "-o", tmp_path / "out")
        assert "holds 2 patients" in line
        assert "give a folder of one" in line

    def test_a_study_and_images_in_one_folder_are_refused(self, patient, tmp_path, capsys):
        write_study(patient, "T1")
        line = refused(capsys, patient, "--target", "FLAIR", "-o", tmp_path / "out")
        assert "DICOM" in line
        assert "T1=FILE" in line


@pytest.mark.usefixtures("installed")
class TestMistakes:
    """Each is one line that says what to type."""

    def test_a_target_that_is_there(self, patient, tmp_path, capsys):
        line = refused(capsys, patient / "T1.nii.gz", patient / "T2.nii.gz", "--target", "T2", "-o", tmp_path / "out")
        assert "T2 is there already" in line
        assert "--target" in line

    def test_a_folder_with_nothing_to_recognise(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "notes.txt").write_text("nothing")
        line = refused(capsys, tmp_path / "empty", "--target", "FLAIR", "-o", tmp_path / "out")
        assert "T1=FILE" in line

    def test_two_files_of_one_contrast(self, patient, tmp_path, capsys):
        other = scan(tmp_path / "other" / "t1_mprage.nii.gz")
        line = refused(capsys, patient / "T1.nii.gz", other, "--target", "FLAIR", "-o", tmp_path / "out")
        assert "both T1" in line
        assert f"T2={other}" in line

    def test_a_name_that_does_not_tell(self, tmp_path, capsys):
        one = tmp_path / "scan001.nii.gz"
        nib.save(nib.Nifti1Image(np.ones((16, 16, 16), np.float32), np.eye(4)), one)  # nothing is seen of it either
        assert f"T1={one}" in refused(capsys, one, "--target", "FLAIR", "-o", tmp_path / "out")

    def test_names_that_do_not_tell_are_told_by_what_is_seen(self, tmp_path, capsys):
        made = make_phantom(SITES["healthy"], index=6, spacing=(3.0, 3.0, 3.0), contrasts=("T1", "T2"))
        one, other = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
        for path, name in ((one, "T2"), (other, "T1")):
            nib.save(nib.Nifti1Image(made.images[name].array, made.images[name].affine), path)
        words = ("--target", "FLAIR", "-o", tmp_path / "out")
        line = refused(capsys, one, other, *words)
        assert "T1 or T1C (" in line
        assert line.endswith(f"say it, as T2={one} T1={other}")
        assert refused(capsys, f"T1={other}", one, *words).endswith(f"say it, as T2={one}")
        assert refused(capsys, one, one, *words).endswith(f"say it, as T1={one}")  # who would have two of a T2?

    def test_a_word_that_names_no_contrast(self, tmp_path, capsys):
        one = scan(tmp_path / "a.nii.gz")
        assert "T1=a.nii.gz" in refused(capsys, f"T9={one}", "--target", "FLAIR", "-o", tmp_path / "out")

    def test_a_file_that_is_not_there(self, patient, tmp_path, capsys):
        line = refused(capsys, patient / "T11.nii.gz", "--target", "FLAIR", "-o", tmp_path / "out")
        assert "is not there; did you mean T1.nii.gz" in line

    def test_a_method_that_cannot(self, patient, tmp_path, capsys):
        words = (patient / "T1.nii.gz", "--target", "FLAIR", "-o", tmp_path / "out", "--method", "agi_net")
        line = refused(capsys, *words)
        assert "agi_net makes FLAIR of T1 and T2" in line
        assert "pmm_synth can" in line

    def test_a_contrast_that_nobody_makes(self, patient, tmp_path, capsys):
        words = (patient / "T1.nii.gz", patient / "T2.nii.gz", "--target", "PD", "-o", tmp_path / "out")
        assert "PD cannot be made of T1 and T2" in refused(capsys, *words)

    @pytest.mark.parametrize(
        ("option", "value", "says"),
        [
            ("--method", "agi-net", "did you mean agi_net"),
            ("--method", "fd_gan", "monai-ext train fd_gan"),
            ("--site", "nowhere", "leave --site out"),
            ("--device", "gpu", "cpu, cuda"),
            ("--threads", "0", "at least 1"),
            ("--jobs", "0", "at least 1"),
            ("--weights", "nothing.pt", "--weights"),
            ("--series", "T1=5", "T1=FILE"),
        ],
    )
    def test_an_option_that_may_not_be(self, option, value, says, patient, tmp_path, capsys):
        words = (patient / "T1.nii.gz", patient / "T2.nii.gz", "--target", "FLAIR", "-o", tmp_path / "out")
        assert says in refused(capsys, *words, option, value)

    def test_no_weights(self, patient, tmp_path, capsys, monkeypatch):
        bare = collection(tmp_path / "bare")
        monkeypatch.setattr(catalogue, "bundles_folder", lambda: bare)
        line = refused(capsys, patient, "--target", "FLAIR", "-o", tmp_path / "out")
        assert "no weights are installed" in line
        assert "--weights FILE" in line


@pytest.mark.usefixtures("installed")
class TestLooking:
    @pytest.fixture
    def swapped(self, installed, monkeypatch):  # noqa: ARG002 - whose eyes see nothing
        """The eyes see that T1 and T2 are exchanged."""
        seen = Finding("contrast", "refuse", ("T1",), "T1 looks like T2 (99% sure): name it T2=FILE")
        monkeypatch.setattr(looking, "look", lambda _: Findings({}, (), (seen,)))

    @pytest.mark.usefixtures("swapped")
    def test_what_is_seen_to_be_another_contrast_is_refused_unless_names_are_trusted(self, patient, tmp_path, capsys):
        words = (patient / "T1.nii.gz", patient / "T2.nii.gz", "--target", "FLAIR", "-o", tmp_path / "out")
        assert "T1 looks like T2 (99% sure)" in refused(capsys, *words)
        assert not (tmp_path / "out").exists()
        assert typed(*words, "--trust-names") == 0
        (finding,) = record(tmp_path / "out" / "patient" / "FLAIR_synthetic.nii.gz")["checks"]["findings"]
        assert finding["kind"] == "contrast"

    @pytest.mark.usefixtures("swapped")
    @pytest.mark.parametrize("command", ["dicom", "synthesise"])
    def test_a_studys_series_are_looked_at_too_and_say_what_was_seen(self, tmp_path, capsys, command):
        study = write_study(tmp_path / "study", "T1", "T2")
        first = ["--study", study, "--out"] if command == "dicom" else [study, "-o"]
        words = [command, *map(str, first), str(tmp_path / "out"), "--target", "FLAIR"]
        assert main(words) == 2
        assert "T1 looks like T2 (99% sure)" in capsys.readouterr().err
        assert not [*tmp_path.glob("out/*")]
        assert main([*words, "--trust-names"]) == 0
        image = pydicom.dcmread(next((tmp_path / "out" / "SYNTHETIC_FLAIR").iterdir()))
        assert image.ImageComments.startswith("This image is SYNTHETIC")
        assert "Of its sources: T1 looks like T2 (99% sure)" in image.ImageComments

    @pytest.mark.parametrize("command", ["dicom", "synthesise"])
    @pytest.mark.parametrize(("skull", "bundle"), [(0.99, "pmm_synth"), (0.01, "agi_net")])
    def test_a_studys_method_is_chosen_by_whether_the_skull_is_seen(
        self, tmp_path, monkeypatch, command, skull, bundle
    ):
        folder = collection(tmp_path / "two", "agi_net", "pmm_synth")
        for name, head, brain in (("agi_net", 18.0, 20.0), ("pmm_synth", 19.0, 19.0)):
            stated = {kind: {"cases": 3, "psnr_fitted": dB} for kind, dB in (("head", head), ("brain", brain))}
            say_more(folder / name / "models" / "model.pt", quality={"T1,T2:FLAIR": stated})
        monkeypatch.setattr(catalogue, "bundles_folder", lambda: folder)
        seen = Seen(contrasts={"T1": 1.0}, skull=skull, poses=np.eye(len(POSES))[0], distance=0.0)
        looks: list[set[str]] = []

        def look(images):
            looks.append(set(images))
            return Findings({name: Look(seen, (6.0, 6.0, 5.0)) for name in images}, ())

        monkeypatch.setattr(looking, "look", look)
        study = write_study(tmp_path / "study", "T1", "T2")
        first = ["--study", study, "--out"] if command == "dicom" else [study, "-o"]
        assert main([command, *map(str, first), str(tmp_path / "out"), "--target", "FLAIR"]) == 0
        image = pydicom.dcmread(next((tmp_path / "out" / "SYNTHETIC_FLAIR").iterdir()))
        assert f"({bundle} " in image.SeriesDescription
        assert looks == [{"T1", "T2"}]  # once: what was seen is handed on

    @pytest.mark.usefixtures("swapped")
    def test_a_host_that_synthesises_by_itself_looks_too(self, both, patient, tmp_path):
        serves = BundleSynthesiser(both / "agi_net")
        files = {contrast: patient / f"{contrast}.nii.gz" for contrast in ("T1", "T2")}
        with pytest.raises(ValueError, match="T1 looks like T2"):
            serves(files, tmp_path / "out")
        results = serves(files, tmp_path / "out", trust_names=True)
        assert list(results) == ["FLAIR"]
        assert record(results["FLAIR"])["checks"]["findings"][0]["kind"] == "contrast"

    @pytest.mark.parametrize(("asked", "done"), [({}, "rigid"), ({"register": "none"}, "none")])
    def test_what_is_seen_to_lie_apart_is_registered_unless_asked_otherwise(self, both, patient, tmp_path, asked, done):
        apart = Alike(here=0.1, best=0.9, mirrored=0.2, shift=(9.0, 0.0, 0.0))
        looks = {contrast: Look(None, (5.0, 5.0, 6.0)) for contrast in ("T1", "T2")}
        findings = Findings(looks, (Pair(("T1", "T2"), True, apart),))
        assert findings.registration
        serves = BundleSynthesiser(both / "agi_net")
        files = {contrast: patient / f"{contrast}.nii.gz" for contrast in ("T1", "T2")}
        results = serves(files, tmp_path / "out", findings=findings, **asked)
        assert record(results["FLAIR"])["preset"]["register"] == done


@pytest.mark.usefixtures("installed")
class TestPython:
    def test_files_and_images_in_memory_give_one_image_that_says_what_it_is(self, patient):
        files = {contrast: patient / f"{contrast}.nii.gz" for contrast in ("T1", "T2")}
        of_files = synthesise(files, "FLAIR")
        of_images = synthesise({"t1w": nib.load(files["T1"]), "T2": nib.load(files["T2"])}, "FLAIR")
        np.testing.assert_allclose(of_images.get_fdata(), of_files.get_fdata(), atol=1e-5)
        np.testing.assert_array_equal(of_files.affine, nib.load(files["T1"]).affine)
        assert (of_files.extra["bundle"], of_files.extra["synthetic"]) == ("agi_net", True)

    def test_a_network_is_built_once_for_many_patients(self, patient):
        makes = Synthesiser(method="agi_net")
        (method,) = makes.methods
        makes({"T1": patient / "T1.nii.gz", "T2": patient / "T2.nii.gz"}, "FLAIR")
        first = makes.built(method).network
        makes({"T1": patient / "T2.nii.gz", "T2": patient / "T1.nii.gz"}, "FLAIR")
        assert makes.built(method).network is first


def test_who_was_moved_and_by_how_much_is_said(tmp_path):
    sources = {
        "T1": {"placed_by": "its grid", "moved_mm": 0.0},
        "T2": {"placed_by": "rigid registration", "moved_mm": 3.96},
    }
    about = {
        "subject": "p1",
        "target": "FLAIR",
        "bundle": "agi_net",
        "version": "1",
        "reference": "T1",
        "sources": sources,
    }
    (tmp_path / "FLAIR_synthetic.json").write_text(json.dumps(about))
    line = summary(tmp_path / "FLAIR_synthetic.nii.gz")
    assert "from T1 and T2, registered to T1: T2 4.0 mm" in line
