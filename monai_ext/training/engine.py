"""The one paired adversarial trainer, on MONAI's and ignite's engines, and the evaluator that validates it.

Why MONAI's own do not serve: its AdversarialTrainer shows the discriminator the sources as "real", and its
GanTrainer draws random latents. Here the target is real, the prediction is not, and both are judged with the sources.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from monai.engines import SupervisedEvaluator, Trainer
from monai.engines.utils import IterationEvents
from monai.engines.workflow import Workflow
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from monai_ext.runtime import autocast, wanted_dtype
from monai_ext.training.checkpoints import Checkpoints
from monai_ext.training.objectives import Objective
from monai_ext.training.schedules import rates_of, set_rates, set_rates_of


class LossNotFinite(FloatingPointError):
    """Training went astray: which term, where, and on whose images."""


class PairedAdversarialTrainer(Trainer):
    """Train discriminator and network in turn, on batches of `SliceDataset`; without a discriminator, the network
    alone.

    `state.output[0]` has "loss" (the network's), every term by name, and "pred"; after an epoch `state.metrics` has
    each term's mean and "data_wait", the share of the time that was spent waiting for data.

    Args:
        device: where to train.
        max_epochs: how many, in all.
        train_data_loader: batches; where its `batch_sampler` counts what was trained on (`advance`), a stop within
            an epoch is known to the checkpoint.
        network, optimizer: what is trained, and how.
        objective: what is minimised, see `monai_ext.training.objectives`.
        discriminator, discriminator_optimizer: both or neither.
        schedulers: stepped after each epoch.
        amp: true for bfloat16 where the device is faster for it, "bf16", "fp16" (CUDA, with loss scaling), or false.
        accumulate: batches whose gradients are averaged for one step.
        handlers: MONAI's and ignite's; a `Checkpoints` belongs last.
        resume: go on from the last checkpoint.
        steps: of the optimizer, in all, in place of `max_epochs`; the last epoch ends with the last of them.
        averaged: the network's running mean, updated after each step; give its `module` to the evaluator, so that what
            is kept is what was validated.

    Raises:
        ValueError: a discriminator without its optimizer, or a number that may not be.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        network: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: Optimizer | None = None,
        schedulers: Sequence[Any] = (),
        amp: bool | str = True,
        accumulate: int = 1,
        handlers: Sequence[Any] = (),
        resume: bool = False,
        steps: int | None = None,
        averaged: AveragedModel | None = None,
    ) -> None:
        if (discriminator is None) != (discriminator_optimizer is None):
            raise ValueError("give discriminator and discriminator_optimizer, or neither")
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}")
        if steps is not None:
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
                raise ValueError(f"steps must be a whole number of at least 1, or null, got {steps!r}")
            batches = len(train_data_loader)  # type: ignore[arg-type]
            each = -(-batches // accumulate)  # an epoch's steps, the last of them perhaps of fewer batches
            max_epochs = -(-steps // each)
            last_batch = (max_epochs - 1) * batches + min((steps - (max_epochs - 1) * each) * accumulate, batches)
        self.network, self.optimizer = network.to(device), optimizer
        self.objective, self.schedulers, self.accumulate, self.resume = objective, tuple(schedulers), accumulate, resume
        self.discriminator = None if discriminator is None else discriminator.to(device)
        self.discriminator_optimizer = discriminator_optimizer
        self.averaged = None if averaged is None else averaged.to(device)
        self.precision = amp
        scaling = wanted_dtype(torch.device(device), amp) is torch.float16
        self.scalers = [torch.amp.GradScaler("cuda", enabled=scaling) for _ in range(2)]
        self.handlers = tuple(handlers)
        self.checkpoints: Checkpoints | None = None
        self._predict: nn.Module = _Predict(self.network, objective)
        self._judge: nn.Module | None = self.discriminator
        if dist.is_initialized():
            unused = getattr(objective, "parts_unused", False)
            self._predict = _shared(self._predict, device, unused=unused)
            self._judge = None if self.discriminator is None else _shared(self.discriminator, device, unused=unused)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            prepare_batch=to_device,
            decollate=False,
            handlers=None,
        )
        _Clock().attach(self)
        _Means().attach(self)
        if steps is not None:
            # of no argument: ignite would hand the engine to `terminate_epoch`, which takes it as a wish for no events
            self.add_event_handler(Events.ITERATION_COMPLETED(once=last_batch), lambda: self.terminate_epoch())
        self.add_event_handler(Events.EPOCH_COMPLETED, self._step_schedulers)
        self._register_handlers(handlers)  # after ours, for they use what ours put into the state

    def parts(self) -> dict[str, Any]:
        """All that a checkpoint needs beside the random numbers.

        Returns:
            By name, each with `state_dict` and `load_state_dict`; the sampler is among them where it has `advance`.
        """
        parts: dict[str, Any] = {"network": self.network, "optimizer": self.optimizer, "scaler": self.scalers[0]}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
            parts["discriminator_optimizer"] = self.discriminator_optimizer
            parts["discriminator_scaler"] = self.scalers[1]
        parts.update({f"scheduler_{number}": scheduler for number, scheduler in enumerate(self.schedulers)})
        sampler = self._sampler()
        if sampler is not None:
            parts["sampler"] = sampler
        if self.averaged is not None:
            parts["averaged"] = self.averaged
        return parts

    @property
    def kept(self) -> nn.Module:
        """Whose weights are written: the running mean's where there is one, the network's own otherwise."""
        return self.network if self.averaged is None else self.averaged.module

    def run(self) -> None:  # type: ignore[override]
        """Train to the last epoch, from the beginning or, with `resume`, from the newest checkpoint.

        Raises:
            ValueError: there are checkpoints or weights of an earlier training, and no `resume`; or none to resume
                from.
            LossNotFinite: a term is NaN or infinite.
        """
        if self.checkpoints is not None:
            if self.resume:
                optimizers = [one for one in (self.optimizer, self.discriminator_optimizer) if one is not None]
                asked = [rates_of(optimizer) for optimizer in optimizers]
                self.state.epoch = self.checkpoints.restore(self)
                for optimizer, rates in zip(optimizers, asked, strict=True):  # a rate that was lowered is meant
                    set_rates_of(optimizer, rates, self.schedulers)
                set_rates(self.schedulers)  # as a training of this length has them, if it is to be longer than it was
                self.state.iteration = self.state.epoch * (self.state.epoch_length or 0)
                if self.state.epoch >= self.state.max_epochs:
                    self.logger.info(f"nothing to do: {self.state.epoch} of {self.state.max_epochs} epochs are done")
                    return
            elif any(self.checkpoints):
                raise ValueError(
                    f"{self.checkpoints.folder} holds the checkpoints of an earlier training: go on from them with "
                    "--resume true, or choose another output_dir"
                )
            elif self.checkpoints.writes and self.checkpoints.weights.exists():
                raise ValueError(
                    f"{self.checkpoints.weights} is there already, and is where this training would write: begin with "
                    "it by --start_from, and choose another --weights, or remove it"
                )
        Workflow.run(self)  # not Trainer's, which makes a gradient scaler of its own

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> Any:  # noqa: ARG002
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking)
        self._predict.train()
        with autocast(self.state.device, self.precision):
            predicted = self._predict(batch)
        predicted = {name: value.float() for name, value in predicted.items()}
        self.fire_event(IterationEvents.FORWARD_COMPLETED)

        terms: dict[str, Tensor] = {}
        if self.discriminator is not None:
            assert self._judge is not None
            assert self.discriminator_optimizer is not None
            self.discriminator.train().requires_grad_(True)
            apart = {name: value.detach() for name, value in predicted.items()}
            ours = self.objective.discriminator_terms(self._cast(self._judge), batch, apart)
            self._descend(ours, self.discriminator_optimizer, self.scalers[1])
            terms.update({f"discriminator_{name}": value for name, value in ours.items()})
            self.discriminator.requires_grad_(False)  # the network's gradient passes through and leaves none in it

        judge = None if self.discriminator is None else self._cast(self.discriminator)
        ours = self.objective.generator_terms(judge, batch, predicted)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self._descend(ours, self.optimizer, self.scalers[0])
        terms.update({f"generator_{name}": value for name, value in ours.items()})
        self.fire_event(IterationEvents.MODEL_COMPLETED)

        values = dict(zip(terms, torch.stack([value.detach() for value in terms.values()]).tolist(), strict=True))
        sampler = self._sampler()
        if sampler is not None:
            sampler.advance()
        loss = sum(value for name, value in values.items() if name.startswith("generator_"))
        return [{"loss": loss, **values, "pred": predicted["pred"].detach()}]

    def _descend(self, terms: Mapping[str, Tensor], optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Backwards through the terms' sum, and a step with the last of the batches that make one."""
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            self._refuse(terms)
        place = (self.state.iteration - 1) % self.state.epoch_length
        first = place - place % self.accumulate
        last = min(first + self.accumulate, self.state.epoch_length) - 1  # an epoch's last step may have fewer
        if place == first:
            optimizer.zero_grad(set_to_none=True)
        scaler.scale(total / (last - first + 1)).backward()
        if place == last:
            scaler.step(optimizer)
            scaler.update()
            if self.averaged is not None and optimizer is self.optimizer:
                self.averaged.update_parameters(self.network)

    def _refuse(self, terms: Mapping[str, Tensor]) -> None:
        broken = ", ".join(f"{name} is {value.item()}" for name, value in terms.items() if not torch.isfinite(value))
        subjects = ", ".join(sorted(set(self.state.batch.get("subject", ["unknown"]))))
        last = list(self.checkpoints)[-1:] if self.checkpoints is not None else []
        raise LossNotFinite(
            f"the loss is not finite at iteration {self.state.iteration} of epoch {self.state.epoch}: {broken}; "
            f"subjects: {subjects}; lower the learning rate, or look at these images; "
            + (f"the last good checkpoint is {last[0]}" if last else "no epoch was finished, so there is no checkpoint")
        )

    def _cast(self, module: nn.Module) -> Callable[..., Any]:
        """The module under mixed precision: what an objective does with its answer is not."""

        def call(*args: Any) -> Any:
            with autocast(self.state.device, self.precision):
                return module(*args)

        return call

    def _sampler(self) -> Any:
        sampler = getattr(self.data_loader, "batch_sampler", None)
        return sampler if hasattr(sampler, "advance") else None

    def _step_schedulers(self) -> None:
        for scheduler in self.schedulers:
            scheduler.step()


class PairedEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for batches of `SliceDataset`: "image", "label" and "pred" of each slice for the metrics.

    Args:
        objective: whose `predict` is asked.
        precision: as `amp` of the trainer.
        kwargs: of MONAI's `SupervisedEvaluator`.
    """

    def __init__(self, *, objective: Objective, precision: bool | str = True, **kwargs: Any) -> None:
        super().__init__(prepare_batch=to_device, **kwargs)
        self.objective, self.precision = objective, precision

    def predict(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Compute what the metrics see of a batch; the prediction is clipped to the range that images have.

        Args:
            batch: on any device.

        Returns:
            "image", "label" and "pred", each with its batch dimension.
        """

        def network(inputs: Tensor, *args: Any) -> Any:
            return self.inferer(inputs, self.network, *args)

        batch = self.prepare_batch(batch, self.state.device, self.non_blocking)
        with self.mode(self.network), autocast(self.state.device, self.precision):
            predicted = self.objective.predict(network, batch)["pred"]
        return {"image": batch["sources"], "label": batch["target"], "pred": predicted.float().clamp(0, 1)}

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        engine.state.output = self.predict(batchdata)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def to_device(batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False) -> dict[str, Any]:
    """Put a batch's tensors on the device; its names stay as they are.

    Args:
        batch: of `SliceDataset`.
        device: where to.
        non_blocking: as of ``Tensor.to``.

    Returns:
        Another dictionary; what is no tensor is the batch's own.
    """
    return {
        name: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


class _Predict(nn.Module):
    """The objective's way through the network as one module, so that every way is shared between processes."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self._objective = network, objective

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self._objective.predict(self.network, batch)


def _shared(module: nn.Module, device: torch.device | str, *, unused: bool) -> nn.Module:
    """Gradients averaged over the processes; each keeps its batch norm's statistics, rank 0's are stored.

    With `unused`, a batch may leave parts of the module without a gradient, and other parts in each process.
    """
    on_gpu = torch.device(device).type == "cuda"
    devices = [device] if on_gpu else None
    return DistributedDataParallel(module, devices, broadcast_buffers=False, find_unused_parameters=unused)


class _Clock:
    """The share of an epoch's time that went into waiting for data: `state.metrics["data_wait"]`."""

    def attach(self, engine: Engine) -> None:
        self.epoch, self.waiting = Timer(), Timer()
        self.epoch.attach(engine, start=Events.EPOCH_STARTED)
        batches = {"resume": Events.GET_BATCH_STARTED, "pause": Events.GET_BATCH_COMPLETED}
        self.waiting.attach(engine, start=Events.EPOCH_STARTED, **batches)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _end(self, engine: Engine) -> None:
        engine.state.metrics["data_wait"] = self.waiting.value() / self.epoch.value()


class _Means:
    """Each term's mean over the epoch, in `state.metrics`."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _begin(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def _add(self, engine: Any) -> None:
        self.count += 1
        for name, value in engine.state.output[0].items():
            if isinstance(value, float):
                self.sums[name] = self.sums.get(name, 0.0) + value

    def _end(self, engine: Engine) -> None:
        engine.state.metrics.update({name: total / self.count for name, total in self.sums.items()})
