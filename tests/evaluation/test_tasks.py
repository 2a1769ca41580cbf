"""The matrix of tasks: which there are, and that each figure is its own subject's."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from monai_ext.evaluation.tasks import TaskMatrix


class Volumes(list):
    """One subject with three of four contrasts."""

    sources, failures = ("T1", "T2", "T1C", "FLAIR"), ()


@pytest.fixture
def volumes() -> Volumes:
    image = torch.rand(4, 20, 20, 12, generator=torch.Generator().manual_seed(0))
    available = torch.tensor([True, True, False, True])
    image[2] = 0
    mask = torch.ones(1, 20, 20, 12, dtype=torch.bool)
    one = {"image": image, "target": image, "available": available, "mask": mask, "affine": np.eye(4), "dataset": "a"}
    return Volumes([one])


def mean_of_given(image, given, wanted, _dataset):
    assert not (given & wanted).any()
    return image[given].mean(0, keepdim=True).expand_as(image)


def rows(folder: Path) -> dict[tuple[str, str], float]:
    with (folder / "matrix.csv").open() as file:
        return {(row["sources"], row["target"]): float(row["psnr"]) for row in csv.DictReader(file)}


EVERY = {
    ("T1", "T2"), ("T1", "FLAIR"), ("T2", "T1"), ("T2", "FLAIR"), ("FLAIR", "T1"), ("FLAIR", "T2"),
    ("T1+T2", "FLAIR"), ("T1+FLAIR", "T2"), ("T2+FLAIR", "T1"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "tasks"),
    [(None, EVERY), ([1], {task for task in EVERY if "+" not in task[0]}), ([-1], {t for t in EVERY if "+" in t[0]}),
     ([1, -1, 5], EVERY)],
)  # fmt: skip
def test_the_tasks_are_those_of_the_contrasts_there_with_so_many_sources(volumes, tmp_path, counts, tasks):
    TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=tmp_path, source_counts=counts).run()
    assert set(rows(tmp_path)) == tasks


def test_a_figure_is_scikit_images(volumes, tmp_path):
    TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=tmp_path).run()
    image = volumes[0]["image"].numpy()
    expected = peak_signal_noise_ratio(image[3], image[:2].mean(0), data_range=1)
    assert rows(tmp_path)["T1+T2", "FLAIR"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("counts", [[], [0], [-2]])
def test_counts_that_mean_nothing_are_refused(volumes, tmp_path, counts):
    with pytest.raises(ValueError, match="source_counts must be numbers from 1, or -1"):
        TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=tmp_path, source_counts=counts)
