"""The matrix of tasks: which there are, and that each figure is its own subject's."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from monai_ext.evaluation.evaluation import SomeFailed
from monai_ext.evaluation.protocol import Protocol
from monai_ext.evaluation.tasks import Predictor, TaskMatrix
from monai_ext.networks import PMMSynth


class Volumes(list):
    """Two subjects with three of four contrasts."""

    sources, failures = ("T1", "T2", "T1C", "FLAIR"), ()


@pytest.fixture
def volumes() -> Volumes:
    image = torch.rand(4, 20, 20, 12, generator=torch.Generator().manual_seed(0))
    available = torch.tensor([True, True, False, True])
    image[2] = 0
    mask = torch.ones(1, 20, 20, 12, dtype=torch.bool)
    mask[..., :10, :, :] = False
    one = {"image": image, "target": image, "available": available, "mask": mask, "affine": np.eye(4), "dataset": "a"}
    other = {**one, "subject": "q", "target": image.flip(1), "slices": np.array([7])}
    return Volumes([{**one, "subject": "p", "slices": np.array([3, 4])}, other])


def mean_of_given(image, given, wanted, _dataset):
    assert not (given & wanted).any()
    return image[given].mean(0, keepdim=True).expand_as(image)


def table(path: Path, *, region: str) -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["region"] == region]


def rows(folder: Path, *, region: str = "brain") -> dict[tuple[str, str], dict[str, str]]:
    return {(row["sources"], row["target"]): row for row in table(folder / "matrix.csv", region=region)}


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


@pytest.mark.parametrize("region", ["slice", "volume", "brain"])
def test_a_figure_is_the_mean_and_deviation_of_scikit_images_over_the_subjects(volumes, tmp_path, region: str):
    TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=tmp_path).run()
    expected = []
    for item in volumes:
        truth, made = item["target"][3].numpy(), item["image"][:2].mean(0).numpy()
        places = {
            "slice": [(slice(None), slice(None), k) for k in item["slices"]],
            "volume": [...],
            "brain": [item["mask"][0].numpy()],
        }[region]
        expected.append(np.mean([peak_signal_noise_ratio(truth[at], made[at], data_range=1) for at in places]))
    row = rows(tmp_path, region=region)["T1+T2", "FLAIR"]
    assert float(row["psnr"]) == pytest.approx(np.mean(expected), abs=1e-3)
    assert float(row["psnr_sd"]) == pytest.approx(np.std(expected, ddof=1), abs=1e-3)
    cases = {
        case["subject"]: float(case["psnr"])
        for case in table(tmp_path / "matrix_cases.csv", region=region)
        if (case["sources"], case["target"]) == ("T1+T2", "FLAIR")
    }
    assert cases == pytest.approx(dict(zip("pq", expected, strict=True)), abs=1e-3)


def test_what_is_printed_is_of_the_protocols_region(volumes, tmp_path, capsys):
    protocol = Protocol(peak="image", ssim="uniform", region="slice")
    TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=tmp_path, protocol=protocol).run()
    found = rows(tmp_path, region="slice")
    mean = np.mean([float(row["psnr"]) for (sources, _), row in found.items() if "+" in sources])
    assert f"a, many-to-one, 3 tasks: psnr {mean:.2f}, ssim" in capsys.readouterr().out


def asked_for(network: PMMSynth, dataset: str, **options: str) -> list[Tensor | None]:
    """The numbers that a network is given for a subject of this dataset."""
    numbers: list[Tensor | None] = []
    network.forward = lambda x, _given, number, _wanted: (numbers.append(number), x)[1]
    predict = Predictor(network=network, inferer=SimpleInferer(), device=torch.device("cpu"), **options)
    flags = torch.tensor([True, False]), torch.tensor([False, True])
    predict(torch.rand(2, 4, 4, 1), *flags, dataset)
    predict(torch.rand(2, 4, 4, 1), *flags, dataset)
    return numbers


@pytest.fixture
def network() -> PMMSynth:
    return PMMSynth(modalities=["T1", "T2"], width=8, sites=["a", "b"])


def test_a_dataset_is_synthesised_as_its_own_as_a_named_one_or_as_nobodys(network):
    assert [int(number) for number in asked_for(network, "b")] == [1, 1]
    assert [int(number) for number in asked_for(network, "b", site="a")] == [0, 0]
    assert asked_for(network, "b", site="none") == [None, None]


def test_a_dataset_that_the_weights_do_not_know_is_nobodys_and_said_once(network, caplog):
    assert asked_for(network, "new") == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "the weights do not know site 'new', which is synthesised as nobody's; they know a, b"
    ]


def test_a_site_that_the_weights_do_not_know_is_refused(network):
    with pytest.raises(ValueError, match="unknown site 'new'; the known ones: a, b"):
        asked_for(network, "a", site="new")


@pytest.mark.parametrize("counts", [[], [0], [-2]])
def test_counts_that_mean_nothing_are_refused(volumes, tmp_path, counts):
    with pytest.raises(ValueError, match="source_counts must be numbers from 1, or -1"):
        TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=tmp_path, source_counts=counts)


class Evaluated:
    """An evaluation that ends as it is told to."""

    def __init__(self, end: Exception | None = None) -> None:
        self.end = end

    def run(self) -> None:
        if self.end is not None:
            raise self.end


def test_the_matrix_is_written_where_some_could_not_be_evaluated_and_not_where_nothing_was(volumes, tmp_path):
    some, none = tmp_path / "some", tmp_path / "none"
    for folder in (some, none):
        folder.mkdir()
        (folder / "run.json").write_text("{}")  # of an evaluation before, too
    with pytest.raises(SomeFailed, match="1 of 3"):
        TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=some).run_after(Evaluated(SomeFailed("1 of 3")))
    assert set(rows(some)) == EVERY
    with pytest.raises(ValueError, match="holds results already"):
        TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=none).run_after(
            Evaluated(ValueError("holds results already"))
        )
    assert not (none / "matrix.csv").exists()


def test_a_subject_that_fails_is_named_and_the_others_are_in_the_matrix(volumes, tmp_path, capsys):
    volumes[1] = {**volumes[1], "mask": torch.zeros(1, 20, 20, 12, dtype=torch.bool)}
    with pytest.raises(ValueError, match="1 subjects are not in the matrix"):
        TaskMatrix(data=volumes, predictor=mean_of_given, output_dir=tmp_path).run()
    assert {case["subject"] for case in table(tmp_path / "matrix_cases.csv", region="brain")} == {"p"}
    assert "q" in capsys.readouterr().err
