"""By what the best weights of a training are chosen."""

import torch
from monai.metrics import PSNRMetric
from torch import Tensor

MOST = 100.0  # dB: of images that 16 bits could not tell apart


class ShownPSNR(PSNRMetric):
    """MONAI's PSNR in dB, at most 100, of those items whose target shows anything: the mean is finite, always.

    A black item that is made exactly would make the mean of every epoch infinite, and the first the best for good.

    Example:
        >>> metric = ShownPSNR(max_val=1.0)
        >>> target = torch.tensor([0.5, 0.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)  # the second shows nothing
        >>> _ = metric(y_pred=0.9 * target, y=target)
        >>> round(float(metric.aggregate()), 2)
        26.02
    """

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        psnr: Tensor = super()._compute_metric(y_pred, y).clamp(max=MOST)
        shown = (y != 0).flatten(1).any(1).reshape(-1, *[1] * (psnr.dim() - 1))
        return torch.where(shown, psnr, torch.nan)  # which MONAI's mean leaves out
