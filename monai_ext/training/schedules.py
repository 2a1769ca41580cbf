"""How fast to learn, epoch by epoch."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant_then_linear(optimizer: Optimizer, *, epochs: int, constant: int) -> LambdaLR:
    """Keep the optimizer's own rate for `constant` epochs, then go down to 0 in even steps, which `epochs` would
    reach.

    Args:
        optimizer: whose rate it is.
        epochs: of the training.
        constant: how many of them keep the rate.

    Raises:
        ValueError: `constant` is below 0 or leaves no epoch.
    """
    if not 0 <= constant < max(epochs, 1):
        raise ValueError(f"constant must be from 0 to below the {epochs} epochs, got {constant}")
    return LambdaLR(optimizer, lambda epoch: min(1.0, max(0, epochs - epoch) / (epochs - constant)))
