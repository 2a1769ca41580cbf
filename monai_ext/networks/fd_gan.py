"""FD-GAN, Fei et al., Medical Physics 48(7), 2021 (arXiv 2105.02835), Fig. 1: anatomy and contrast, disentangled.

Numbers that the paper leaves open are those of MUNIT (Huang et al., arXiv 1804.04732), whose encoders it takes. The
paper's discriminator is MONAI's: `PatchDiscriminator(spatial_dims=2, in_channels=sources + targets, channels=64)` is
five 4x4 convolutions 64-128-256-512-1 with batch norm and LeakyReLU 0.2. It gives logits: the sigmoid belongs to the
loss, where it is exact in reduced precision too.
"""

import math

import torch
from monai.networks.blocks import ChannelSELayer
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.networks.layers import InstanceNorm, instance_norm

RES_BLOCKS = 4  # of an SRE, and of the decoder
CODE = 8  # numbers to which SPE reduces a style


def padded_conv(channels: int, groups: int = 1) -> nn.Conv2d:
    """Make a 3x3 convolution of what is padded by its own reflection: "Padding - Conv".

    The norm that follows needs no bias here.

    Args:
        channels: in and out.
        groups: of the convolution.

    Returns:
        A convolution that keeps the size, (B, channels, H, W) -> (B, channels, H, W), without bias.
    """
    return nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", groups=groups, bias=False)


class ResBlock(nn.Module):
    """x + F(F(x)), F being padding, convolution, instance norm, the first with ReLU.

    Args:
        channels: in and out.
        groups: that keep to themselves.
    """

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            padded_conv(channels, groups),
            InstanceNorm(channels),
            nn.ReLU(),
            padded_conv(channels, groups),
            InstanceNorm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return x + self.layers(x)


class SRE(nn.Sequential):
    """ShaRed Encoder (Sec. II-A-1): a source's anatomy, (B, M I, H, W) -> (B, M 4 width, H / 4, W / 4).

    The sources' encoders have nothing in common but their structure, so they are the groups of one: a third less
    time than one after another.

    Args:
        in_channels: of all sources together.
        sources: how many there are.
        width: channels of a source at full resolution.
    """

    def __init__(self, in_channels: int, *, sources: int, width: int) -> None:
        layers: list[nn.Module] = []
        before = in_channels
        for after, kernel_size, stride, padding in ((width, 7, 1, 3), (2 * width, 4, 2, 1), (4 * width, 4, 2, 1)):
            conv = nn.Conv2d(
                sources * before, sources * after, kernel_size, stride, padding, groups=sources, bias=False
            )
            layers += [conv, InstanceNorm(sources * after), nn.ReLU()]
            before = after
        super().__init__(*layers, *(ResBlock(sources * before, groups=sources) for _ in range(RES_BLOCKS)))


class SPE(nn.Module):
    """SPecific Encoder (Sec. II-A-1): an image's style as 8 numbers, and what they are to the AdaIN layers.

    Five convolutions without norm, which would take the style away. All of it starts as MUNIT's does, with He's gain
    and no biases: a layer that shrinks what it is given leaves a style that hardly hangs on the image, and then nothing
    draws training to it. A deviation is a softplus, so it stays positive and a style cannot turn features over.

    Args:
        in_channels: of the image.
        width: channels at full resolution.
        layers: how many AdaIN layers there are.
    """

    def __init__(self, in_channels: int, *, width: int, layers: int) -> None:
        super().__init__()
        channels = 4 * width
        convs: list[nn.Module] = []
        before = in_channels
        for after, kernel_size, stride, padding in ((width, 7, 1, 3), (2 * width, 4, 2, 1), *3 * [(channels, 4, 2, 1)]):
            convs += [nn.Conv2d(before, after, kernel_size, stride, padding), nn.ReLU()]
            before = after
        self.convs = nn.Sequential(*convs)
        self.reduce = nn.Conv2d(channels, CODE, 1)
        last = nn.Linear(channels, 2 * layers * channels)
        self.head = nn.Sequential(nn.Linear(CODE, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(), last)
        self.shape = [layers, 2, channels]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert module.bias is not None
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        # softplus of it is 1: training starts around a plain instance norm
        last.bias.data.unflatten(0, self.shape)[:, 1] = math.log(math.e - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H, W) -> (B, 8)"""
        return self.reduce(self.convs(x).mean((2, 3), keepdim=True)).flatten(1)

    def statistics(self, code: Tensor) -> Tensor:
        """Turn a style's code into what each AdaIN layer gives to its channels.

        Args:
            code: (B, 8), of `forward`.

        Returns:
            (B, layers, 2, C), C = 4 width: means in [:, :, 0], standard deviations, all positive, in [:, :, 1].
        """
        means, deviations = self.head(code).unflatten(1, self.shape).unbind(2)
        return torch.stack([means, F.softplus(deviations)], 2)


class LAF(nn.Module):
    """Local adaptive fusion (Fig. 2): in each block of a grid, a 1x1 convolution of its own makes the pseudo-target.

    One multiplication by a map of weights, whatever the number of blocks. On a size that the grid does not divide,
    blocks differ by a pixel. All start as the mean of the sources, so that no seam is there to be unlearnt. Of one
    source it makes the source itself, scaled and shifted block by block.

    Args:
        in_channels: the sources.
        out_channels: of the pseudo-target.
        blocks: a side of the grid.
    """

    def __init__(self, in_channels: int, out_channels: int, *, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.weight = nn.Parameter(torch.full((out_channels, in_channels, blocks, blocks), 1 / in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels, blocks, blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, K, H, W)"""
        rows = torch.arange(x.shape[2], device=x.device) * self.blocks // x.shape[2]
        columns = torch.arange(x.shape[3], device=x.device) * self.blocks // x.shape[3]
        weight = self.weight.index_select(2, rows).index_select(3, columns)
        bias = self.bias.index_select(1, rows).index_select(2, columns)
        return (x.unsqueeze(1) * weight).sum(2) + bias


class CatConv(nn.Sequential):
    """Cat-Conv fusion (Fig. 3) of the sources' features, which SRE gives side by side: one convolution.

    Args:
        channels: of a source's features, and of what is made of them all.
        sources: how many there are.
        attention: weighs the channels first (squeeze and excitation), which the paper would do next.
    """

    def __init__(self, channels: int, *, sources: int, attention: bool) -> None:
        weigh = [ChannelSELayer(spatial_dims=2, in_channels=sources * channels, r=16)] if attention else []
        super().__init__(*weigh, nn.Conv2d(sources * channels, channels, 3, padding=1))


class AdaINResBlock(nn.Module):
    """A ResBlock, its norms given by a style instead of learnt.

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = padded_conv(channels), padded_conv(channels)

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """(B, C, H, W), each layer's means and standard deviations (B, 2, C) -> (B, C, H, W)"""
        return x + adain(self.second(F.relu(adain(self.first(x), first))), second)


def adain(x: Tensor, statistics: Tensor) -> Tensor:
    """Give each channel of each sample the mean and the standard deviation that it is to have (Eq. 2).

    Args:
        x: (B, C, H, W), whose own means and deviations are taken out first.
        statistics: (B, 2, C), the means in [:, 0], the standard deviations in [:, 1].

    Returns:
        (B, C, H, W)
    """
    return instance_norm(x, statistics[:, 1], statistics[:, 0])  # Eq. 2


class Decoder(nn.Module):
    """Sec. II-A-4: four residual blocks with AdaIN, then upwards, without a norm, which would undo the style.

    The last convolution's answer is the image: intensities are in [0, 1], but no activation holds them there, which
    would stop the gradient at black and white, where most of an image is.

    Args:
        out_channels: of the image.
        width: channels at full resolution.
    """

    def __init__(self, out_channels: int, *, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AdaINResBlock(4 * width) for _ in range(RES_BLOCKS))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, out_channels, 7, padding=3),
        )

    def forward(self, content: Tensor, statistics: Tensor) -> Tensor:
        """(B, C, h, w), (B, 8, 2, C) -> (B, K, 4h, 4w)"""
        for number, block in enumerate(self.blocks):
            content = block(content, statistics[:, 2 * number], statistics[:, 2 * number + 1])
        return self.up(content)


class FDGAN(nn.Module):
    """The sources' anatomy, an SRE each and Cat-Conv; a pseudo-target's style, LAF and SPE; a decoder that joins
    them.

    Args:
        in_channels: the source contrasts.
        out_channels: the target contrasts.
        width: channels at full resolution; four times as many at a quarter of it.
        blocks: a side of LAF's grid, which scales with the image; 1 fuses all of it alike (Figs. 5-6).
        image_size: pixels a side of a training image. Any other size can be given to the network.
        fusion_attention: channel attention in the Cat-Conv fusion.
        channels_per_source: slices of a contrast, side by side in x: 2n + 1 with n neighbours on either side (2.5D).

    Raises:
        ValueError: a number below 1, or blocks that do not divide image_size.

    Example:
        >>> network = FDGAN(in_channels=2, out_channels=1, width=4, image_size=32)
        >>> prediction, pseudo_target = network.forward_with_pseudo_target(torch.rand(1, 2, 32, 32))
        >>> prediction.shape, pseudo_target.shape
        (torch.Size([1, 1, 32, 32]), torch.Size([1, 1, 32, 32]))
    """

    def __init__(
        self,
        *,
        in_channels: int = 2,
        out_channels: int = 1,
        width: int = 64,
        blocks: int = 2,
        image_size: int = 256,
        fusion_attention: bool = False,
        channels_per_source: int = 1,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "width": width, "blocks": blocks}
        sizes |= {"image_size": image_size, "channels_per_source": channels_per_source}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if image_size % blocks:
            raise ValueError(f"blocks must divide image_size, got blocks={blocks}, image_size={image_size}")
        self.channels = in_channels * channels_per_source
        self.sre = SRE(channels_per_source, sources=in_channels, width=width)
        self.fuse = CatConv(4 * width, sources=in_channels, attention=fusion_attention)
        self.laf = LAF(self.channels, out_channels, blocks=blocks)
        self.spe = SPE(out_channels, width=width, layers=2 * RES_BLOCKS)
        self.decoder = Decoder(out_channels, width=width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, K, H, W), any size"""
        return self.forward_with_pseudo_target(x)[0]

    def forward_with_pseudo_target(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the target, and give the pseudo-target that its style was taken from: training is on both.

        Args:
            x: (B, M, H, W), the sources, of any size; M = in_channels x channels_per_source.

        Returns:
            The prediction and what LAF makes of the sources, (B, K, H, W) each.

        Raises:
            ValueError: x has another number of channels.
        """
        pseudo_target = self.laf(self._checked(x))
        y = self.decode(self.content(x), self.style(pseudo_target))
        return y[:, :, : x.shape[2], : x.shape[3]], pseudo_target

    def content_and_style(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take the sources apart into the anatomy that they share and the style that the target is to have.

        Args:
            x: (B, M, H, W), the sources.

        Returns:
            The anatomy (B, C, h, w), C = 4 width, h and w a quarter of the padded size, and the style (B, 8).

        Raises:
            ValueError: x has another number of channels.
        """
        return self.content(x), self.style(self.laf(x))

    def content(self, x: Tensor) -> Tensor:
        """Encode the anatomy that the sources share.

        Args:
            x: (B, M, H, W), the sources.

        Returns:
            (B, C, h, w), C = 4 width; h and w are a quarter of H and W, padded to multiples of 4 and at least 16.

        Raises:
            ValueError: x has another number of channels.
        """
        return self.fuse(self.sre(_padded(self._checked(x))))

    def style(self, image: Tensor) -> Tensor:
        """Encode an image's style.

        Args:
            image: (B, K, H, W), any contrast's, such as a target or a pseudo-target.

        Returns:
            (B, 8)
        """
        return self.spe(_padded(image))

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """Make the image of an anatomy in a style, be it another image's.

        Args:
            content: (B, C, h, w), of `content`.
            style: (B, 8), of `style`.

        Returns:
            (B, K, 4h, 4w): that of padded sources is as large as they are with their padding, and must be cropped.
        """
        return self.decoder(content, self.spe.statistics(style))

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"x must have {self.channels} channels, in_channels x channels_per_source, got {x.shape}")
        return x


def _padded(x: Tensor) -> Tensor:
    """With copies of the last row and column, to sides that the two halvings of SRE and the four of SPE have room in"""
    right, below = _padding(x.shape[3]), _padding(x.shape[2])
    return F.pad(x, [0, right, 0, below], mode="replicate")


def _padding(size: int) -> int:
    return max(16 - size, -size % 4)
