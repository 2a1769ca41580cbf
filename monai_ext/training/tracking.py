"""A record of a training beside its numbers: the same validation slices pictured after each epoch, and what made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Events
from monai.handlers import MLFlowHandler
from torch.utils.data import Dataset, default_collate

from monai_ext.data.montage import montage
from monai_ext.files import absolute
from monai_ext.training.engine import PairedEvaluator

if TYPE_CHECKING:  # seconds to import, and only runs that are tracked need it
    from mlflow import MlflowClient

PICTURED = 3  # slices, spread evenly over the validation set


class Record:
    """Write `folder`/epoch_00001.png after each epoch: sources, prediction, truth and error of the same slices.

    Where the run is tracked by MLflow, the pictures go there too.

    Args:
        folder: for the pictures.
        evaluator: whose `predict` is asked.
        dataset: whose slices are shown.
        titles: of the columns.
        about: what made the run; in MLflow it becomes the run's parameters.
    """

    def __init__(
        self,
        *,
        folder: Path | str,
        evaluator: PairedEvaluator,
        dataset: Dataset[dict[str, Any]],
        titles: tuple[str, ...],
        about: Mapping[str, Any],
    ) -> None:
        self.folder, self.evaluator, self.about = absolute(Path(folder)), evaluator, about
        self.titles = tuple(titles)
        count = len(dataset)  # type: ignore[arg-type]
        places = np.linspace(0, count - 1, min(PICTURED, count) + 2)[1:-1]
        self.batch = default_collate([dataset[round(float(place))] for place in places])

    def attach(self, trainer: Any) -> None:
        """Listen to the trainer, as ignite's handlers do.

        Args:
            trainer: a `PairedAdversarialTrainer`; an `MLFlowHandler` of its `handlers` gets the pictures too.
        """
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.picture)

    def picture(self, trainer: Any) -> None:
        """Write the picture of the epoch that has ended.

        Args:
            trainer: whose epoch has ended, as `attach` has it called; its number names the file.
        """
        with torch.no_grad():
            shown = self.evaluator.predict(self.batch)
        rows = [
            _row(*(shown[key][number] for key in ("image", "pred", "label"))) for number in range(len(shown["pred"]))
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"epoch_{trainer.state.epoch:05d}.png"
        montage(rows, titles=self.titles, path=path, white=1.0)
        for handler in trainer.handlers:
            if isinstance(handler, MLFlowHandler) and handler.cur_run is not None:
                run = handler.cur_run.info.run_id
                handler.client.log_artifact(run, str(path), "pictures")
                self._describe(handler.client, run)

    def _describe(self, client: MlflowClient, run: str) -> None:
        """Once a run: what it was made by, and the config it runs, which MONAI writes beside it."""
        if "described" in client.get_run(run).data.tags:
            return
        for name, value in _flat(self.about):
            client.log_param(run, name, str(value)[:6000])  # MLflow's limit
        for config in sorted(self.folder.parent.glob("config_*.json"))[-1:]:
            client.log_artifact(run, str(config))
        client.set_tag(run, "described", "true")


def _row(image: torch.Tensor, predicted: torch.Tensor, truth: torch.Tensor) -> list[np.ndarray]:
    """Sources, then for each target its prediction, truth and error (five times enlarged); a volume's middle slice."""
    channels = [*image]
    for ours, real in zip(predicted, truth, strict=True):
        channels += [ours, real, (5 * (ours - real).abs()).clamp(0, 1)]
    flat = [channel if channel.dim() == 2 else channel[..., channel.shape[-1] // 2] for channel in channels]
    return [np.rot90(channel.float().cpu().numpy()) for channel in flat]


def _flat(about: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in about.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return pairs
