"""What PMM-Synth minimises (Zhang et al., arXiv 2602.19723, Eq. 4-9): each term where there is a ground truth alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_ext.training.objectives import Batch, Discriminator, Terms


class SelectiveSupervision:
    """A batch shares one synthesis condition: Eq. 4's sources, and what is there of the rest are its targets.

    The discriminators are least squares (Eq. 8-9), one a contrast, and see targets alone, without their sources. L1 is
    a mean over pixels, counted by the batch's "weight" where it has one, as is the least squares term over patches; the
    sums of Eq. 6-9 are over contrasts.

    Args:
        sites: the network's, in the order of their numbers.
        synthesis_weight: of the targets' L1.
        reconstruction_weight: of the sources' L1; 0 leaves sources unmade.
        adversarial_weight: of the least squares term.

    Raises:
        ValueError: a weight below 0.
    """

    parts_unused = True  # streams and discriminators of contrasts that a batch does not have

    def __init__(
        self,
        *,
        sites: Sequence[str],
        synthesis_weight: float = 100.0,
        reconstruction_weight: float = 30.0,
        adversarial_weight: float = 1.0,
    ) -> None:
        self.sites = tuple(sites)
        self.weights = {
            "synthesis": synthesis_weight,
            "reconstruction": reconstruction_weight,
            "adversarial": adversarial_weight,
        }
        for name, weight in self.weights.items():
            if weight < 0:
                raise ValueError(f"{name}_weight must be at least 0, got {weight}")

    def predict(self, network: Callable[..., Tensor], batch: Batch) -> Terms:
        """Make every contrast that the terms need; of a validation item, which has its "wanted" contrast, that one
        alone.

        Args:
            network: a `PMMSynth`, of M contrasts.
            batch: with "sources" (B, M, H, W), "condition" (B, M), which of them the network may see, and "dataset",
                the sites' names, all "" where none is said. In training "available" (B, M), and the first row's
                condition is everybody's; in validation "wanted" (B,), the number of the contrast to make.

        Returns:
            "pred": (B, M, H, W) in training, where contrasts that no term needs are zeros; (B, 1, H, W) in validation.

        Raises:
            ValueError: a name that is none of `sites`.
        """
        sources = batch["sources"]
        numbers = None
        if any(batch["dataset"]):
            unknown = [name for name in batch["dataset"] if name not in self.sites]
            if unknown:
                raise ValueError(
                    f"{unknown[0]!r} is none of the sites that are trained on, {', '.join(self.sites)}: put subjects "
                    "into its training split, or leave its datalist out"
                )
            numbers = torch.tensor([self.sites.index(name) for name in batch["dataset"]], device=sources.device)
        if "wanted" not in batch and self.weights["reconstruction"]:
            return {"pred": network(sources, batch["condition"], numbers)}
        if "wanted" not in batch:
            return {
                "pred": network(sources, batch["condition"], numbers, batch["available"][0] & ~batch["condition"][0])
            }
        which = torch.zeros(sources.shape[1], device=sources.device)
        which[batch["wanted"]] = 1
        predicted = network(sources, batch["condition"], numbers, which)
        return {"pred": predicted[torch.arange(len(predicted), device=predicted.device), batch["wanted"]][:, None]}

    def discriminator_terms(self, discriminator: Discriminator, batch: Batch, predicted: Mapping[str, Tensor]) -> Terms:
        """Compute least squares on the targets and on what was made of them, summed over the contrasts (Eq. 9).

        Args:
            discriminator: such as `ContrastDiscriminators`: images (N, M, H, W) and the targets' numbers -> a tensor
                each.
            batch: with "target" (B, M, H, W), "available" and "condition" (B, M).
            predicted: with "pred" (B, M, H, W), without gradient.

        Returns:
            "real" of the targets, "fake" of what was made.

        Raises:
            ValueError: the batch has more than one availability or condition.
        """
        targets = _targets(batch)
        real, fake = batch["target"], predicted["pred"]
        # in one pass, for several processes share one gradient a pass; its norms take each image alone
        answers = [answer.float().chunk(2) for answer in discriminator(torch.cat([real, fake]), targets)]
        return {  # Eq. 9
            "real": torch.stack([(answer - 1).square().mean() for answer, _ in answers]).sum(),
            "fake": torch.stack([answer.square().mean() for _, answer in answers]).sum(),
        }

    def generator_terms(
        self, discriminator: Discriminator | None, batch: Batch, predicted: Mapping[str, Tensor]
    ) -> Terms:
        """Compute L1 of the targets and of the sources, and the adversarial term with discriminators.

        Args:
            discriminator: as of `discriminator_terms`; None leaves the adversarial term out.
            batch: with "target" (B, M, H, W), "available" and "condition" (B, M), and perhaps "weight" (B, 1, H, W).
            predicted: with "pred" (B, M, H, W).

        Returns:
            "synthesis" of the targets, "reconstruction" of the sources and perhaps "adversarial", weighted (Eq. 5).

        Raises:
            ValueError: the batch has more than one availability or condition.
        """
        targets = _targets(batch)
        condition = batch["condition"][0]
        sources = [number for number in range(len(condition)) if condition[number]]
        wrong = (predicted["pred"] - batch["target"]).abs()
        weight = batch["weight"] if "weight" in batch else torch.ones_like(wrong[:, :1])
        wrong = (wrong * weight).sum(dim=(0, 2, 3)) / weight.sum()
        terms = {"synthesis": wrong[targets].sum(), "reconstruction": wrong[sources].sum()}  # Eq. 6-7
        if discriminator is not None:
            answers = discriminator(predicted["pred"], targets)
            terms["adversarial"] = torch.stack([(answer.float() - 1).square().mean() for answer in answers]).sum()
        return {name: self.weights[name] * value for name, value in terms.items()}  # Eq. 5


def _targets(batch: Mapping[str, Any]) -> list[int]:
    """Contrasts that are there and are no source: 1 in (1 - sc) * m."""
    available, condition = batch["available"], batch["condition"]
    if bool((available != available[:1]).any()) or bool((condition != condition[:1]).any()):
        raise ValueError("a batch must have one availability and one condition: use ModalityConsistentBatches")
    return torch.nonzero(available[0] & ~condition[0]).flatten().tolist()
