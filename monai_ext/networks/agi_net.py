"""AGI-Net, Song et al., arXiv 2411.14684, Fig. 4: kernels rolled group by group, for contrasts that do not align.

Where the paper is open, the composition is the one that gives its Tables VII and IX their parameter counts.
"""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext import ops
from monai_ext.ops.float_roll import rolled_conv
from monai_ext.ops.group_pool import group_pool

STAGES = ("down1", "down2", "down3", "body", "up1", "up2", "up3")


class GroupPool(nn.Module):
    """Grouped 3x3 convolution, LayerNorm over the channels, GELU, mean over space: how both parts of CAGR begin.

    Args:
        channels: in and out.
        groups: of the convolution.
        spatial_dims: 2 or 3.
    """

    def __init__(self, *, channels: int, groups: int, spatial_dims: int) -> None:
        super().__init__()
        self.conv = _conv(spatial_dims)(channels, channels, 3, padding=1, groups=groups)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """(B, C, *size), its channels to be scaled by (B, C) -> (B, C)"""
        bias = self.conv.bias
        assert bias is not None
        return group_pool(x, self.conv.weight, bias, self.norm.weight, self.norm.bias, self.conv.groups, scale)


class CrossGroupAttention(nn.Module):
    """Sec. III-A: each group of channels weighed by what it and all the others hold.

    Args:
        channels: of the features.
        groups: that they are cut into.
        spatial_dims: 2 or 3.
    """

    def __init__(self, *, channels: int, groups: int, spatial_dims: int) -> None:
        super().__init__()
        self.groups = groups
        self.pool = GroupPool(channels=channels, groups=groups, spatial_dims=spatial_dims)
        self.fuse = nn.Conv1d(2 * channels, channels, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) -> (B, C), the attention A"""
        z = self.pool(x).unflatten(1, (self.groups, -1))
        shuffled = z.transpose(1, 2).reshape(z.shape)  # channel shuffle: one channel of each group in turn
        pairs = torch.cat([z, shuffled], dim=2).flatten(1).unsqueeze(-1)
        return self.fuse(pairs).squeeze(-1).sigmoid()  # Eq. 1


class RoutingFunction(nn.Module):
    """Sec. III-B: from the features, how far to roll each group's kernels and how much the group counts.

    Args:
        channels: of the features.
        groups: that they are cut into.
        spatial_dims: 2 or 3.
    """

    def __init__(self, *, channels: int, groups: int, spatial_dims: int) -> None:
        super().__init__()
        self.groups, self.spatial_dims = groups, spatial_dims
        self.pool = GroupPool(channels=channels, groups=groups, spatial_dims=spatial_dims)
        self.offsets = nn.Linear(channels, spatial_dims * groups, bias=False)
        self.scale = nn.Linear(channels, groups)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.scale.weight)
        nn.init.ones_(self.scale.bias)  # so that training starts from plain kernels times sigmoid(1)

    def forward(self, x: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, *size), (B, C) -> offsets (B, n, dims), scale (B, n)"""
        z = self.pool(x, attention)
        return self.offsets(z).unflatten(1, (self.groups, self.spatial_dims)), self.scale(z).sigmoid()


class CAGR(nn.Module):
    """Cross Group Attention and Group-wise Rolling (Fig. 4), in place of a convolution that keeps the size.

    There is no stride and no dilation: a roll by 1 is to move a kernel by one pixel of the output. `with_cagr` puts it
    into other networks.

    Args:
        in_channels, out_channels: as of a convolution.
        kernel_size: odd and at least 3.
        groups: of input channels that roll together.
        spatial_dims: 2 or 3.
        rolling: False leaves the plain convolution (Table V).
        attention: False takes the features as they are (Table V).
        bias: the paper's have none.

    Raises:
        ValueError: the groups do not divide the channels, or the kernel is even or of 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        groups: int = 8,
        spatial_dims: int = 2,
        rolling: bool = True,
        attention: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups:
            raise ValueError(f"groups must divide in_channels, got groups={groups}, in_channels={in_channels}")
        if kernel_size < 3 or kernel_size % 2 == 0:
            why = "an even kernel has no centre and changes the size, and one of 1 has nothing to roll"
            raise ValueError(f"kernel_size must be odd and at least 3, for {why}, got {kernel_size}")
        ops.load("float_roll", "group_pool")
        self.padding = kernel_size // 2
        self.attention = (
            CrossGroupAttention(channels=in_channels, groups=groups, spatial_dims=spatial_dims) if attention else None
        )
        self.conv = _conv(spatial_dims)(in_channels, out_channels, kernel_size, padding=self.padding, bias=bias)
        self.routing = (
            RoutingFunction(channels=in_channels, groups=groups, spatial_dims=spatial_dims) if rolling else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) -> (B, O, *size)"""
        attention = None if self.attention is None else self.attention(x)
        # Eq. 2, x~ = x A, is left to those who read x~: they multiply what is smaller
        if self.routing is None:
            return self.conv(x if attention is None else _scaled(x, attention))
        offsets, scale = self.routing(x, attention)
        weight, bias = self.conv.weight, self.conv.bias
        return rolled_conv(x, weight, offsets, scale, bias, padding=self.padding, gain=attention)  # Eq. 4


class ResBlock(nn.Module):
    """z + F(relu(F(z))), with two layers that the caller chooses.

    Args:
        first, second: what F is, the first and the second time; both keep the shape.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, *size) -> (B, C, *size)"""
        return z + self.second(F.relu(self.first(z)))


class AGINet(nn.Module):
    """ResUnet with CAGR as the first convolution of both residual blocks of `stages`; `stages=()` is ResUnet itself.

    Args:
        spatial_dims: 2, or 3 as in Table X.
        in_channels: the source contrasts.
        out_channels: the target contrasts.
        width: channels at full resolution; they double at each of three halvings.
        groups: of channels that roll together, n in the paper.
        stages: which have CAGR, of down1 down2 down3 body up1 up2 up3 (Table IX).
        rolling: Group-wise Rolling (Table V).
        attention: Cross Group Attention (Table V).

    Raises:
        ValueError: a number or a stage that may not be.

    Example:
        >>> network = AGINet(in_channels=2, out_channels=1, width=8, groups=4)
        >>> network(torch.rand(1, 2, 17, 24)).shape
        torch.Size([1, 1, 17, 24])
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int = 2,
        out_channels: int = 1,
        width: int = 64,
        groups: int = 8,
        stages: Sequence[str] = ("down1", "down2", "down3", "body", "up1"),
        rolling: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for stage in stages:
            if stage not in STAGES:
                near = difflib.get_close_matches(stage, STAGES, n=1) or STAGES
                raise ValueError(f"stages must be of {', '.join(STAGES)}, got {stage!r}; did you mean {near[0]!r}?")
        conv = _conv(spatial_dims)

        def blocks(stage: str, channels: int) -> list[nn.Module]:
            def first() -> nn.Module:
                if stage not in stages:
                    return conv(channels, channels, 3, padding=1, bias=False)
                return CAGR(
                    channels, channels, groups=groups, spatial_dims=spatial_dims, rolling=rolling, attention=attention
                )

            return [ResBlock(first(), conv(channels, channels, 3, padding=1, bias=False)) for _ in range(2)]

        def down(stage: str, channels: int) -> nn.Sequential:
            halve = conv(channels, 2 * channels, 2, stride=2, bias=False)
            return nn.Sequential(*blocks(stage, channels), halve)

        def up(stage: str, channels: int) -> nn.Sequential:
            transposed = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
            double = transposed(2 * channels, channels, 2, stride=2, bias=False)
            return nn.Sequential(double, *blocks(stage, channels))

        self.head = conv(in_channels, width, 3, padding=1, bias=False)
        self.down1, self.down2, self.down3 = down("down1", width), down("down2", 2 * width), down("down3", 4 * width)
        self.body = nn.Sequential(*blocks("body", 8 * width))
        self.up1, self.up2, self.up3 = up("up1", 4 * width), up("up2", 2 * width), up("up3", width)
        self.tail = conv(width, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, *size) -> (B, K, *size), any size"""
        size = x.shape[2:]
        padding = [0, 0]
        for axis in range(len(size) - 1, 0, -1):
            padding = padding + [0, -size[axis] % 8]
        padding = padding[2:] + [0, -size[0] % 8]
        if max(padding) > 0:
            x = F.pad(x, padding, mode="replicate")
        x1 = self.head(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        y = self.body(x4)
        y = self.up1(y + x4)
        y = self.up2(y + x3)
        y = self.up3(y + x2)
        y = self.tail(y + x1)
        for axis in range(len(size)):
            y = y.narrow(2 + axis, 0, size[axis])
        return y


def with_cagr(
    network: nn.Module,
    *,
    groups: int = 8,
    layers: Sequence[str] | None = None,
    rolling: bool = True,
    attention: bool = True,
) -> nn.Module:
    """CAGR in place of another network's convolutions; their weights stay.

    Args:
        network: any; it is changed.
        groups: of channels that roll together.
        layers: names of convolutions as `named_modules` has them; None means all that CAGR can stand in for: those of
            stride and dilation 1, of odd kernels of at least 3, that zeros pad to the size they are given, and whose
            channels the groups divide.
        rolling, attention: as of CAGR.

    Returns:
        The network; of one that is itself a convolution, what takes its place.

    Raises:
        ValueError: a layer that is named cannot be replaced, and why; or none of the network's can be.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> unet = with_cagr(BasicUNet(spatial_dims=2, in_channels=2, out_channels=1), groups=8)
    """
    every = network.named_modules(remove_duplicate=False)  # one that is used at two places has two names
    convolutions = {name: module for name, module in every if isinstance(module, nn.Conv2d | nn.Conv3d)}
    for name in layers or ():
        reason = "it is no convolution in 2D or 3D of this network"
        if name in convolutions:
            reason = _why_not(convolutions[name], groups)
        if reason:
            raise ValueError(f"CAGR cannot take the place of {name!r}: {reason}")
    if layers is None:
        layers = [name for name, conv in convolutions.items() if not _why_not(conv, groups)]
        if not layers:
            raise ValueError(
                f"CAGR with groups={groups} can take the place of no convolution of {type(network).__name__}"
            )
    blocks: dict[nn.Module, CAGR] = {}
    for name in layers:
        conv = convolutions[name]
        blocks[conv] = block = blocks.get(conv) or CAGR(
            conv.in_channels,
            conv.out_channels,
            kernel_size=conv.kernel_size[0],
            groups=groups,
            spatial_dims=len(conv.kernel_size),
            rolling=rolling,
            attention=attention,
            bias=conv.bias is not None,
        )
        block.conv.weight, block.conv.bias = conv.weight, conv.bias
        if not name:
            return block.to(conv.weight)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, block.to(conv.weight))
    return network


def _why_not(conv: nn.Conv2d | nn.Conv3d, groups: int) -> str:
    """Why CAGR cannot take a convolution's place; "" where it can."""
    kernel = conv.kernel_size
    if max(conv.stride) > 1 or max(conv.dilation) > 1:
        what = f"stride {conv.stride} and dilation {conv.dilation}"
        return f"it has {what}, and a roll by 1 is to move a kernel by one pixel of the output"
    if kernel[0] < 3 or kernel[0] % 2 == 0 or len(set(kernel)) > 1:
        return (
            f"its kernel is {kernel}, and one that is rolled has an odd side of at least 3, the same along every axis"
        )
    if conv.padding_mode != "zeros" or conv.padding not in ("same", tuple(side // 2 for side in kernel)):
        return f"it pads {conv.padding} by {conv.padding_mode!r}, and CAGR pads zeros to the size that it is given"
    if conv.groups > 1:
        return f"it has {conv.groups} groups of its own, and CAGR's mix all of their channels"
    if conv.in_channels % groups:
        return f"groups={groups} does not divide its {conv.in_channels} channels"
    return ""


def _scaled(x: Tensor, by: Tensor) -> Tensor:
    """(B, C, *size), (B, C) -> (B, C, *size)"""
    return x * by.reshape(list(by.shape) + [1] * (x.dim() - 2))


def _conv(spatial_dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if spatial_dims == 2 else nn.Conv3d
