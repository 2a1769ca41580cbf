"""Discriminators beside MONAI's of patches: PMM-Synth's, one a contrast, and FD-GAN's, which judges an image whole."""

from collections.abc import Sequence

from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn


class ContrastDiscriminators(nn.Module):
    """PMM-Synth's (arXiv 2602.19723, Fig. S1): MONAI's patch discriminator for each of the `modalities`.

    With instance norm, so that an image is judged alone.

    Args:
        modalities: the contrasts, in the order of the channels of an image.
        width: channels of each discriminator's first layer.

    Example:
        >>> import torch
        >>> judges = ContrastDiscriminators(modalities=["T1", "T2", "FLAIR"], width=4)
        >>> [answer.shape for answer in judges(torch.rand(2, 3, 32, 32), [0, 2])]  # T1 and FLAIR, a number a patch
        [torch.Size([2, 1, 2, 2]), torch.Size([2, 1, 2, 2])]
    """

    def __init__(
        self, *, modalities: Sequence[str] = ("T1", "T2", "T1C", "FLAIR", "DWI", "ADC"), width: int = 64
    ) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            PatchDiscriminator(spatial_dims=2, channels=width, in_channels=1, norm="INSTANCE") for _ in modalities
        )

    def forward(self, images: Tensor, which: list[int]) -> list[Tensor]:
        """(B, M, H, W) -> a number a patch (B, 1, h, w) of each contrast in `which`"""
        return [self.each[number](images[:, number : number + 1])[-1] for number in which]


class ImageDiscriminator(nn.Sequential):
    """FD-GAN's as its text has it (arXiv 2105.02835, Sec. II-B): a binary CNN, which judges an image as a whole.

    Five 4x4 convolutions of stride 2, their channels doubled each time, with batch norm but in the first and
    LeakyReLU 0.2; then one number an image, a logit, for the sigmoid belongs to the loss.

    Args:
        in_channels: of the sources and the target together.
        channels: after the first convolution.
    """

    def __init__(self, *, in_channels: int, channels: int = 64) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _ in range(4):
            layers += [nn.Conv2d(channels, 2 * channels, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * channels)]
            layers.append(nn.LeakyReLU(0.2))
            channels *= 2
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1, 1))
