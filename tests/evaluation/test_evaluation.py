"""Evaluation: scikit-image's numbers in the tables, every subject done or named, results whole and kept."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from monai_ext.__main__ import main
from monai_ext.data.datalist import Subject, read_datalist
from monai_ext.data.prepared import SLOPE
from monai_ext.data.slices import SliceDataset
from monai_ext.data.volumes import Volume, read_volume, write_volume
from monai_ext.evaluation.evaluation import Evaluation, PreparedVolumes
from monai_ext.evaluation.run_folder import CASES, MATRIX, SLICE_COLUMNS, SUBJECT_COLUMNS, whole_run
from monai_ext.inference.inferers import SlicesInferer

SHAPE = (20, 24, 8)
AFFINE = np.array([[1.5, 0, 0, -12], [0, 1.5, 0, -15], [0, 0, 3, -9], [0, 0, 0, 1]])
ABOUT: dict[str, Any] = {
    "bundle": "mean",
    "name": "Mean",
    "version": "0.0.1",
    "split": "test",
    "datalist_sha256": "0" * 64,
    "weights": {"file": "model.pt", "sha256": "1" * 64},
    "parameters": 0,
    "amp": False,
    "device": torch.device("cpu"),
    "software": {"torch": torch.__version__},
}


def make_subject(root: Path, name: str, contrasts: str = "T1 T2 PD", *, dataset: str = "toy") -> Subject:
    """A prepared subject: a textured ball that all contrasts share, with an empty slice at either end."""
    rng = np.random.default_rng(sum(name.encode()))
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    inside = (i**2 + j**2 < 0.8) & (abs(k) < 0.9)
    shared = gaussian_filter(rng.random(SHAPE), 1)
    images = {}
    (root / name).mkdir(parents=True)
    for contrast in contrasts.split():
        texture = 0.7 * shared + 0.3 * gaussian_filter(rng.random(SHAPE), 1)
        texture = 0.2 + 0.8 * (texture - texture.min()) / np.ptp(texture)
        images[contrast] = root / name / f"{contrast}.nii"
        write_volume(images[contrast], Volume(np.where(inside, texture, 0), AFFINE), dtype=np.uint16, slope=SLOPE)
    write_volume(root / name / "mask.nii", Volume(inside & (i**2 + j**2 < 0.5), AFFINE), dtype=np.uint8)
    return Subject(subject=name, dataset=dataset, images=images)


def mean_of_sources(image: Tensor) -> Tensor:
    return image.mean(0, keepdim=True)


def evaluation(root: Path, *, names: str = "a b c", out: str = "run", **options: Any) -> Evaluation:
    folder = root / "prepared"
    subjects = [
        make_subject(folder, name) if not (folder / name).exists() else existing(folder, name) for name in names.split()
    ]
    defaults: dict[str, Any] = {"sources": ["T1", "T2"], "target": ["PD"]}
    contrasts = {name: options.pop(name, value) for name, value in defaults.items()}
    data = options.pop("data", None) or PreparedVolumes(subjects, **contrasts)
    options = {"predictor": mean_of_sources, "about": ABOUT, **options}
    return Evaluation(data=data, output_dir=root / out, **contrasts, **options)


def existing(folder: Path, name: str) -> Subject:
    files = [path for path in sorted((folder / name).glob("*.nii")) if path.stem != "mask"]
    return Subject(subject=name, dataset="toy", images={path.stem: path for path in files})


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_of(run: Path, **wanted: str) -> list[dict[str, str]]:
    return [row for row in table(run / "subjects.csv") if all(row[key] == value for key, value in wanted.items())]


def image_of(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata(dtype=np.float32)


def test_the_tables_hold_scikit_image_s_numbers(tmp_path: Path) -> None:
    evaluation(tmp_path).run()
    run, case = tmp_path / "run", tmp_path / "prepared" / "b"
    truth = image_of(case / "PD.nii")
    prediction = (image_of(case / "T1.nii") + image_of(case / "T2.nii")) / 2
    inside = image_of(case / "mask.nii") > 0

    def ssim(k: int) -> Any:
        return structural_similarity(
            truth[:, :, k], prediction[:, :, k], data_range=1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip

    slices = [row for row in table(run / "slices.csv") if row["subject"] == "b"]
    assert [int(row["slice"]) for row in slices] == [1, 2, 3, 4, 5, 6]
    for row in slices:
        k = int(row["slice"])
        t, p = truth[:, :, k], prediction[:, :, k]
        assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(t, p, data_range=1), abs=1e-3)
        assert float(row["ssim"]) == pytest.approx(ssim(k)[0], abs=1e-5)
        assert float(row["nrmse"]) == pytest.approx(normalized_root_mse(t, p), rel=1e-4)

    by_slice, volume, brain = rows_of(run, subject="b")
    assert [row["region"] for row in (by_slice, volume, brain)] == ["slice", "volume", "brain"]
    for name in ("psnr", "ssim", "mae", "nrmse", "nmse"):
        assert float(by_slice[name]) == pytest.approx(np.mean([float(row[name]) for row in slices]), rel=1e-5)
    assert by_slice["stripes"] == ""
    assert float(volume["psnr"]) == pytest.approx(peak_signal_noise_ratio(truth, prediction, data_range=1), abs=1e-3)
    assert float(volume["ssim"]) == pytest.approx(np.mean([ssim(k)[0] for k in range(SHAPE[2])]), abs=1e-5)
    assert float(brain["psnr"]) == pytest.approx(
        peak_signal_noise_ratio(truth[inside], prediction[inside], data_range=1), abs=1e-3
    )
    assert float(brain["mae"]) == pytest.approx(np.abs(truth - prediction)[inside].mean(), rel=1e-4)
    maps = np.stack([ssim(k)[1] for k in range(SHAPE[2])], axis=2)[5:-5, 5:-5]
    assert float(brain["ssim"]) == pytest.approx(maps[inside[5:-5, 5:-5]].mean(), abs=1e-5)
    assert float(volume["stripes"]) >= 0


def test_run_json_says_what_was_evaluated_and_how(tmp_path: Path) -> None:
    perturbations = [{"kind": "translate", "contrast": "t2w", "levels": [0, 1]}]
    inferer = SlicesInferer(amp=False)

    def predictor(image: torch.Tensor) -> torch.Tensor:
        return inferer(image[None], lambda x: x.mean(1, keepdim=True))[0]

    evaluation(tmp_path, perturbations=perturbations, seed=3, predictor=predictor, inferer=inferer).run()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["engines"] == [{"name": "torch", "version": torch.__version__, "precision": "float32"}]
    for key in set(ABOUT) - {"device"}:
        assert record[key] == ABOUT[key]
    assert (record["device"], record["dataset"]) == ("cpu", "toy")
    assert (record["sources"], record["target"]) == (["T1", "T2"], ["PD"])
    assert record["perturbations"] == [
        {"kind": "none", "contrast": "", "levels": [0], "unit": ""},
        {"kind": "translate", "contrast": "T2", "levels": [0, 1], "unit": "px"},
    ]
    protocol = record["protocol"]
    assert (protocol["data_range"], protocol["clipped_to"], protocol["seed"]) == (1.0, [0, 1], 3)
    assert (protocol["ssim"]["window"], protocol["ssim"]["sigma"]) == (11, 1.5)
    assert protocol["slices"] == "nonempty"
    assert set(protocol["regions"]) == {"slice", "volume", "brain"}
    assert (record["subjects"], record["failed"]) == (3, [])


@pytest.mark.parametrize("site", [None, "none", "glioma"])
def test_run_json_and_sidecars_name_the_site_that_was_asked_for(tmp_path: Path, site: str | None) -> None:
    evaluation(tmp_path, names="a", about={**ABOUT, "site": site}).run()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["site"] == site
    assert json.loads((tmp_path / "run" / "volumes" / "a" / "PD_synthetic.json").read_text())["site"] == site


def test_perturbed_rows_stand_beside_the_unharmed_ones(tmp_path: Path) -> None:
    perturbations = [{"kind": "translate", "contrast": "T2", "levels": [0, 1, 3]}, {"kind": "noise", "contrast": "T1"}]
    evaluation(tmp_path, perturbations=perturbations).run()
    rows = rows_of(tmp_path / "run", subject="a", region="brain")
    found = [(row["perturbation"], row["contrast"], row["level"]) for row in rows]
    noise = [("noise", "T1", level) for level in ("0", "0.02", "0.04", "0.06", "0.08", "0.1")]
    assert found == [("none", "", "0"), *(("translate", "T2", level) for level in "013"), *noise]
    psnr = [float(row["psnr"]) for row in rows]
    assert psnr[0] == psnr[1] == psnr[4], "level 0 is the unharmed source"
    assert psnr[1] > psnr[2] > psnr[3]
    assert psnr[4] > psnr[6] > psnr[9]
    slices = table(tmp_path / "run" / "slices.csv")
    assert len(slices) == 3 * 6 * 10


def test_an_evaluation_repeats_itself(tmp_path: Path) -> None:
    perturbations = [{"kind": kind, "contrast": "T2", "levels": [2]} for kind in ("translate", "rotate", "motion")]
    for out in ("one", "two"):
        evaluation(tmp_path, perturbations=perturbations, out=out).run()
    for name in ("subjects.csv", "slices.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    evaluation(tmp_path, perturbations=perturbations, out="other", seed=1).run()
    assert (tmp_path / "one" / "subjects.csv").read_bytes() != (tmp_path / "other" / "subjects.csv").read_bytes()


def test_several_targets_have_rows_and_volumes_of_their_own(tmp_path: Path) -> None:
    evaluation(
        tmp_path, sources=["T1"], target=["T2", "PD"], predictor=lambda image: torch.cat([image, 0.5 * image])
    ).run()
    run, truth = tmp_path / "run", image_of(tmp_path / "prepared" / "a" / "PD.nii")
    half = 0.5 * image_of(tmp_path / "prepared" / "a" / "T1.nii")
    assert [row["target"] for row in rows_of(run, subject="a", region="volume")] == ["T2", "PD"]
    (row,) = rows_of(run, subject="a", region="volume", target="PD")
    assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(truth, half, data_range=1), abs=1e-3)
    files = {path.name for path in (run / "volumes" / "a").iterdir()}
    pairs = {f"{contrast}_{what}" for contrast in ("T2", "PD") for what in ("truth.nii.gz", "synthetic.nii.gz")}
    assert files == {"T1.nii.gz", *pairs, "T2_synthetic.json", "PD_synthetic.json"}


def test_what_a_subject_lacks_is_zero_as_source_and_left_out_as_target(tmp_path: Path) -> None:
    subjects = [make_subject(tmp_path, "a"), make_subject(tmp_path, "b", "T2 PD"), make_subject(tmp_path, "c", "T1 PD")]
    contrasts: dict[str, Any] = {"sources": ["T1"], "target": ["T2", "PD"]}
    with_b = PreparedVolumes(subjects, **contrasts, allow_missing=True)
    assert [fault.subject for fault in with_b.failures] == ["b"], "it has no source"
    data = PreparedVolumes(subjects[::2], **contrasts, allow_missing=True)
    perturbations = [{"kind": "noise", "contrast": "T1", "levels": [0.1]}]
    evaluation(
        tmp_path, data=data, **contrasts, perturbations=perturbations, predictor=lambda image: torch.cat([image, image])
    ).run()
    rows = rows_of(tmp_path / "run", region="brain", perturbation="none")
    assert [(row["subject"], row["target"]) for row in rows] == [("a", "T2"), ("a", "PD"), ("c", "PD")]
    two = PreparedVolumes(subjects, sources=["T1", "T2"], target=["PD"], allow_missing=True)
    assert not two[1]["image"][0].any()
    evaluation(tmp_path, out="two", data=two, perturbations=perturbations).run()
    harmed = rows_of(tmp_path / "two", region="brain", perturbation="noise")
    assert [row["subject"] for row in harmed] == ["a", "c"], "what is not there cannot be harmed"


def test_the_worst_the_median_and_the_best_keep_their_volumes(tmp_path: Path) -> None:
    evaluation(tmp_path, names="a b c d e").run()
    run = tmp_path / "run"
    ranked = sorted(rows_of(run, region="brain"), key=lambda row: float(row["psnr"]))
    kept = json.loads((run / "run.json").read_text())["kept"]
    assert kept == {"worst": ranked[0]["subject"], "median": ranked[2]["subject"], "best": ranked[4]["subject"]}
    assert {path.name for path in (run / "volumes").iterdir()} == set(kept.values())
    case = run / "volumes" / kept["best"]
    prepared = tmp_path / "prepared" / kept["best"]
    synthetic = nib.load(case / "PD_synthetic.nii.gz")
    np.testing.assert_allclose(synthetic.affine, AFFINE)
    expected = (image_of(prepared / "T1.nii") + image_of(prepared / "T2.nii")) / 2
    np.testing.assert_allclose(synthetic.get_fdata(), expected, atol=1e-5)
    assert bytes(synthetic.header["descrip"]).startswith(b"SYNTHETIC PD by Mean 0.0.1 from T1, T2")
    for name, source in (("T1", "T1"), ("T2", "T2"), ("PD_truth", "PD")):
        stored = read_volume(case / f"{name}.nii.gz")
        np.testing.assert_allclose(stored.array, image_of(prepared / f"{source}.nii"), atol=1e-6)
        np.testing.assert_allclose(stored.affine, AFFINE)
    said = json.loads((case / "PD_synthetic.json").read_text())
    assert said["synthetic"] is True
    assert "SYNTHETIC" in said["warning"]
    assert said["weights"] == ABOUT["weights"]


@pytest.mark.parametrize(("keep", "expected"), [("all", {"a", "b", "c", "d"}), ("none", set())])
def test_all_or_no_volumes_are_kept(tmp_path: Path, keep: str, expected: set[str]) -> None:
    evaluation(tmp_path, names="a b c d", keep=keep).run()
    assert {path.name for path in (tmp_path / "run" / "volumes").iterdir()} == expected


def fails_for(name: str, how: Callable[[Tensor], Tensor]) -> Callable[[Path], Callable[[Tensor], Tensor]]:
    """A predictor that goes wrong on one subject, which it knows by its voxels."""

    def make(root: Path) -> Callable[[Tensor], Tensor]:
        bad = torch.from_numpy(image_of(root / "prepared" / name / "T1.nii"))
        return lambda image: how(image) if torch.allclose(image[0], bad, atol=1e-4) else mean_of_sources(image)

    return make


def no_memory(_: Tensor) -> Tensor:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (no_memory, "out of memory"),
        (lambda image: image, r"must give PD of shape \(1, 20, 24, 8\), got \(2, 20, 24, 8\)"),
        (lambda image: image[:1] / 0, "prediction has .* NaN or infinite"),
    ],
)
def test_a_subject_that_fails_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: Callable[[Tensor], Tensor], reason: str
) -> None:
    wanted = evaluation(tmp_path)
    wanted.predictor = fails_for("b", how)(tmp_path)
    with pytest.raises(ValueError, match="1 of 3 subjects could not be evaluated, the others were"):
        wanted.run()
    captured = capsys.readouterr()
    assert "1 of 3 subjects could not be evaluated:\n  subject  file  reason\n  b " in captured.err
    assert {row["subject"] for row in table(tmp_path / "run" / "subjects.csv")} == {"a", "c"}
    (failed,) = json.loads((tmp_path / "run" / "run.json").read_text())["failed"]
    assert failed["subject"] == "b"
    assert re.search(reason, failed["reason"])


def test_files_that_break_are_their_subjects_faults(tmp_path: Path) -> None:
    first = make_subject(tmp_path / "prepared", "a")
    broken, unmasked, out_of_range = (make_subject(tmp_path / "prepared", name) for name in "bcd")
    (tmp_path / "prepared" / "b" / "PD.nii").write_bytes(b"")
    (tmp_path / "prepared" / "c" / "mask.nii").unlink()
    data = PreparedVolumes([first, broken, unmasked, out_of_range], sources=["T1", "T2"], target=["PD"])
    out_of_range.images["T2"].unlink()
    with pytest.raises(ValueError, match="3 of 4 subjects"):
        evaluation(tmp_path, names="a", data=data).run()
    failed = json.loads((tmp_path / "run" / "run.json").read_text())["failed"]
    assert [fault["subject"] for fault in failed] == ["b", "c", "d"]
    assert "no uncompressed NIfTI" in failed[0]["reason"]
    assert "has no mask.nii" in failed[1]["reason"]
    assert "cannot be read" in failed[2]["reason"]


def test_images_outside_the_data_range_are_refused(tmp_path: Path) -> None:
    item = dict(PreparedVolumes([make_subject(tmp_path, "a")], sources=["T1", "T2"], target=["PD"])[0])
    item["image"] = item["image"] * 400
    with pytest.raises(ValueError, match="none of 1 subjects could be evaluated: nothing was written"):
        evaluation(tmp_path, data=[item]).run()
    assert not (tmp_path / "run").exists()


def test_plain_items_need_not_say_what_is_available(tmp_path: Path) -> None:
    data = PreparedVolumes([make_subject(tmp_path, "a")], sources=["T1", "T2"], target=["PD"])
    item = {key: value for key, value in data[0].items() if key != "available"}
    evaluation(tmp_path, data=[item, {**item, "subject": "b"}]).run()
    assert len(rows_of(tmp_path / "run", region="brain")) == 2


def test_results_are_kept_unless_they_may_be_overwritten(tmp_path: Path) -> None:
    evaluation(tmp_path).run()
    before = (tmp_path / "run" / "subjects.csv").read_bytes()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"run holds results already .*set overwrite"):
        evaluation(tmp_path, predictor=lambda image: image[:1]).run()
    assert (tmp_path / "run" / "subjects.csv").read_bytes() == before
    for name in (MATRIX, CASES):
        (tmp_path / "run" / name).write_text("of the weights before")
    evaluation(tmp_path, names="a b", predictor=lambda image: image[:1], overwrite=True).run()
    assert not any((tmp_path / "run" / name).exists() for name in (MATRIX, CASES))
    assert (tmp_path / "run" / "subjects.csv").read_bytes() != before
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "run" / "volumes").iterdir())) == 2
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "notes.txt", "run.json", "slices.csv", "subjects.csv", "volumes"
    ]  # fmt: skip


def test_an_interrupted_run_leaves_what_was_there(tmp_path: Path) -> None:
    def interrupt(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    evaluation(tmp_path).run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        evaluation(tmp_path, predictor=interrupt, overwrite=True).run()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    with pytest.raises(KeyboardInterrupt):
        evaluation(tmp_path, predictor=interrupt, out="new").run()
    assert not (tmp_path / "new").exists()


def test_a_run_that_leaves_a_result_out_replaces_nothing(tmp_path: Path) -> None:
    evaluation(tmp_path).run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FileNotFoundError), whole_run(tmp_path / "run", overwrite=True) as folder:
        (folder / "run.json").write_text("{}")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_the_summary_tells_each_region_and_each_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation(tmp_path, perturbations=[{"kind": "translate", "contrast": "T2", "levels": [0, 2]}]).run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PD, 3 subjects, mean ± standard deviation"
    assert lines[1].split() == ["region", "psnr", "ssim", "mae", "nrmse", "nmse", "stripes"]
    assert [line.split()[0] for line in lines[2:5]] == ["slice", "volume", "brain"]
    psnr = [float(row["psnr"]) for row in rows_of(tmp_path / "run", region="brain", perturbation="none")]
    assert f"{np.mean(psnr):.2f} ± {np.std(psnr, ddof=1):.2f}" in lines[4]
    assert lines[5].startswith(f"  brain psnr, T2 translate [px]  0: {np.mean(psnr):.2f}  2: ")
    assert lines[6].startswith("written to ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "some"}, "keep must be one of three, all, none, got 'some'"),
        ({"sources": ["T2", "T1"]}, "sources must be the data's, T1, T2, got T2, T1"),
        ({"about": {key: ABOUT[key] for key in ABOUT if key != "amp"}}, "about must tell .*; it lacks amp"),
        ({"perturbations": [{"kind": "noise", "contrast": "PD"}]}, "only a source can be perturbed, T1, T2, got noise"),
        ({"perturbations": [{"kind": "noise", "contrast": "T1"}] * 2}, "each kind of perturbation .* is given once"),
        ({"perturbations": [{"kind": "shake", "contrast": "T1"}]}, "kind must be one of"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    data = PreparedVolumes([make_subject(tmp_path, "a")], sources=["T1", "T2"], target=["PD"])
    with pytest.raises(ValueError, match=message):
        evaluation(tmp_path, names="", data=data, **options)


@pytest.mark.parametrize(
    ("sources", "target", "message"),
    [
        (["T1"], ["t1w"], "T1 is a source and the target"),
        (["T1", "t1w"], ["T2"], "each source is given once, got T1 twice"),
        ([], ["T2"], "there must be a source and a target"),
        ("T1", ["T2"], "sources must be a list of contrasts such as"),
    ],
)
def test_a_contrast_is_a_source_or_a_target_once(tmp_path: Path, sources: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluation(data=[], predictor=mean_of_sources, sources=sources, target=target, output_dir=tmp_path, about=ABOUT)


@pytest.mark.parametrize("rule", ["every", "nonempty", ("middle", 3), ("brain", 2)])
def test_the_slices_evaluated_are_those_that_training_would_take(tmp_path: Path, rule: Any) -> None:
    subjects = [make_subject(tmp_path, name) for name in "ab"]
    options: dict[str, Any] = {"sources": ["T1", "T2"], "target": ["PD"], "slices": rule}
    data, slices = PreparedVolumes(subjects, **options), SliceDataset(subjects, **options)
    expected = [(slices[index]["subject"], slices[index]["slice"]) for index in range(len(slices))]
    assert [(item["subject"], k) for item in (data[0], data[1]) for k in item["slices"]] == expected
    for index, (name, k) in enumerate(expected):
        item = data["ab".index(name)]
        torch.testing.assert_close(item["image"][..., k], slices[index]["sources"])
        torch.testing.assert_close(item["target"][..., k], slices[index]["target"])


def test_what_prepare_writes_is_evaluated(tmp_path: Path) -> None:
    """From files as scanned to a run folder."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, size) for size in (30, 32, 9)), indexing="ij")
    ball = np.clip(1.1 - (i**2 + j**2 + k**2), 0, 1)
    affine = np.array([[-2.0, 0, 0, 30], [0, -2, 0, 32], [0, 0, 3, -13], [0, 0, 0, 1]])
    entry = {"subject": "p1"}
    for number, contrast in enumerate(("T1", "T2", "PD")):
        volume = Volume((900 * ball ** (number + 1)).astype(np.float32), affine)
        write_volume(tmp_path / f"{contrast}.nii.gz", volume)
        entry[contrast] = f"{contrast}.nii.gz"
    (tmp_path / "datalist.json").write_text(json.dumps({"name": "balls", "test": [entry]}))
    prepared = tmp_path / "made"
    assert main(["prepare", "--datalist", str(tmp_path / "datalist.json"), "--out", str(prepared), "--size", "24"]) == 0
    subjects = read_datalist(prepared / "datalist.json").splits["test"]
    data = PreparedVolumes(subjects, sources=["T1", "T2"], target=["PD"], slices=("middle", 3))
    evaluation(tmp_path, data=data).run()
    assert [row["region"] for row in rows_of(tmp_path / "run", subject="p1", dataset="balls")] == [
        "slice", "volume", "brain"
    ]  # fmt: skip
    assert len(table(tmp_path / "run" / "slices.csv")) == 3
    stored = nib.load(tmp_path / "run" / "volumes" / "p1" / "PD_synthetic.nii.gz")
    np.testing.assert_allclose(stored.affine, nib.load(prepared / "p1" / "PD.nii").affine)
    with (tmp_path / "run" / "subjects.csv").open() as file:
        assert tuple(next(csv.reader(file))) == SUBJECT_COLUMNS
    with (tmp_path / "run" / "slices.csv").open() as file:
        assert tuple(next(csv.reader(file))) == SLICE_COLUMNS
