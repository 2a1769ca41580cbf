"""Every one-to-one and many-to-one task in the data, as PMM-Synth's Tables 1 and 2: a figure for each."""

import csv
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor
from tqdm import tqdm

from monai_ext.data.datalist import SubjectError, report_failures
from monai_ext.data.prepared_volumes import PreparedVolumes
from monai_ext.evaluation.metrics import compare_volumes
from monai_ext.evaluation.run_folder import MATRIX, MATRIX_COLUMNS
from monai_ext.files import absolute, whole_file
from monai_ext.modalities import canonical
from monai_ext.networks import PMMSynth


class Predictor:
    """A trained PMM-Synth over volumes, from some contrasts to some, as the dataset has them.

    A dataset that the network does not know is synthesised without personalization: an evaluation is to say how well
    that goes. Inference, where a person names the dataset, refuses it.

    Args:
        network: trained, on the device.
        inferer: that takes it over a volume.
        device: where it runs.
    """

    def __init__(self, *, network: PMMSynth, inferer: Inferer, device: torch.device) -> None:
        self.network, self.inferer, self.device = network, inferer, device

    def __call__(self, image: Tensor, given: Tensor, wanted: Tensor, dataset: str | None) -> Tensor:
        """(M, I, J, K), which of them are sources (M,), which to make (M,) -> (M, I, J, K), zeros for the others"""
        number = self.network.site_index(dataset) if dataset in self.network.sites else None
        given, wanted = given.to(self.device), wanted.to(self.device)
        image = torch.where(given[:, None, None, None], image.to(self.device), 0.0)

        def network(x: Tensor) -> Tensor:
            own = None if number is None else torch.full((len(x),), number, device=x.device)
            return self.network(x, given.expand(len(x), -1), own, wanted)

        with torch.no_grad():
            return self.inferer(image[None], network)[0]

    def task(self, sources: Sequence[str], target: str) -> Callable[[Tensor, str], Tensor]:
        """Make the predictor of one task, as `Evaluation` takes it.

        Args:
            sources: which the network may see.
            target: what it makes.

        Returns:
            A function of a subject's image (M, I, J, K) and dataset.
        """
        every = list(self.network.modalities)
        places = [every.index(canonical(contrast)) for contrast in sources]
        made = every.index(canonical(target))
        given, wanted = (torch.zeros(len(every), dtype=torch.bool) for _ in range(2))
        given[places], wanted[made] = True, True

        def predict(image: Tensor, dataset: str) -> Tensor:
            whole = image.new_zeros(len(every), *image.shape[1:])
            whole[places] = image
            return self(whole, given, wanted, dataset)[made : made + 1]

        return predict


class TaskMatrix:
    """Write `output_dir`/matrix.csv: mean PSNR and SSIM in the brain over the subjects that have a task's contrasts.

    One pass through the network makes all targets of one set of sources.

    Args:
        data: with every contrast as source and as target.
        predictor: of the network.
        output_dir: the run folder.
        source_counts: how many sources a task may have, -1 all but one; None is any number.

    Raises:
        ValueError: a count that may not be.
    """

    def __init__(
        self,
        *,
        data: PreparedVolumes,
        predictor: Predictor,
        output_dir: Path | str,
        source_counts: Sequence[int] | None = None,
    ) -> None:
        if source_counts is not None and (
            not source_counts or any(count < 1 and count != -1 for count in source_counts)
        ):
            raise ValueError(f"source_counts must be numbers from 1, or -1 for all but one, got {list(source_counts)}")
        self.data, self.predictor, self.output_dir = data, predictor, absolute(Path(output_dir))
        self.source_counts = source_counts

    def run(self) -> None:
        """Synthesise every task of every subject, and write the matrix.

        Raises:
            ValueError: a subject failed; each is named, after the others are done.
        """
        found: dict[tuple[str, tuple[int, ...], int], list[tuple[float, float]]] = {}
        failures: list[SubjectError] = list(self.data.failures)
        for index in tqdm(range(len(self.data)), desc="every task", unit="subject"):
            try:
                item = self.data[index]
            except SubjectError as fault:
                failures.append(fault)
                continue
            for sources, target, psnr, ssim in self._tasks(item):
                found.setdefault((item["dataset"], sources, target), []).append((psnr, ssim))
        self._write(found)
        if report_failures(failures, total=len(self.data) + len(self.data.failures), what="evaluated"):
            raise ValueError(f"{len(failures)} subjects are not in the matrix, the others are")

    def _tasks(self, item: dict[str, Any]) -> list[tuple[tuple[int, ...], int, float, float]]:
        there = torch.nonzero(item["available"]).flatten().tolist()
        steps = np.linalg.norm(np.asarray(item["affine"])[:3, :3], axis=0)
        spacing = (float(steps[0]), float(steps[1]), float(steps[2]))
        figures = []
        counts: Sequence[int] = range(1, len(there))
        if self.source_counts is not None:
            counts = sorted({len(there) - 1 if count == -1 else count for count in self.source_counts} & set(counts))
        for many in counts:
            for sources in combinations(there, many):
                given = torch.zeros(len(item["available"]), dtype=torch.bool)
                given[list(sources)] = True
                made = self.predictor(item["image"], given, item["available"] & ~given, item["dataset"])
                mask = item["mask"][0].to(made.device)
                for target in sorted(set(there) - set(sources)):
                    truth = item["target"][target].to(made.device)
                    one = compare_volumes(made[target], truth, mask=mask, spacing=spacing, data_range=1.0).brain
                    figures.append((sources, target, float(one["psnr"]), float(one["ssim"])))
        return figures

    def _write(self, found: dict[tuple[str, tuple[int, ...], int], list[tuple[float, float]]]) -> None:
        names = self.data.sources
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with whole_file(self.output_dir / MATRIX) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(MATRIX_COLUMNS)
            for (dataset, sources, target), values in sorted(found.items(), key=lambda one: _place(one[0])):
                psnr, ssim = np.nanmean(np.array(values), axis=0)
                joined = "+".join(names[number] for number in sources)
                writer.writerow([dataset, joined, names[target], len(values), f"{psnr:.4f}", f"{ssim:.5f}"])
        for dataset in dict.fromkeys(key[0] for key in found):
            for what, many in (("one-to-one", False), ("many-to-one", True)):
                ours = [v for key, v in found.items() if key[0] == dataset and (len(key[1]) > 1) == many]
                if ours:
                    psnr, ssim = np.nanmean(np.array([np.nanmean(np.array(v), axis=0) for v in ours]), axis=0)
                    print(f"{dataset}, {what}, {len(ours)} tasks: psnr {psnr:.2f}, ssim {ssim:.4f}")


def _place(key: tuple[str, tuple[int, ...], int]) -> tuple[str, int, tuple[int, ...], int]:
    return key[0], len(key[1]), key[1], key[2]
