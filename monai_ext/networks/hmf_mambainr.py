"""HMF-MambaINR, Luo, Lyu, Sensors 26(6):1901, 2026, Fig. 1: state spaces for context, an implicit decoder for detail.

Numbers that the paper leaves open are those of I2I-Mamba (arXiv 2405.14022), on which it builds.
"""

import difflib
import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.networks.inr import ImplicitDecoder, PixelDecoder, check_output
from monai_ext.networks.rhmb import RHMB, ConvBlock, ResidualConvs, UpBlock
from monai_ext.runtime import wanted_dtype

PARTS = ("rhmb", "mfeb", "msf", "mfm", "inrb")


class MSF(nn.Module):
    """Multi-scale selective fusion (Fig. 3b): per channel, how much of each scale.

    Args:
        channels: of each scale's features.
        scales: how many there are.
    """

    def __init__(self, channels: int, *, scales: int) -> None:
        super().__init__()
        self.scales = scales
        self.conv = nn.Conv2d(scales * channels, scales * channels, 1, groups=scales)

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, C, H, W) of each scale -> (B, C, H, W)"""
        mean = torch.cat([f.mean((2, 3), keepdim=True) for f in features], 1)
        peak = torch.cat([f.amax((2, 3), keepdim=True) for f in features], 1)
        weights = (self.conv(mean) + self.conv(peak)).sigmoid()
        weights = weights.unflatten(1, [self.scales, -1]).softmax(1)
        total = features[0] * weights[:, 0]
        for scale in range(1, self.scales):
            total = total + features[scale] * weights[:, scale]
        return total


class PlainFusion(nn.Module):
    """Without MSF: the scales side by side, and a convolution of as many parameters.

    Args:
        channels: of each scale's features.
        scales: how many there are.
    """

    def __init__(self, channels: int, *, scales: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(scales * channels, channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, C, H, W) of each scale -> (B, C, H, W)"""
        return self.conv(torch.cat(features, 1))


class MFEB(nn.Module):
    """Multi-feature extraction block (Fig. 3a): the three RHMBs' features at several dilations, fused by MSF.

    Args:
        channels: of one RHMB's features.
        dilations: of the convolutions, a scale each.
        fusion: the class that fuses the scales.
    """

    def __init__(
        self, channels: int, *, dilations: Sequence[int] = (1, 2, 4, 8), fusion: type[nn.Module] = MSF
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(3 * channels, channels, 1)
        self.scales = nn.ModuleList(ConvBlock(channels, channels, dilation=dilation) for dilation in dilations)
        self.fuse = fusion(channels, scales=len(dilations))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3 C, H, W) -> (B, C, H, W)"""
        x = self.reduce(x)
        return x + self.fuse([scale(x) for scale in self.scales])


class MFM(nn.Module):
    """Modulation fusion module (Fig. 1c): per channel, how much of MFEB's features and how much of the decoder's.

    Args:
        channels: of MFEB's features, of the decoder's, and of what comes out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 4)  # with fewer, all may be off for a whole data set
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 2 * channels, 1))
        self.conv = ConvBlock(3 * channels, channels, 1)

    def forward(self, extracted: Tensor, decoded: Tensor) -> Tensor:
        """(B, C, H, W), (B, C, H, W) -> (B, C, H, W)"""
        pooled = extracted.mean((2, 3), keepdim=True) + decoded.mean((2, 3), keepdim=True)
        weights = self.mlp(pooled).unflatten(1, [2, -1]).softmax(1)
        return self.conv(torch.cat([weights[:, 0] * extracted, weights[:, 1] * decoded, decoded], 1))


class Addition(nn.Module):
    """Without MFM: both features added, and pointwise convolutions of as many parameters.

    Args:
        channels: of MFEB's features, of the decoder's, and of what comes out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = stand_in(MFM(channels), channels, kernel_size=1)

    def forward(self, extracted: Tensor, decoded: Tensor) -> Tensor:
        """(B, C, H, W), (B, C, H, W) -> (B, C, H, W)"""
        return self.convs(extracted + decoded)


class Stage(nn.Module):
    """Of the decoder, the encoder's mirror: MFEB's features and the decoder's go through blocks, MFM fuses them.

    Args:
        extract: the block for MFEB's features.
        decode: the block for the decoder's features.
        fuse: what makes one of both.
    """

    def __init__(self, extract: nn.Module, decode: nn.Module, fuse: nn.Module) -> None:
        super().__init__()
        self.extract, self.decode, self.fuse = extract, decode, fuse

    def forward(self, extracted: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, C, H, W) -> (B, O, s H, s W) twice, s = 1 or 2"""
        extracted = self.extract(extracted)
        return extracted, self.fuse(extracted, self.decode(decoded))


def stand_in(module: nn.Module, channels: int, *, kernel_size: int = 3, less: int = 0) -> nn.Sequential:
    """Make two ConvBlocks, C to C channels, with about as many parameters as a module.

    Args:
        module: whose place they take; only its parameters are counted.
        channels: C.
        kernel_size: of both; odd.
        less: how many parameters less they have.

    Returns:
        (B, C, H, W) -> (B, C, H, W)
    """
    width = max(1, round((parameters(module) - less) / (2 * channels * kernel_size**2)))
    return nn.Sequential(ConvBlock(channels, width, kernel_size), ConvBlock(width, channels, kernel_size))


def parameters(module: nn.Module) -> int:
    """Count a module's parameters.

    Args:
        module: whose tensors are counted, those that are frozen too; one that two layers share counts once.

    Returns:
        How many numbers they hold.
    """
    return sum(parameter.numel() for parameter in module.parameters())


class HMFMambaINR(nn.Module):
    """CNN encoder, nine blocks of which three are RHMBs, MFEB, a decoder with an MFM at each stage, implicit
    decoder.

    Args:
        in_channels: the source contrasts.
        out_channels: the target contrasts.
        width: channels at full resolution; four times as many in the bottleneck, at a quarter of it.
        state_size: N of the selective scan.
        expand: channels of the scan, in channels of the bottleneck.
        directions: how many of rows, columns, rows from the end, columns from the end are scanned.
        dilations: of MFEB's convolutions.
        frequencies: L of the implicit decoder's encoding.
        without: of rhmb mfeb msf mfm inrb, those to be replaced by something plainer of the same size (Table 6).

    Raises:
        ValueError: a number or a part that may not be.

    Example:
        >>> network = HMFMambaINR(in_channels=2, out_channels=1, width=4, state_size=2)
        >>> x = torch.rand(2, 2, 16, 16)
        >>> network(x).shape, network(x, (24, 32)).shape  # at the sources' size, and finer
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 1, 24, 32]))
    """

    torch_alone = "scans step by step: as a graph that takes minutes to make, and longer to run than torch's kernel"

    def __init__(
        self,
        *,
        in_channels: int = 2,
        out_channels: int = 1,
        width: int = 64,
        state_size: int = 16,
        expand: int = 2,
        directions: int = 4,
        dilations: Sequence[int] = (1, 2, 4, 8),
        frequencies: int = 4,
        without: Sequence[str] = (),
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "width": width, "state_size": state_size}
        sizes |= {"expand": expand, "directions": directions, "frequencies": frequencies}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if directions > 4:
            raise ValueError(f"directions must be at most 4, got {directions}")
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations must be one or more numbers of at least 1, got {tuple(dilations)}")
        for part in without:
            if part not in PARTS:
                near = difflib.get_close_matches(part, PARTS, n=1) or PARTS
                raise ValueError(f"without must be of {', '.join(PARTS)}, got {part!r}; did you mean {near[0]!r}?")
        channels = 4 * width

        def context() -> nn.Module:
            block = RHMB(channels, state_size=state_size, expand=expand, directions=directions)
            return stand_in(block, channels) if "rhmb" in without else block

        def residual() -> nn.Module:
            return nn.Sequential(*(ResidualConvs(channels) for _ in range(3)))

        mfeb: nn.Module = MFEB(channels, dilations=dilations, fusion=PlainFusion if "msf" in without else MSF)
        if "mfeb" in without:
            mfeb = nn.Sequential(nn.Conv2d(3 * channels, channels, 1), stand_in(mfeb, channels, less=3 * channels**2))
        fusion = Addition if "mfm" in without else MFM

        self.encoder = nn.Sequential(
            ConvBlock(in_channels, width, 7),
            ConvBlock(width, 2 * width, stride=2),
            ConvBlock(2 * width, channels, stride=2),
        )
        self.first, self.middle, self.last = context(), context(), context()
        self.early, self.late = residual(), residual()
        self.mfeb = mfeb
        self.stages = nn.ModuleList(
            [
                Stage(ConvBlock(channels, channels), nn.Identity(), fusion(channels)),
                Stage(UpBlock(channels, 2 * width), UpBlock(channels, 2 * width), fusion(2 * width)),
                Stage(UpBlock(2 * width, width), UpBlock(2 * width, width), fusion(width)),
            ]
        )
        self.inrb: nn.Module = ImplicitDecoder(channels=width, out_channels=out_channels, frequencies=frequencies)
        if "inrb" in without:
            self.inrb = PixelDecoder(channels=width, out_channels=out_channels, parameters=parameters(self.inrb))

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(B, M, H, W) -> (B, K, H, W), or (B, K, *output_size) over the same field of view"""
        if not torch.jit.is_scripting():
            if x.device.type == "cpu":
                if self._half(x):
                    return self._forward_wider(x, output_size)
        height, width = x.shape[2], x.shape[3]
        size = (height, width)
        if output_size is not None:
            size = (output_size[0], output_size[1])
            check_output(size, height, width)
        x = F.pad(x, [0, -width % 4, 0, -height % 4], mode="replicate")
        if x.device.type == "cpu":  # a fifth less time in bfloat16, for norms, sums and gates between convolutions
            x = x.contiguous(memory_format=torch.channels_last)
        latent = self.latent(x)
        return self.inrb(latent, (height, width), size)

    def latent(self, x: Tensor) -> Tensor:
        """Encode the sources into the features that the implicit decoder reads at any place.

        Args:
            x: (B, M, H, W), M = in_channels; H and W must be multiples of 4, to which `forward` pads.

        Returns:
            (B, width, H, W)
        """
        first = self.first(self.encoder(x))
        middle = self.middle(self.early(first))
        y = self.last(self.late(middle))
        extracted = self.mfeb(torch.cat([first, middle, y], 1))
        for stage in self.stages:
            extracted, y = stage(extracted, y)
        return y

    def _half(self, x: Tensor) -> bool:
        dtypes = [x.dtype, next(self.parameters()).dtype]
        if torch.is_autocast_enabled("cpu"):
            dtypes.append(torch.get_autocast_dtype("cpu"))
        return torch.float16 in dtypes

    def _forward_wider(self, x: Tensor, output_size: tuple[int, int] | None) -> Tensor:
        """What float16 asks for, computed in what a CPU has instructions for."""
        dtype = wanted_dtype("cpu", True)
        _say_once(f"float16 is far slower than float32 on a CPU: {dtype or torch.float32} is used in its place")
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        wider = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            y = torch.func.functional_call(self, wider, (x.float(), output_size))
        return y.to(x.dtype)


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
