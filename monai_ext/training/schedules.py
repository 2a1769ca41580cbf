"""How fast to learn, epoch by epoch."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant_then_linear(optimizer: Optimizer, *, epochs: int, constant: int) -> LambdaLR:
    """The optimizer's own rate for `constant` epochs, then in even steps down to 0, which `epochs` would reach."""
    if not 0 <= constant < max(epochs, 1):
        raise ValueError(f"constant must be from 0 to below the {epochs} epochs, got {constant}")
    return LambdaLR(optimizer, lambda epoch: min(1.0, max(0, epochs - epoch) / (epochs - constant)))
