"""The report: what it says is what the runs hold, what cannot be compared is refused, what it shows is marked."""

import base64
import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from methods import BETTER, WORSE, Method
from PIL import Image

from monai_ext.__main__ import main
from monai_ext.report import tables, viewer
from monai_ext.report.charts import nice_ticks
from monai_ext.report.pictures import Stored, three_views
from monai_ext.report.runs import compare, read_run, unharmed

TIME = re.compile(r"<time.*?</time>")


def report(out: Path, *runs: Path, options: str = "") -> str:
    assert main(["report", "--runs", *map(str, runs), "--out", str(out), *options.split()]) == 0
    return (out / "index.html").read_text(encoding="utf-8")


def refused(capsys: pytest.CaptureFixture[str], out: Path, *runs: Path, options: str = "") -> str:
    assert main(["report", "--runs", *map(str, runs), "--out", str(out), *options.split()]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).replace("&nbsp;", " ")


def changed(folder: Path, out: Path, **about: Any) -> Path:
    """A copy of a run whose record says something else."""
    shutil.copytree(folder, out)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | about))
    return out


def without(folder: Path, out: Path, *subjects: str) -> Path:
    """A copy of a run that lacks some subjects."""
    shutil.copytree(folder, out)
    for name in ("subjects.csv", "slices.csv"):
        lines = (out / name).read_text().splitlines(keepends=True)
        (out / name).write_text("".join(line for line in lines if line.split(",")[0] not in subjects))
    return out


@pytest.fixture(scope="module")
def page(two_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(tmp_path_factory.mktemp("report") / "out", *two_runs)


def test_the_means_are_those_of_the_table(two_runs: tuple[Path, Path], page: str) -> None:
    text = text_of(page)
    for run in two_runs:
        with (run / "subjects.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["perturbation"], row["region"]) == ("none", "brain")]
        assert len(rows) == 12
        for name, digits in (("psnr", 2), ("ssim", 4), ("nmse", 4), ("stripes", 4)):
            assert f" {np.mean([float(row[name]) for row in rows]):.{digits}f} " in text
    assert "PD: 12 subjects, 240 slices" in text


def test_the_first_screen_says_what_was_compared_on_what(two_runs: tuple[Path, Path], page: str) -> None:
    first = text_of(page.partition("<main>")[0])
    for said in (
        "PD from T1, T2: AGI-Net against ResUnet", "not for clinical use", "healthy, test split",
        "data range 1.0", "clipped to 0 to 1", "SSIM window 11 px", "the voxels inside the mask", "fake 0.1.0",
        "19,150,000", "abababababab",
    ):  # fmt: skip
        assert said in first
    for run in two_runs:
        assert json.loads((run / "run.json").read_text())["weights"]["sha256"][:12] in first


def test_the_page_asks_for_no_other_file_and_forbids_itself_to(page: str) -> None:
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)[a-z]+:", without_scripts)
    assert "default-src 'none'" in page
    assert "connect-src data: blob:" in page


def test_the_same_runs_give_the_same_page_but_for_the_time(
    two_runs: tuple[Path, Path], page: str, tmp_path: Path
) -> None:
    again = report(tmp_path / "out", *two_runs)
    assert TIME.sub("", again) == TIME.sub("", page)
    assert len(TIME.findall(page)) == 1


def test_every_synthetic_image_is_called_so(page: str) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) >= 2 * 3 * 2
    for method in ("AGI-Net", "ResUnet"):
        assert f"SYNTHETIC PD by {method}" in captions
        assert f"Error of {method}: |SYNTHETIC − truth|" in captions
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert len(alts) == 3 * len(captions)
    assert {alt.split(", ")[-2] for alt in alts} == {"axial", "coronal", "sagittal"}


def test_worst_median_and_best_of_each_method_are_shown(two_runs: tuple[Path, Path], page: str) -> None:
    comparison = compare([read_run(run) for run in two_runs])
    for run in comparison.runs:
        psnr = np.sort(comparison.values(run, unharmed("PD", "brain"), "psnr"))
        for word, value in (("worst", psnr[0]), ("median", psnr[5]), ("best", psnr[-1])):
            assert f"{run.label}: {word} of 12, {value:.2f} dB" in page


def test_curves_show_every_level_that_was_evaluated(page: str) -> None:
    told = re.findall(r"<title>PD, T2 displaced: PSNR, dB</title><desc>(.*?)</desc>", page)
    assert len(told) == 1
    assert [re.findall(r" at (\d)", line) for line in told[0].split(";")] == [list("0123")] * 2


def test_charts_can_be_read_aloud(page: str) -> None:
    charts = re.findall(r'<svg class="chart".*?</svg>', page, flags=re.S)
    assert len(charts) == 6 + 2
    assert all(re.match(r'<svg class="chart" role="img" [^>]*><title>.+?</title><desc>.+?</desc>', c) for c in charts)


def test_visits_of_one_person_count_once_in_intervals_and_tests(
    evaluate: Callable[..., Path], phantoms: list[dict[str, Any]], tmp_path: Path
) -> None:
    items = [{**item, "person": f"person {number // 4}"} for number, item in enumerate(phantoms)]
    runs = [read_run(evaluate(tmp_path / m.name, m, items=items, keep="none")) for m in (BETTER, WORSE)]
    comparison = compare(runs)
    assert any("12 subjects are visits of 3 people" in line for line in comparison.remarks)
    key = unharmed("PD", "brain")
    each, people = comparison.values(runs[0], key, "psnr"), comparison.means(runs[0], key, "psnr")
    np.testing.assert_allclose(people, each.reshape(3, 4).mean(1))
    assert {test.difference.n for test in tables.tests_of(comparison, "PD") if test.metric == "psnr"} == {3}


def test_of_heads_as_scanned_it_is_said_that_brain_is_all_that_they_show(two_runs: tuple[Path, Path]) -> None:
    run = read_run(two_runs[0])
    whole = replace(run, about={**run.about, "protocol": {**run.about["protocol"], "brain_mask": ["none"]}})
    assert not any("Nothing was cut out" in line for line in compare([run]).remarks)
    assert any("Nothing was cut out of the scans" in line for line in compare([whole]).remarks)


def test_runs_with_other_subjects_are_compared_on_the_common_ones(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = without(two_runs[1], tmp_path / "fewer", "sub-02", "sub-07")
    text = text_of(report(tmp_path / "out", two_runs[0], fewer, options="--no-viewer"))
    said = "PD: 10 of 12 subjects are in all runs; AGI-Net alone cannot be compared on sub-02, sub-07."
    assert said in text
    assert said in capsys.readouterr().out
    assert "PD: 10 subjects, 200 slices" in text


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"datalist_sha256": "cd" * 32}, "Datalists: AGI-Net abababababab; ResUnet cdcdcdcdcdcd"),
        ({"dataset": "glioma"}, "Datasets: AGI-Net healthy; ResUnet glioma"),
        ({"split": "validation"}, "Splits: AGI-Net test; ResUnet validation"),
        ({"target": ["PD", "FLAIR"]}, "Targets: AGI-Net PD; ResUnet PD, FLAIR"),
        ({"protocol": {"data_range": 2.0}}, "Protocol, data_range: AGI-Net 1.0; ResUnet 2.0"),
    ],
)
def test_runs_on_other_data_are_compared_only_if_that_is_said(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], about: dict[str, Any], said: str
) -> None:
    other = changed(two_runs[1], tmp_path / "other", **about)
    told = refused(capsys, tmp_path / "out", two_runs[0], other)
    assert said in told
    assert "--allow-differences" in told
    allowed = text_of(report(tmp_path / "out", two_runs[0], other, options="--allow-differences --no-viewer"))
    assert f"The runs differ in more than the method. {said}" in allowed


def test_runs_without_a_common_target_or_subject_are_refused(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(two_runs[1], tmp_path / "other", target=["FLAIR"])
    told = refused(capsys, tmp_path / "out", two_runs[0], other, options="--allow-differences")
    assert "no target in common: AGI-Net PD; ResUnet FLAIR" in told
    names = [f"sub-{number:02d}" for number in range(1, 13)]
    first, last = without(two_runs[0], tmp_path / "a", *names[6:]), without(two_runs[1], tmp_path / "b", *names[:6])
    assert "no subject in common for PD" in refused(capsys, tmp_path / "out", first, last)


def test_two_runs_of_one_name_are_told_apart(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    renamed = changed(two_runs[1], tmp_path / "second", name="AGI-Net")
    again = changed(two_runs[1], tmp_path / "more" / "second", name="AGI-Net")
    labels = [run.label for run in compare([read_run(f) for f in (two_runs[0], renamed, again)]).runs]
    assert labels == ["AGI-Net (agi_net)", "AGI-Net (second) #1", "AGI-Net (second) #2"]


def test_one_run_given_twice_is_refused(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "agi_net is given twice" in refused(capsys, tmp_path / "out", two_runs[0], two_runs[0])


def cut(path: Path, *, lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda run: shutil.rmtree(run), "is no folder"),
    (lambda run: [shutil.rmtree(run), run.mkdir()], "is empty: it is no finished evaluation"),
    (lambda run: (run / "run.json").unlink(), "has no run.json"),
    (lambda run: (run / "run.json").write_text('{"name": '), r"run\.json is no JSON"),
    (lambda run: (run / "run.json").write_text('{"name": "A"}'), r"run\.json lacks bundle, version"),
    (lambda run: (run / "subjects.csv").unlink(), r"has no subjects\.csv"),
    (lambda run: (run / "subjects.csv").write_text(""), r"subjects\.csv lacks the columns subject"),
    (lambda run: cut(run / "subjects.csv", lines=1), r"subjects\.csv has no rows"),
    (lambda run: cut(run / "slices.csv", lines=1), r"slices\.csv has no rows"),
    (lambda run: (run / "subjects.csv").open("a").write("sub-99,healthy,none"), r"subjects\.csv, line \d+ is cut"),
    (
        lambda run: (run / "subjects.csv").open("a").write("sub-99,healthy,none,,0,PD,brain,x,,,,,\n"),
        r"subjects\.csv, line \d+: could not convert string to float: 'x'",
    ),
    (
        lambda run: (run / "subjects.csv").open("a").write("sub-01,healthy,none,,0,PD,brain,1,,,,,\n"),
        r"subjects\.csv, line \d+: sub-01 is there twice",
    ),
    (lambda run: broken_volume(run), r"PD_synthetic\.nii\.gz cannot be read"),
    (lambda run: other_grid(run), r"PD_synthetic\.nii\.gz and the truth beside it are not on one grid"),
]  # fmt: skip


def broken_volume(run: Path) -> None:
    for path in run.glob("volumes/*/PD_synthetic.nii.gz"):
        path.write_bytes(path.read_bytes()[:3000])


def other_grid(run: Path) -> None:
    for path in run.glob("volumes/*/PD_synthetic.nii.gz"):
        image = nib.Nifti1Image.from_filename(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)


@pytest.mark.parametrize(("harm", "said"), FAULTS)
def test_a_broken_run_is_named(
    two_runs: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], object],
    said: str,
) -> None:
    run = tmp_path / "broken"
    shutil.copytree(two_runs[1], run)
    harm(run)
    told = refused(capsys, tmp_path / "out", two_runs[0], run)
    assert str(run) in told
    assert re.search(said, told)


def test_chosen_subjects_are_shown_instead(
    evaluate: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evaluate(tmp_path / "all", BETTER, subjects=4, keep="all", perturbations=())
    page = report(tmp_path / "out", run, options="--subjects sub-02 --no-viewer")
    assert set(re.findall(r"<article class=case><h3>(.*?),", page)) == {"sub-02"}
    assert "Paired tests" not in page
    assert "Robustness" not in page
    assert "sub-77 is in none" in refused(capsys, tmp_path / "out_2", run, options="--subjects sub-77")


def test_a_run_without_volumes_still_has_a_report(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    run = evaluate(tmp_path / "none", BETTER, subjects=2, keep="none", perturbations=())
    text = text_of(report(tmp_path / "out", run))
    assert "kept no volumes" in text
    assert "With 2 subjects" not in text


def test_few_subjects_are_said_to_be_few(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    runs = [evaluate(tmp_path / method.name, method, subjects=3, perturbations=()) for method in (BETTER, WORSE)]
    page = report(tmp_path / "out", *runs, options="--no-viewer")
    assert "with 3 subjects, too few to call any difference significant" in text_of(page)
    assert '<span class="best">' not in page
    assert "</span><span class=ci>" in page


def test_runs_from_other_sources_and_datasets_are_laid_out_as_a_matrix(
    evaluate: Callable[..., Path], phantoms: list[dict[str, Any]], tmp_path: Path
) -> None:
    both = [{**item, "dataset": "guys" if i % 2 else "hh"} for i, item in enumerate(phantoms[:4])]
    alone = [{**item, "image": item["image"][:1]} for item in both]
    one = evaluate(tmp_path / "one", Method("one"), items=alone, sources=("T1",), perturbations=())
    two = evaluate(tmp_path / "two", Method("two"), items=both, perturbations=())
    page = report(tmp_path / "out", one, two, options="--no-viewer")
    assert "PD from T1 or T1, T2: one against two" in page
    matrix = re.findall(r"<table class=\"heat\">.*?</table>", page, flags=re.S)
    assert len(matrix) == 2
    assert [row[:8].split(",")[0] for row in re.findall(r"<th scope=row>(.*?)<", matrix[0])] == ["guys", "hh"]
    comparison = compare([read_run(one), read_run(two)])
    values = comparison.values(comparison.runs[1], unharmed("PD", "brain"), "psnr")
    assert f">{values[1::2].mean():.2f}<" in matrix[0]
    assert f">{values[::2].mean():.2f}<" in matrix[0]


def test_names_cannot_put_markup_into_the_page(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    evil = changed(two_runs[1], tmp_path / "evil", name="</script><img src=x onerror=alert(1)>")
    page = report(tmp_path / "out", two_runs[0], evil)
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_without_nilearn_the_page_says_how_to_get_the_viewer(
    two_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "find_spec", lambda _: None)
    page = report(tmp_path / "out", *two_runs)
    assert "pip install 'monai-ext[phantom]'" in page
    assert "<script" not in page
    assert "viewer" not in report(tmp_path / "out", *two_runs, options="--no-viewer").partition("<main>")[2]


def test_pictures_have_the_patients_right_on_the_left_and_the_front_up() -> None:
    array = np.zeros((6, 8, 10), dtype=np.float32)
    array[4, 6, 7] = 1  # to the right, front and top
    volume = Stored(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    seen = {}
    for view in three_views(volume, (4, 6, 7)):
        image = decoded(view.source)
        seen[view.plane] = tuple(int(i) for i in np.unravel_index(image.argmax(), image.shape)) + image.shape
    assert seen == {"axial": (1, 1, 8, 6), "coronal": (2, 1, 10, 6), "sagittal": (2, 1, 10, 8)}


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_thick_slices_are_drawn_as_tall_as_they_are() -> None:
    volume = Stored(np.ones((20, 20, 4), dtype=np.float32), np.diag([1.0, 1.0, 5.0, 1.0]))
    shapes = {view.plane: decoded(view.source).shape for view in three_views(volume, (0, 0, 0))}
    assert shapes == {"axial": (20, 20), "coronal": (20, 20), "sagittal": (20, 20)}


def test_the_viewers_volumes_are_halved_above_the_limit_and_stay_where_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(viewer, "MOST_VOXELS", 100)
    array = np.random.default_rng(0).random((7, 8, 6), dtype=np.float32)
    affine = np.array([[2.0, 0, 0, -5], [0, 3, 0, 7], [0, 0, 4, 1], [0, 0, 0, 1]])
    small = viewer.halve(Stored(array, affine))
    assert small.array.shape == (4, 4, 3)
    assert small.array[1, 2, 1] == pytest.approx(array[2:4, 4:6, 2:4].mean())
    assert small.affine @ [1, 2, 1, 1] == pytest.approx(affine @ [2.5, 4.5, 2.5, 1])
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(viewer.packed(small))))
    assert np.asarray(image.dataobj) == pytest.approx(small.array, abs=0.5 / 255 + 1e-6)
    assert image.affine == pytest.approx(small.affine)


@pytest.mark.parametrize(("low", "high"), [(21.3, 34.9), (0.81, 0.96), (5.0, 5.0), (0.0, 0.0), (-0.002, 0.0011)])
def test_ticks_are_round_and_hold_what_is_shown(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 8
    assert all(len(f"{tick:g}") <= 7 for tick in ticks)
