"""How long to learn, and how fast, epoch by epoch."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from monai_ext.data.batching import Kind, group_by_kind


def epochs_of(*, epochs: int, steps: int | None, kinds: Sequence[Kind], batch_size: int, accumulate: int = 1) -> int:
    """Say how many epochs a training lasts: `epochs`, or as many as `steps` begin where these are given.

    Args:
        epochs: what there are without `steps`.
        steps: of the optimizer, in all, as the trainer counts them.
        kinds: each sample's, for a batch is of one kind.
        batch_size: samples a batch.
        accumulate: batches a step.

    Returns:
        How many epochs to run, the last one perhaps in part.
    """
    if steps is None:
        return epochs
    batches = sum(-(-len(group) // batch_size) for group in group_by_kind(kinds))
    return -(-steps // -(-batches // accumulate))


def constant_then_linear(optimizer: Optimizer, *, epochs: int, constant: int) -> LambdaLR:
    """Keep the optimizer's own rate for `constant` epochs, then go down to 0 in even steps, which `epochs` would
    reach.

    Args:
        optimizer: whose rate it is.
        epochs: of the training.
        constant: how many of them keep the rate.

    Returns:
        A scheduler to step after each epoch; the last epoch still has a rate above 0.

    Raises:
        ValueError: `constant` is below 0 or leaves no epoch.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule, rates = constant_then_linear(optimizer, epochs=4, constant=2), []
        >>> for _ in range(4):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [1.0, 1.0, 1.0, 0.5]
    """
    if not 0 <= constant < max(epochs, 1):
        raise ValueError(f"constant must be from 0 to below the {epochs} epochs, got {constant}")
    return LambdaLR(optimizer, lambda epoch: min(1.0, max(0, epochs - epoch) / (epochs - constant)))


def rates_of(optimizer: Optimizer) -> list[float]:
    """Give the rates that an optimizer was built with, whatever a schedule has made of them.

    Args:
        optimizer: whose rates.

    Returns:
        One a group.
    """
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def set_rates_of(optimizer: Optimizer, rates: Sequence[float], schedulers: Iterable[Any]) -> None:
    """Give an optimizer, and its schedules, other rates to begin with.

    Args:
        optimizer: whose rates.
        rates: one a group.
        schedulers: of all optimizers; this one's are left as they are, and it too, unless all are a factor by the
            epoch (`LambdaLR`).
    """
    own = [scheduler for scheduler in schedulers if getattr(scheduler, "optimizer", None) is optimizer]
    if not all(isinstance(scheduler, LambdaLR) for scheduler in own):
        return
    for scheduler in own:
        scheduler.base_lrs = list(rates)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "initial_lr" in group:
            group["initial_lr"] = rate


def set_rates(schedulers: Iterable[Any]) -> None:
    """Give optimizers the rates of the epoch that their schedules stand at, which may not be those they had there.

    Args:
        schedulers: those that are a factor by the epoch (`LambdaLR`); others are left as they are.
    """
    for scheduler in schedulers:
        if isinstance(scheduler, LambdaLR):
            each = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, base, factor in each:
                group["lr"] = base * factor(scheduler.last_epoch)
