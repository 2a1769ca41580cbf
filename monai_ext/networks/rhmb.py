"""The residual hybrid Mamba block of HMF-MambaINR (Luo and Lyu, 2026, Fig. 2), its scan of a map, and its convolutions.

Numbers that the paper leaves open are those of Mamba (Gu and Dao, 2023) and I2I-Mamba (arXiv 2405.14022).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext import ops


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, ReLU.

    Args:
        before, after: channels in and out.
        kernel_size, stride, dilation: as of nn.Conv2d; the padding keeps the size.
    """

    def __init__(self, before: int, after: int, kernel_size: int = 3, *, stride: int = 1, dilation: int = 1) -> None:
        padding = kernel_size // 2 * dilation
        super().__init__(
            nn.Conv2d(
                before,
                after,
                kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                bias=False,
                padding_mode="reflect" if kernel_size == 7 else "zeros",
            ),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        )


class UpBlock(nn.Sequential):
    """Transposed convolution to twice the size, its kernel a multiple of its stride; batch norm, ReLU.

    Args:
        before, after: channels in and out.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        )


class ResidualConvs(nn.Module):
    """x + F(F(x)), F a ConvBlock: the RCG, and the end of each RHMB.

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvBlock(channels, channels), ConvBlock(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return x + self.convs(x)


class DirectionalScan(nn.Module):
    """The SSM of Sec. 3.2: rows and columns of a map, then both from their ends, scanned in one call and added up.

    Each direction has parameters of its own, initialised as Mamba's.

    Args:
        channels: of the map.
        state_size: N, states a channel.
        rank: of the projection to the steps.
        directions: how many of the four are scanned.
    """

    def __init__(self, channels: int, *, state_size: int, rank: int, directions: int) -> None:
        super().__init__()
        ops.load("selective_scan")
        self.directions, self.sections = directions, [rank, state_size, state_size]
        self.project = nn.Conv2d(channels, directions * sum(self.sections), 1, bias=False)
        self.to_step = nn.Parameter(torch.empty(directions, channels, rank).uniform_(-1, 1) * rank**-0.5)
        steps = torch.exp(torch.empty(directions * channels).uniform_(-6.9, -2.3))  # of 0.001 to 0.1
        self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # softplus gives them back
        rates = torch.arange(1.0, state_size + 1).repeat(directions * channels, 1)
        self.log_rates = nn.Parameter(rates.log())
        self.skip = nn.Parameter(torch.ones(directions * channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)"""
        groups = [self.directions, -1]
        maps = self.project(x).unflatten(1, groups)
        low_rank, B, C = self._lines([maps[:, number] for number in range(self.directions)]).split(self.sections, 2)
        delta = torch.matmul(self.to_step, low_rank)
        wide = x if x.dtype == torch.float64 else x.float()  # the scan's own precision
        u = self._lines([wide] * min(2, self.directions))  # what is scanned from both ends is given once
        y = ops.selective_scan(
            u.flatten(1, 2),
            delta.to(u.dtype).flatten(1, 2),
            -torch.exp(self.log_rates),
            B.to(u.dtype),
            C.to(u.dtype),
            self.skip,
            delta_bias=self.step_bias,
            delta_softplus=True,
        )
        rows = y[:, : x.shape[1]].unflatten(2, [x.shape[2], x.shape[3]])
        if self.directions == 1:
            return rows
        return rows + y[:, x.shape[1] :].unflatten(2, [x.shape[3], x.shape[2]]).transpose(2, 3)

    def _lines(self, maps: list[Tensor]) -> Tensor:
        """G of (B, D, H, W) -> (B, G, D, L): the rows of the first, the columns of the second, and so on in turn."""
        lines = [(x if number % 2 == 0 else x.transpose(2, 3)).flatten(2) for number, x in enumerate(maps)]
        return torch.stack(lines, 1)


class RHMB(nn.Module):
    """Residual hybrid Mamba block (Fig. 2): gated scans for context, channel mixing, convolutions for what is near.

    Args:
        channels: in and out.
        state_size: N of the scan.
        expand: channels of the scan, in channels of the block.
        directions: how many of the four are scanned.
    """

    def __init__(self, channels: int, *, state_size: int = 16, expand: int = 2, directions: int = 4) -> None:
        super().__init__()
        inner = expand * channels
        self.norm = nn.LayerNorm(channels)
        self.embed = nn.Conv2d(channels, 2 * inner, 1, bias=False)
        self.near = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scan = DirectionalScan(inner, state_size=state_size, rank=max(1, channels // 16), directions=directions)
        self.project = nn.Conv2d(inner, channels, 1, bias=False)
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.convs = ResidualConvs(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        tokens = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        gate, z = self.embed(tokens).chunk(2, 1)
        z = self.scan(F.silu(self.near(z)))
        context = x + self.project(z * F.silu(gate))
        return self.convs(self.mix(torch.cat([x, context], 1)))
