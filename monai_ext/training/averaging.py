"""The running mean of a network's weights, which does better on images unlike those it was trained on than any one
step's weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def running_mean(network: nn.Module, decay: float) -> AveragedModel:
    """Make the mean that `PairedAdversarialTrainer(averaged=...)` keeps: exponential, and of all steps at first.

    A batch norm's statistics are averaged as the weights are, for those of the last step belong to other weights.

    Args:
        network: what is trained.
        decay: below 1, the mean's own part in the next one: 0.999 remembers about a thousand steps.

    Returns:
        A copy of the network; its `module` is called as the network is.

    Raises:
        ValueError: the decay is not from 0 to below 1.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise ValueError(f"decay must be from 0 to below 1, got {decay!r}")

    def update(means: tuple[Tensor, ...] | list[Tensor], values: tuple[Tensor, ...] | list[Tensor], count: Any) -> None:
        # torch's own exponential mean would keep the first step's weights for as long as a later one's
        share = max(1 - decay, 1 / (int(count) + 1))
        if means[0].is_floating_point():
            torch._foreach_lerp_(list(means), list(values), share)
        else:  # how many batches a norm has seen
            torch._foreach_copy_(list(means), list(values))

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
