"""Networks that the papers compare theirs with, on the same blocks and for the same trainer."""

import torch
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.networks.agi_net import with_cagr
from monai_ext.networks.layers import InstanceNorm
from monai_ext.networks.rhmb import RHMB, ConvBlock, ResidualConvs, UpBlock


class Pix2PixUNet(nn.Module):
    """The U-Net of pix2pix (Isola et al., CVPR 2017), FD-GAN's [35]: 4x4 kernels that halve, and no skip at full size.

    Its own tanh is of images in [-1, 1]: here, of [0, 1], it is a sigmoid. Half of the three deepest decoding layers'
    channels are dropped at random in training, and not after it.

    Args:
        in_channels: the source contrasts.
        out_channels: the target contrasts.
        width: channels after the first halving; eight times as many at most.
        depth: how often the size is halved, 8 from 256 x 256 to a single pixel.
    """

    def __init__(self, *, in_channels: int = 2, out_channels: int = 1, width: int = 64, depth: int = 8) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth must be at least 2, got {depth}")
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        channels = [width * min(2**level, 8) for level in range(depth)]
        self.multiple = 2**depth
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        before = in_channels
        for level, after in enumerate(channels):
            normed = 0 < level < depth - 1  # a map of one pixel has no statistics
            self.downs.append(_half(before, after, first=level == 0, normed=normed))
            before = after
        for level in reversed(range(1, depth)):
            doubled = before if level == depth - 1 else 2 * before
            self.ups.append(_double(doubled, channels[level - 1], dropped=depth - 4 <= level < depth - 1))
            before = channels[level - 1]
        self.last = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * before, out_channels, 4, 2, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, K, H, W), any size"""
        y = F.pad(x, [0, -x.shape[3] % self.multiple, 0, -x.shape[2] % self.multiple], mode="replicate")
        skips: list[Tensor] = []
        for down in self.downs:
            y = down(y)
            skips.append(y)
        for number, up in enumerate(self.ups):
            y = torch.cat([up(y), skips[len(skips) - 2 - number]], 1)
        return self.last(y)[:, :, : x.shape[2], : x.shape[3]]


def _half(before: int, after: int, *, first: bool, normed: bool) -> nn.Sequential:
    layers: list[nn.Module] = [] if first else [nn.LeakyReLU(0.2)]
    layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=not normed))
    return nn.Sequential(*layers, *([nn.BatchNorm2d(after)] if normed else []))


def _double(before: int, after: int, *, dropped: bool) -> nn.Sequential:
    layers = [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, *([nn.Dropout(0.5)] if dropped else []))


class ResNet(nn.Module):
    """The generator that pGAN has (Dar et al., IEEE TMI 2019): two halvings, nine residual blocks, two doublings.

    The blocks are MONAI's, which norm and activate before they convolve.

    Args:
        in_channels: the source contrasts.
        out_channels: the target contrasts.
        width: channels at full resolution; four times as many in the blocks.
        blocks: how many.

    Example:
        >>> import torch
        >>> ResNet(in_channels=2, out_channels=1, width=4, blocks=1)(torch.rand(1, 2, 20, 22)).shape
        torch.Size([1, 1, 20, 22])
    """

    def __init__(self, *, in_channels: int = 2, out_channels: int = 1, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        norm = ("INSTANCE", {"affine": True})
        self.encoder = nn.Sequential(
            _normed(nn.Conv2d(in_channels, width, 7, 1, 3, bias=False), width),
            _normed(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), 2 * width),
            _normed(nn.Conv2d(2 * width, 4 * width, 3, 2, 1, bias=False), 4 * width),
        )
        self.blocks = nn.Sequential(
            *(ResBlock(spatial_dims=2, in_channels=4 * width, norm=norm, act="RELU") for _ in range(blocks))
        )
        self.decoder = nn.Sequential(
            _normed(nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False), 2 * width),
            _normed(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), width),
            nn.Conv2d(width, out_channels, 7, padding=3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, K, H, W), any size"""
        y = self.decoder(self.blocks(self.encoder(_padded(x))))
        return y[:, :, : x.shape[2], : x.shape[3]]


def _normed(conv: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(conv, InstanceNorm(channels), nn.ReLU())


def cagr_resnet(*, in_channels: int = 2, width: int = 64, groups: int = 8, cagr: bool = True) -> nn.Module:
    """Make a `ResNet` with AGI-Net's CAGR as the first convolution of each of its blocks, or without.

    Args:
        in_channels: the source contrasts.
        width: channels at full resolution; the blocks have four times as many.
        groups: of channels that CAGR rolls together; they must divide 4 width.
        cagr: False for the plain ResNet, to compare with.

    Returns:
        A network of one target contrast, (B, in_channels, H, W) -> (B, 1, H, W).

    Raises:
        ValueError: a number below 1, or groups that do not divide the channels.
    """
    network = ResNet(in_channels=in_channels, width=width)
    layers = [f"blocks.{number}.conv1.conv" for number in range(len(network.blocks))]
    return with_cagr(network, groups=groups, layers=layers if cagr else [])


def cagr_unet(*, in_channels: int = 2, width: int = 64, groups: int = 8, cagr: bool = True) -> nn.Module:
    """Make MONAI's `BasicUNet` with AGI-Net's CAGR as the first convolution of each stage below full size, or without.

    Args:
        in_channels: the source contrasts.
        width: channels at full resolution; the deepest stage has eight times as many.
        groups: of channels that CAGR rolls together; they must divide the channels of each stage.
        cagr: False for the plain U-Net, to compare with.

    Returns:
        A network of one target contrast, (B, in_channels, H, W) -> (B, 1, H, W), sides of at least 32.

    Raises:
        ValueError: groups that do not divide the channels.
    """
    features = (width, width, 2 * width, 4 * width, 8 * width, width)
    network = BasicUNet(spatial_dims=2, in_channels=in_channels, out_channels=1, features=features)
    stages = ["down_1", "down_2", "down_3", "down_4", "upcat_4", "upcat_3", "upcat_2"]
    layers = [f"{stage}.convs.conv_0.conv" for stage in stages]
    return with_cagr(network, groups=groups, layers=layers if cagr else [])


class I2IMamba(nn.Module):
    """I2I-Mamba (Atli et al., arXiv 2405.14022), which HMF-MambaINR is compared with: what that adds is left out.

    The same encoder, the same nine blocks, of which the first, the middle and the last are Mamba blocks with channel
    mixing, and a decoder of transposed convolutions that sees the last of them alone. The Mamba blocks are
    HMF-MambaINR's, so that a comparison is of what they are put into: 13.8 M parameters and 117.8 GFLOP at 256 x 256,
    where its first release had 18.8 M and 160.5.

    Args:
        in_channels: the source contrasts.
        out_channels: the target contrasts.
        width: channels at full resolution; four times as many in the bottleneck, at a quarter of it.
        state_size, expand, directions: of the scans, as of HMFMambaINR.
    """

    def __init__(
        self,
        *,
        in_channels: int = 2,
        out_channels: int = 1,
        width: int = 64,
        state_size: int = 16,
        expand: int = 2,
        directions: int = 4,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "width": width, "state_size": state_size}
        for name, value in (sizes | {"expand": expand, "directions": directions}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        channels = 4 * width
        bottleneck: list[nn.Module] = []
        for number in range(9):
            if number in (0, 4, 8):
                bottleneck.append(RHMB(channels, state_size=state_size, expand=expand, directions=directions))
            else:
                bottleneck.append(ResidualConvs(channels))
        self.encoder = nn.Sequential(
            ConvBlock(in_channels, width, 7),
            ConvBlock(width, 2 * width, stride=2),
            ConvBlock(2 * width, channels, stride=2),
        )
        self.bottleneck = nn.Sequential(*bottleneck)
        self.decoder = nn.Sequential(
            UpBlock(channels, 2 * width), UpBlock(2 * width, width), nn.Conv2d(width, out_channels, 7, padding=3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, K, H, W), any size"""
        y = self.decoder(self.bottleneck(self.encoder(_padded(x))))
        return y[:, :, : x.shape[2], : x.shape[3]]


def _padded(x: Tensor) -> Tensor:
    """To sides of multiples of 4, and of 8 at least: a quarter of them has a variance then."""
    return F.pad(
        x, [0, max(8 - x.shape[3], -x.shape[3] % 4), 0, max(8 - x.shape[2], -x.shape[2] % 4)], mode="replicate"
    )
