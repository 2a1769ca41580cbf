"""PMM-Synth's discriminators (arXiv 2602.19723, Fig. S1): one a contrast, each sees images of its own contrast."""

from collections.abc import Sequence

from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn


class ContrastDiscriminators(nn.Module):
    """MONAI's patch discriminator for each of the `modalities`; instance norm, so that an image is judged alone.

    Args:
        modalities: the contrasts, in the order of the channels of an image.
        width: channels of each discriminator's first layer.
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
