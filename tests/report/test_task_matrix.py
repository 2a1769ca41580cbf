"""The heat map of every task shows what the matrix says, where there is one."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from monai_ext.evaluation.run_folder import MATRIX, MATRIX_COLUMNS
from monai_ext.report.matrix import task_maps
from monai_ext.report.runs import Run


def make_run(folder: Path, *rows: tuple, columns: tuple[str, ...] = MATRIX_COLUMNS) -> Run:
    with (folder / MATRIX).open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return Run(folder, "PMM-Synth", {}, {}, {}, {})


def test_each_task_has_its_figure_and_the_best_way_the_deepest_colour(tmp_path: Path):
    page = task_maps([make_run(
        tmp_path, ("a", "T1", "T2", "brain", 3, 20.0, 1, 0.8, 0.1),
        ("a", "T1+DWI", "T2", "brain", 3, 25.0, 1, 0.9, 0.1), ("b<", "T2", "T1", "brain", 1, 22.5, "", 0.7, ""),
        ("b<", "T2", "T1", "slice", 1, 33.3, "", 0.8, "")
    )])  # fmt: skip
    assert page.count("<table") == 2
    assert '<td style="--share:8%">20.00</td>' in page
    assert '<td style="--share:55%">25.00</td>' in page
    assert "T1, DWI" in page
    assert "b&lt;" in page
    assert "33.30" not in page
    assert "PSNR, dB ↑ in the brain" in page


def test_by_a_papers_protocol_it_is_of_the_slices(tmp_path: Path):
    of_a = [("a", "T1", "T2", region, 1, psnr, "", 0.8, "") for region, psnr in (("brain", 20.0), ("slice", 33.3))]
    run = make_run(tmp_path, *of_a)
    page = task_maps([replace(run, about={"protocol": {"region": "slice"}})])
    assert "33.30" in page
    assert "20.00" not in page
    assert "PSNR, dB ↑ in the slices' mean" in page


def test_a_run_without_a_matrix_has_no_map(tmp_path: Path):
    assert task_maps([Run(tmp_path, "AGI-Net", {}, {}, {}, {})]) == ""


def test_another_table_of_that_name_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"matrix\.csv must have the columns dataset, sources, target"):
        task_maps([make_run(tmp_path, columns=("a", "b"))])
