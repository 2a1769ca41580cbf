"""Every one-to-one and many-to-one task in the data, as PMM-Synth's Tables 1 and 2: a figure for each."""

import logging
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
from monai_ext.evaluation.evaluation import SomeFailed
from monai_ext.evaluation.metrics import FIGURES, compare_volumes
from monai_ext.evaluation.protocol import OURS, REGIONS, Protocol
from monai_ext.evaluation.run_folder import CASE_COLUMNS, CASES, MATRIX, MATRIX_COLUMNS, MEASURED, Row, write_table
from monai_ext.files import absolute, whole_file
from monai_ext.modalities import canonical
from monai_ext.networks import PMMSynth
from monai_ext.networks.pmm_synth import OneTask

logger = logging.getLogger(__name__)
NOBODY = "none"


class Predictor:
    """A trained PMM-Synth over volumes, from some contrasts to some, as the dataset has them.

    A site that the network does not know is synthesised without personalization: an evaluation is to say how well
    that goes, and warns. Inference, where a person names the site, refuses it.

    Args:
        network: trained, on the device.
        inferer: that takes it over a volume.
        device: where it runs.
        site: whose look every subject is given; None is that of each one's own dataset, "none" is nobody's.

    Raises:
        ValueError: the network does not know the site.
    """

    def __init__(self, *, network: PMMSynth, inferer: Inferer, device: torch.device, site: str | None = None) -> None:
        self.network, self.inferer, self.device, self.site = network, inferer, device, site
        if site is not None and site != NOBODY:
            network.site_index(site)
        self._warned: set[str | None] = set()

    def _number(self, dataset: str | None) -> int | None:
        """The network's number of the site, or of a subject's dataset; None is nobody's."""
        if self.site is not None:
            return None if self.site == NOBODY else self.network.site_index(self.site)
        sites = self.network.sites
        if dataset in sites:
            return self.network.site_index(dataset)
        if sites and dataset not in self._warned:
            self._warned.add(dataset)
            message = "the weights do not know site %r, which is synthesised as nobody's; they know %s"
            logger.warning(message, dataset, ", ".join(sites))
        return None

    def __call__(self, image: Tensor, is_source: Tensor, wanted: Tensor, dataset: str | None) -> Tensor:
        """(M, I, J, K), which of them are sources (M,), which to make (M,) -> (M, I, J, K), zeros for the others"""
        number = self._number(dataset)
        is_source, wanted = is_source.to(self.device), wanted.to(self.device)
        image = torch.where(is_source[:, None, None, None], image.to(self.device), 0.0)

        with torch.no_grad():
            return self.inferer(image[None], OneTask(self.network, given=is_source, site=number, wanted=wanted))[0]

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
        place = every.index(canonical(target))
        is_source, wanted = (torch.zeros(len(every), dtype=torch.bool) for _ in range(2))
        is_source[places], wanted[place] = True, True

        def predict(image: Tensor, dataset: str) -> Tensor:
            whole = image.new_zeros(len(every), *image.shape[1:])
            whole[places] = image
            return self(whole, is_source, wanted, dataset)[place : place + 1]

        return predict


class TaskMatrix:
    """Write `output_dir`/matrix.csv: mean and SD of PSNR and SSIM over the subjects that have a task's contrasts.

    Each region has its rows; beside it matrix_cases.csv has every subject's. One pass through the network makes all
    targets of one set of sources.

    Args:
        data: with every contrast as source and as target.
        predictor: of the network.
        output_dir: the run folder.
        source_counts: how many sources a task may have, -1 all but one; None is any number.
        protocol: ours, or a paper's, by which figures are computed; its region is what is printed.

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
        protocol: Protocol = OURS,
    ) -> None:
        if source_counts is not None and (
            not source_counts or any(count < 1 and count != -1 for count in source_counts)
        ):
            raise ValueError(f"source_counts must be numbers from 1, or -1 for all but one, got {list(source_counts)}")
        self.data, self.predictor, self.output_dir = data, predictor, absolute(Path(output_dir))
        self.source_counts, self.protocol = source_counts, protocol

    def run_after(self, evaluator: Any) -> None:
        """Evaluate, then write the matrix, whoever could not be evaluated.

        Args:
            evaluator: of one task, into the same folder, which has a `run`.

        Raises:
            ValueError: a subject failed in either; each is named, after the others are done.
        """
        fault: SomeFailed | None = None
        try:
            evaluator.run()
        except SomeFailed as error:
            fault = error
        self.run()
        if fault is not None:
            raise fault

    def run(self) -> None:
        """Synthesise every task of every subject, and write the matrix.

        Raises:
            ValueError: a subject failed; each is named, after the others are done.
        """
        cases: list[Row] = []
        failures: list[SubjectError] = list(self.data.failures)
        for index in tqdm(range(len(self.data)), desc="every task", unit="subject"):
            name = f"number {index}"
            try:
                item = self.data[index]
                name = str(item["subject"])
                cases += self._tasks(item)
            except SubjectError as fault:
                failures.append(fault)
            except (ValueError, RuntimeError, OSError) as error:
                failures.append(SubjectError(name, None, str(error) or type(error).__name__))
        self._write(cases)
        if report_failures(failures, total=len(self.data) + len(self.data.failures), what="evaluated"):
            raise ValueError(f"{len(failures)} subjects are not in the matrix, the others are")

    def _tasks(self, item: dict[str, Any]) -> list[Row]:
        """A row a task and region of one subject."""
        present = torch.nonzero(item["available"]).flatten().tolist()
        steps = np.linalg.norm(np.asarray(item["affine"])[:3, :3], axis=0)
        measured: dict[str, Any] = {
            "spacing": (float(steps[0]), float(steps[1]), float(steps[2])),
            "data_range": 1.0,
            "protocol": self.protocol,
        }
        cases: list[Row] = []
        counts: Sequence[int] = range(1, len(present))
        if self.source_counts is not None:
            counts = sorted({len(present) - 1 if count == -1 else count for count in self.source_counts} & set(counts))
        for many in counts:
            for sources in combinations(present, many):
                is_source = torch.zeros(len(item["available"]), dtype=torch.bool)
                is_source[list(sources)] = True
                predicted = self.predictor(item["image"], is_source, item["available"] & ~is_source, item["dataset"])
                mask = item["mask"][0].to(predicted.device)
                for target in sorted(set(present) - set(sources)):
                    truth = item["target"][target].to(predicted.device)
                    compared = compare_volumes(predicted[target].float().clamp(0, 1), truth, mask=mask, **measured)
                    task = {"subject": item["subject"], "dataset": item["dataset"], "sources": sources}
                    slices = {name: float(compared.slices[name][item["slices"]].nanmean()) for name in FIGURES}
                    for region, figures in zip(REGIONS, (slices, compared.volume, compared.brain), strict=True):
                        values = {name: float(figures[name]) for name in MEASURED}
                        cases.append({**task, "target": target, "region": region, **values})
        return cases

    def _write(self, cases: Sequence[Row]) -> None:
        """Both tables, each whole or not at all, and in words the means over a dataset's tasks."""
        by_task: dict[tuple[str, tuple[int, ...], int, str], list[Row]] = {}
        for case in cases:
            key = (case["dataset"], case["sources"], case["target"], case["region"])
            by_task.setdefault(key, []).append(case)
        rows = []
        for (dataset, sources, target, region), ours in sorted(by_task.items(), key=lambda entry: _place(entry[0])):
            means: Row = {"dataset": dataset, "region": region, "subjects": len(ours), **self._named(sources, target)}
            for name in MEASURED:
                measured = [case[name] for case in ours if not np.isnan(case[name])]
                means[name] = float(np.mean(measured)) if measured else float("nan")
                means[f"{name}_sd"] = float(np.std(measured, ddof=1)) if len(measured) > 1 else float("nan")
            rows.append(means)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        named = [{**case, **self._named(case["sources"], case["target"])} for case in cases]
        for file, columns, content in ((MATRIX, MATRIX_COLUMNS, rows), (CASES, CASE_COLUMNS, named)):
            with whole_file(self.output_dir / file) as partial:
                write_table(partial, columns, content)
        shown = [row for row in rows if row["region"] == self.protocol.region]
        for dataset in dict.fromkeys(row["dataset"] for row in shown):
            for what, many in (("one-to-one", False), ("many-to-one", True)):
                ours = [row for row in shown if row["dataset"] == dataset and ("+" in row["sources"]) == many]
                if ours:
                    psnr, ssim = (float(np.nanmean([row[name] for row in ours])) for name in MEASURED)
                    print(f"{dataset}, {what}, {len(ours)} tasks: psnr {psnr:.2f}, ssim {ssim:.4f}")

    def _named(self, sources: Sequence[int], target: int) -> Row:
        names = self.data.sources
        return {"sources": "+".join(names[number] for number in sources), "target": names[target]}


def _place(key: tuple[str, tuple[int, ...], int, str]) -> tuple[str, int, tuple[int, ...], int, str]:
    return key[0], len(key[1]), key[1], key[2], key[3]
