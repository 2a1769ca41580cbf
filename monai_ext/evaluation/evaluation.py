"""Evaluation: every test subject through the network, unharmed and perturbed, into a run folder.

One plain loop. MONAI's evaluator takes each item once, while here a subject goes through several times and one that
fails must not end the run.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from monai_ext.data.datalist import SubjectError, check_name, report_failures
from monai_ext.data.perturbations import Perturbation, perturb, randomize
from monai_ext.data.prepared_volumes import PreparedVolumes
from monai_ext.evaluation.metrics import FIGURES, VolumeFigures, compare_volumes
from monai_ext.evaluation.protocol import OURS, REGIONS, Protocol
from monai_ext.evaluation.run_folder import (
    KEY,
    SLICE_COLUMNS,
    SUBJECT_COLUMNS,
    Row,
    pack,
    summary,
    whole_run,
    write_image,
    write_table,
)
from monai_ext.files import absolute, write_json
from monai_ext.modalities import make_task
from monai_ext.provenance import warning

__all__ = ["Evaluation", "PreparedVolumes", "SomeFailed"]

logger = logging.getLogger(__name__)

KEEP = ("three", "all", "none")
ABOUT = (
    "bundle", "name", "version", "split", "datalist_sha256", "weights", "parameters", "amp", "device", "software",
)  # fmt: skip
DATA_RANGE = 1.0
HIGHEST = 1 + 1e-4  # of prepared images: 16 bits times a slope rounded to single precision


class SomeFailed(ValueError):
    """Some subjects could not be evaluated; what is of the others is written."""


class Items(Interface):
    """Subjects by number, as `PreparedVolumes` gives them; "available" may be left out, where nothing is missing."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One subject's image, target and names."""


@dataclass
class _Result:
    """One subject's rows; `index` is its number in the data."""

    index: int
    subject: str
    person: str
    dataset: str
    rows: list[Row] = field(default_factory=list)
    slice_rows: list[Row] = field(default_factory=list)

    def add(
        self, figures: Mapping[str, VolumeFigures], perturbation: Perturbation, level: float, slices: Sequence[int]
    ) -> None:
        for target, measured in figures.items():
            values = (self.subject, self.dataset, perturbation.kind, perturbation.contrast, level, target)
            key = dict(zip(KEY, values, strict=True))
            chosen = [{name: float(measured.slices[name][k]) for name in FIGURES} for k in slices]
            self.slice_rows += [{**key, "slice": int(k), **row} for k, row in zip(slices, chosen, strict=True)]
            means = {name: mean([row[name] for row in chosen]) for name in FIGURES}
            for region, region_figures in zip(REGIONS, (means, measured.volume, measured.brain), strict=True):
                self.rows.append({**key, "region": region, **region_figures})


class Evaluation:
    """Predict every subject, unharmed and under each perturbation, and write `output_dir` as `run_folder` says.

    Args:
        data: the subjects' volumes, `PreparedVolumes` as a rule.
        predictor: makes (N, I, J, K) of a subject's image (M, I, J, K), channels as in `target` and `sources`; what it
            gives is clipped to [0, 1].
        sources, target: contrasts, by any of their names.
        output_dir: the run folder.
        about: what runs and on what: all that ABOUT lists, and "site" where one was named.
        perturbations: `Perturbation`s or their arguments.
        keep: of which subjects volumes stay: "three" are the worst, the median and the best by PSNR in the brain, or
            "all" or "none".
        seed: of the perturbations.
        overwrite: whether results that are there may be replaced.
        by_dataset: whether the predictor is told the subject's dataset too.
        protocol: ours, or a paper's, by which figures are computed.
        inferer: what the predictor takes images through, whose engines the record names.

    Raises:
        ValueError: an argument that may not be, or does not go with the data.
    """

    def __init__(
        self,
        *,
        data: Items,
        predictor: Callable[..., Tensor],
        sources: Sequence[str],
        target: Sequence[str],
        output_dir: Path | str,
        about: Mapping[str, Any],
        perturbations: Sequence[Perturbation | Mapping[str, Any]] = (),
        keep: str = "three",
        seed: int = 0,
        overwrite: bool = False,
        by_dataset: bool = False,
        protocol: Protocol = OURS,
        inferer: object = None,
    ) -> None:
        self.protocol, self.inferer = protocol, inferer
        self.data, self.predictor, self.about, self.by_dataset = data, predictor, about, by_dataset
        task = make_task(sources, target)
        self.sources, self.target = task.inputs, task.outputs
        self.output_dir, self.keep, self.seed, self.overwrite = absolute(Path(output_dir)), keep, seed, overwrite
        for name, ours in (("sources", self.sources), ("target", self.target)):
            theirs = tuple(getattr(data, name, ours))
            if theirs != ours:
                raise ValueError(f"{name} must be the data's, {', '.join(theirs)}, got {', '.join(ours)}")
        if keep not in KEEP:
            raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
        lacking = [key for key in ABOUT if key not in about]
        if lacking:
            raise ValueError(f"about must tell {', '.join(ABOUT)}; it lacks {', '.join(lacking)}")
        chosen = [p if isinstance(p, Perturbation) else Perturbation(**p) for p in perturbations]
        self.perturbations = [Perturbation("none"), *(p for p in chosen if p.kind != "none")]
        for perturbation in self.perturbations[1:]:
            if perturbation.contrast not in self.sources:
                wanted = f"{perturbation.kind} {perturbation.contrast}"
                raise ValueError(f"only a source can be perturbed, {', '.join(self.sources)}, got {wanted}")
        kinds = [(p.kind, p.contrast) for p in self.perturbations]
        if len(set(kinds)) < len(kinds):
            raise ValueError("each kind of perturbation of a contrast is given once, with all of its levels")

    def run(self) -> None:
        """Evaluate, write the folder and print a summary.

        Raises:
            ValueError: a subject failed; each is named, after the others are done.
        """
        with whole_run(self.output_dir, overwrite=self.overwrite) as folder:
            predicted = folder / "predicted"
            predicted.mkdir()
            results, failures = self._evaluate_all(predicted)
            report_failures(failures, total=len(results) + len(failures), what="evaluated")
            if not results:
                raise ValueError(f"none of {len(failures)} subjects could be evaluated: nothing was written")
            rows = [row for result in results for row in result.rows]
            kept_cases = chosen_cases(rows) if self.keep == "three" else {}
            (folder / "volumes").mkdir()
            for result in results:
                if self.keep == "all" or result.subject in kept_cases.values():
                    self._write_volumes(folder / "volumes" / result.subject, result, predicted)
            write_table(folder / "subjects.csv", SUBJECT_COLUMNS, rows)
            write_table(folder / "slices.csv", SLICE_COLUMNS, [row for result in results for row in result.slice_rows])
            write_json(folder / "run.json", self._record(results, failures, kept_cases))
        perturbations = [perturbation.described() for perturbation in self.perturbations]
        print(summary(rows, perturbations, region=self.protocol.region))
        print(f"written to {self.output_dir}")
        if failures:
            total = len(results) + len(failures)
            raise SomeFailed(f"{len(failures)} of {total} subjects could not be evaluated, the others were")

    def _evaluate_all(self, predicted: Path) -> tuple[list[_Result], list[SubjectError]]:
        """Every subject's result, in order, with its unharmed prediction stored in `predicted`."""
        results: list[_Result] = []
        failures = list(getattr(self.data, "failures", ()))
        volumes = sum(sum(level > 0 or p.kind == "none" for level in p.levels) for p in self.perturbations)
        with tqdm(total=len(self.data) * volumes, desc="evaluating", unit="volume") as bar:
            for index in range(len(self.data)):
                try:
                    result, prediction = self._evaluate(index, bar)
                    for other in results:
                        if other.subject == result.subject:
                            raise SubjectError(result.subject, None, _twice(result.dataset, other.dataset))
                except SubjectError as fault:
                    failures.append(fault)
                else:
                    results.append(result)
                    if self.keep != "none":
                        np.save(predicted / f"{index}.npy", pack(prediction))
                bar.update(volumes * (index + 1) - bar.n)
        return results, failures

    def _evaluate(self, index: int, bar: tqdm) -> tuple[_Result, np.ndarray]:
        """One subject under every perturbation, and its unharmed prediction; whatever fails is its SubjectError."""
        name = f"number {index}"
        try:
            item = self.data[index]
            name = str(item["subject"])
            check_name(name, key="subject", subject=name)
            for key in ("image", "target"):
                low, high = (float(value) for value in item[key].aminmax())
                if not (low >= 0 and high <= HIGHEST):
                    raise ValueError(f"its {key} must be in [0, 1], got {low:g} to {high:g}: prepare it")
            bar.set_postfix_str(name)
            result = _Result(index, name, str(item.get("person", name)), str(item["dataset"]))
            prediction = self._predict(item["image"], item)
            unharmed = self._compare(prediction, item)
            bar.update()
            for perturbation in self.perturbations:
                if not self._has(item, perturbation.contrast):
                    continue
                draw = randomize(perturbation, tuple(item["image"].shape[1:]), seed=self.seed, subject=name)
                for level in perturbation.levels:
                    figures = unharmed
                    if level > 0:
                        harmed = perturb(perturbation, item["image"], draw, level=level, sources=self.sources)
                        figures = self._compare(self._predict(harmed, item), item)
                        bar.update()
                    result.add(figures, perturbation, level, item["slices"])
        except SubjectError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            logger.debug("%s failed", name, exc_info=True)
            raise SubjectError(name, None, str(error) or type(error).__name__) from error
        return result, prediction.cpu().numpy()

    def _predict(self, image: Tensor, item: Mapping[str, Any]) -> Tensor:
        """(M, I, J, K) -> (N, I, J, K) in [0, 1]"""
        with torch.inference_mode():
            prediction = self.predictor(image, *([str(item["dataset"])] if self.by_dataset else [])).float()
        if prediction.shape != item["target"].shape:
            shapes = f"{tuple(item['target'].shape)}, got {tuple(prediction.shape)}"
            raise ValueError(f"the predictor must give {', '.join(self.target)} of shape {shapes}")
        return prediction.clamp(0, 1)

    def _compare(self, prediction: Tensor, item: Mapping[str, Any]) -> dict[str, VolumeFigures]:
        """The figures of every target that the subject has."""
        device = prediction.device  # where the metrics are computed too
        mask, spacing = item["mask"][0].to(device), np.linalg.norm(np.asarray(item["affine"])[:3, :3], axis=0)
        steps = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        measured: dict[str, Any] = {"data_range": DATA_RANGE, "protocol": self.protocol}
        return {
            contrast: compare_volumes(p, t.to(device), mask=mask, spacing=steps, **measured)
            for contrast, p, t in zip(self.target, prediction, item["target"], strict=True)
            if self._has(item, contrast)
        }

    def _has(self, item: Mapping[str, Any], contrast: str) -> bool:
        if not contrast or "available" not in item:
            return True
        return bool(item["available"][(*self.sources, *self.target).index(contrast)])

    def _write_volumes(self, folder: Path, result: _Result, predicted: Path) -> None:
        item = self.data[result.index]
        affine = np.asarray(item["affine"], dtype=np.float64)
        folder.mkdir()
        images = [(contrast, contrast, image) for contrast, image in zip(self.sources, item["image"], strict=True)]
        images += [
            (contrast, f"{contrast}_truth", image) for contrast, image in zip(self.target, item["target"], strict=True)
        ]
        for contrast, name, image in images:
            if self._has(item, contrast):
                write_image(folder / f"{name}.nii.gz", pack(image.numpy()), affine)
        by = f"by {self.about['name']} {self.about['version']} from {', '.join(self.sources)}"
        for contrast, stored in zip(self.target, np.load(predicted / f"{result.index}.npy"), strict=True):
            path = folder / f"{contrast}_synthetic.nii.gz"
            write_image(path, stored, affine, description=f"SYNTHETIC {contrast} {by}")
            record = {
                "synthetic": True,
                "warning": warning(contrast),
                "target": contrast,
                "sources": list(self.sources),
                "subject": result.subject,
                "site": self.about.get("site"),
                **{key: self.about[key] for key in ("bundle", "version", "weights", "software")},
            }
            write_json(folder / f"{contrast}_synthetic.json", record)

    def _record(
        self, results: Sequence[_Result], failures: Sequence[SubjectError], kept_cases: Mapping[str, str]
    ) -> dict[str, Any]:
        clipped = {"data_range": DATA_RANGE, "clipped_to": [0, 1], "seed": self.seed}
        return {
            **{key: self.about[key] for key in ABOUT},
            "device": str(self.about["device"]),
            "engines": list(getattr(getattr(self.inferer, "engine", None), "used", ())),
            "site": self.about.get("site"),
            "sources": list(self.sources),
            "target": list(self.target),
            "dataset": ", ".join(sorted({result.dataset for result in results})),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "protocol": {**clipped, **getattr(self.data, "protocol", {}), **self.protocol.described()},
            "perturbations": [perturbation.described() for perturbation in self.perturbations],
            "subjects": len(results),
            "people": {result.subject: result.person for result in results if result.person != result.subject},
            "failed": [{"subject": fault.subject, "reason": fault.reason} for fault in failures],
            "kept": dict(kept_cases),
        }


def _twice(dataset: str, other: str) -> str:
    if dataset == other:
        return "is there twice; give each visit once"
    return f"is a name in {other} and in {dataset}: evaluate the datasets one at a time, or rename one of the two"


def chosen_cases(rows: Sequence[Row]) -> dict[str, str]:
    """Choose the worst, the median and the best subject by their PSNR in the brain, over all targets.

    Args:
        rows: of subjects.csv.

    Returns:
        "worst", "median" and "best" -> subject.
    """
    psnr: dict[str, list[float]] = {}
    for row in rows:
        if row["perturbation"] == "none" and row["region"] == "brain":
            psnr.setdefault(row["subject"], []).append(row["psnr"])
    order = sorted(psnr, key=lambda subject: (mean(psnr[subject]), subject))
    return {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}


def mean(values: Sequence[float]) -> float:
    """Average the values that have a meaning; NaN if none has.

    Args:
        values: figures; one that is NaN has no meaning and does not count.

    Returns:
        Their arithmetic mean.
    """
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else math.nan
