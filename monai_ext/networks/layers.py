"""What more than one paper's network is made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InstanceNorm(nn.Module):
    """Instance norm with a learnt scale and shift a channel, like nn.InstanceNorm2d's but faster on a processor.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return instance_norm(x, self.weight.expand(x.shape[0], -1), self.bias.expand(x.shape[0], -1))


def instance_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise each channel of each image over space, then scale and shift it, in one pass over the features.

    Args:
        x: (B, C, H, W).
        scale, shift: (B, C), each image's own.

    Returns:
        (B, C, H, W).
    """
    if making_a_graph():  # of any batch size, whereas below it is a number of groups
        return F.instance_norm(x) * scale[:, :, None, None] + shift[:, :, None, None]
    rows = x.reshape(1, -1, x.shape[2], x.shape[3])  # each image's channels as channels of one
    if x.is_cuda:  # where group_norm leaves reduced precision under autocast
        y = F.batch_norm(rows, None, None, scale.float().flatten(), shift.float().flatten(), training=True)
    else:  # where it is several times faster
        y = F.group_norm(rows, rows.shape[1], scale.flatten().to(x.dtype), shift.flatten().to(x.dtype))
    return y.reshape(x.shape)


def making_a_graph() -> bool:
    """Say whether this is a traced or exported graph, which has no branches that hang on values.

    Returns:
        True in a trace, an export and torch.compile; False in a script, which keeps its branches, and in plain PyTorch.
    """
    if torch.jit.is_scripting():
        return False
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
