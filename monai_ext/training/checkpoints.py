"""Checkpoints from which a killed training goes on to the same weights."""

import json
import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow

from monai_ext.files import absolute
from monai_ext.networks.adapters import newest_adapter, save_adapter
from monai_ext.weights import read, save_weights, write_tensors

logger = logging.getLogger(__name__)
KEPT = 2  # checkpoints: should the newest be damaged, there is the one before


class Checkpoints:
    """After each epoch, store all that training needs to go on, and the weights if validation has not been better.

    Attach it last, so that what it stores is what the next epoch begins with. Where the validator has not been asked at
    all by the end, for its interval is longer than the training, the last weights stay.

    Args:
        folder: for the checkpoints.
        weights: the file for the weights, a JSON beside it.
        about: what the JSON says.
        validator: the evaluator whose key metric chooses; without one each epoch's weights stay.
        writes: False in all but one of several processes.
    """

    def __init__(
        self,
        *,
        folder: Path | str,
        weights: Path | str,
        about: Mapping[str, Any],
        validator: Workflow | None = None,
        writes: bool = True,
    ) -> None:
        self.folder, self.weights = absolute(Path(folder)), absolute(Path(weights))
        self.about, self.validator, self.writes = dict(about), validator, writes

    def attach(self, trainer: Any) -> None:
        """Listen to the trainer, as ignite's handlers do.

        Args:
            trainer: a `PairedAdversarialTrainer`; it learns from where its `run` is to resume.
        """
        trainer.checkpoints = self
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, trainer: Any) -> None:
        """Store what the trainer has now, and remove checkpoints that are older than the last few.

        Args:
            trainer: whose epoch has ended, as `attach` has it called; in a process that does not write nothing is done.

        Raises:
            OSError: there is no room, or the folder may not be written to; the checkpoint before stays whole.
        """
        if not self.writes:
            return
        best = None if self.validator is None else self.validator.state
        last = trainer.state.epoch == trainer.state.max_epochs
        if best is None or best.best_metric_epoch == trainer.state.epoch or (last and best.best_metric_epoch < 1):
            self.write_weights(trainer)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "epoch": trainer.state.epoch,
            "about": json.dumps(self.about),
            "best": None if best is None else [best.best_metric, best.best_metric_epoch],
            "random": random_state(),
            "parts": {name: part.state_dict() for name, part in trainer.parts().items()},
        }
        write_tensors(self.folder / f"epoch_{trainer.state.epoch:05d}.pt", content)
        for old in list(self)[:-KEPT]:
            old.unlink()

    def write_weights(self, trainer: Any) -> None:
        """Write what is to be used later; a part of the network, where only a part was trained.

        Args:
            trainer: whose `kept` network is written, with `about` beside it.
        """
        save_weights(self.weights, trainer.kept, self.about)

    def __iter__(self) -> Iterator[Path]:
        """The files that are there, the oldest first."""
        yield from sorted(self.folder.glob("epoch_*.pt"))

    def restore(self, trainer: Any) -> int:
        """Put the trainer where the newest whole checkpoint left it.

        Args:
            trainer: with the parts that the stopped one had: their states are replaced, and all random generators'.

        Returns:
            The epoch that it had finished.

        Raises:
            ValueError: there is no whole checkpoint, or it has other parts or shapes than this trainer.
        """
        for path in reversed(list(self)):
            try:
                content = read(path)
            except ValueError as fault:
                logger.warning("%s; going on from the checkpoint before it", fault)
                continue
            self._put_back(trainer, path, content)
            logger.info("going on from %s", path)
            return int(content["epoch"])
        raise ValueError(f"{self.folder} holds no checkpoint to resume from: start without resume")

    def _put_back(self, trainer: Any, path: Path, content: Mapping[str, Any]) -> None:
        parts = trainer.parts()
        if set(parts) != set(content["parts"]):
            has, wanted = ", ".join(content["parts"]), ", ".join(parts)
            raise ValueError(f"{path} holds {has}; this training has {wanted}: resume with the settings it began with")
        for name, part in parts.items():
            try:
                part.load_state_dict(content["parts"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                arguments = json.loads(content["about"]).get("network_def")
                reason = " ".join(str(error).split())[:300]
                fault = f"its {name} does not fit ({reason}); it was made with network_def {arguments}"
                raise ValueError(f"{path}: {fault}") from error
        if self.validator is not None and content["best"] is not None:
            self.validator.state.best_metric, self.validator.state.best_metric_epoch = content["best"]
        set_random_state(content["random"])


def random_state() -> dict[str, Any]:
    """Tell the state of Python's, numpy's and torch's generators, as plain values that load without running code.

    Returns:
        "python", "numpy", "torch" and "cuda", the latter a tensor a device and [] without one.

    Example:
        >>> state = random_state()
        >>> drawn = random.random(), np.random.rand(), float(torch.rand(()))
        >>> set_random_state(state)
        >>> drawn == (random.random(), np.random.rand(), float(torch.rand(())))
        True
    """
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where `random_state` found them; CUDA's where there are as many devices as then.

    Args:
        state: of `random_state`.
    """
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *others = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *others))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class AdapterCheckpoints(Checkpoints):
    """As `Checkpoints`, but what is stored beside the trained weights is the newest site's adapter alone."""

    def write_weights(self, trainer: Any) -> None:
        """Write the newest site's adapter, and no other weights.

        Args:
            trainer: of a `PMMSynth` to which `add_site` has added the site.
        """
        save_adapter(trainer.kept, newest_adapter(trainer.kept), self.weights, about=self.about)
