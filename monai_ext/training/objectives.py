"""What each method minimises: named terms from a batch, what the network made of it, and a discriminator.

An objective is used by `monai_ext.training.engine.PairedAdversarialTrainer`. Its terms are weighted already: the sum
over `discriminator_terms` trains the discriminator, the sum over `generator_terms` the network.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from monai.losses import PatchAdversarialLoss
from torch import Tensor
from torch.nn import BCEWithLogitsLoss
from torch.nn.functional import interpolate, l1_loss

Terms = dict[str, Tensor]
Batch = Mapping[str, Any]
Discriminator = Callable[..., Any]  # an image with its sources -> an answer a patch, MONAI's with its features


class Objective(Protocol):
    """What the trainer asks of a method."""

    def predict(self, network: Callable[..., Tensor], batch: Batch) -> Terms:
        """Compute what the network makes of a batch.

        Args:
            network: in training or evaluation.
            batch: of `SliceDataset`, on the network's device.

        Returns:
            "pred" (B, K, *size), the synthesis, and whatever else the terms need.
        """
        ...

    def discriminator_terms(self, discriminator: Discriminator, batch: Batch, predicted: Mapping[str, Tensor]) -> Terms:
        """Compute what the discriminator minimises.

        Args:
            discriminator: of sources and target, or of what the method shows it.
            batch: as of `predict`.
            predicted: what `predict` gave, without gradient.

        Returns:
            Weighted terms by name; their sum is minimised.
        """
        ...

    def generator_terms(
        self, discriminator: Discriminator | None, batch: Batch, predicted: Mapping[str, Tensor]
    ) -> Terms:
        """Compute what the network minimises.

        Args:
            discriminator: None leaves the adversarial term out.
            batch: as of `predict`.
            predicted: what `predict` gave.

        Returns:
            Weighted terms by name; their sum is minimised.
        """
        ...


class Pix2Pix:
    """AGI-Net's: L1 and a patch discriminator that sees the sources beside the real or the synthetic target.

    The weight of 100 and the halved discriminator loss are pix2pix's (Isola et al., 2017), which the paper builds on.

    Args:
        pixel_weight: of L1.
        adversarial_weight: of the adversarial term.

    Example:
        >>> objective = Pix2Pix(pixel_weight=10.0)
        >>> batch = {"sources": torch.zeros(1, 2, 8, 8), "target": torch.full((1, 1, 8, 8), 0.5)}
        >>> predicted = objective.predict(lambda sources: sources[:, :1], batch)
        >>> {name: float(term) for name, term in objective.generator_terms(None, batch, predicted).items()}
        {'pixel': 5.0}
    """

    def __init__(self, *, pixel_weight: float = 100.0, adversarial_weight: float = 1.0) -> None:
        _check_weights(pixel_weight=pixel_weight, adversarial_weight=adversarial_weight)
        self.pixel_weight, self.adversarial_weight = pixel_weight, adversarial_weight
        self.adversarial = PatchAdversarialLoss(criterion="bce")
        # of logits: a sigmoid first would lose the gradient of a discriminator that is sure
        self.adversarial.activation, self.adversarial.loss_fct = None, BCEWithLogitsLoss()

    def predict(self, network: Callable[..., Tensor], batch: Batch) -> Terms:
        """Give the network the sources.

        Args:
            network: (B, M, *size) -> (B, K, *size).
            batch: with "sources" (B, M, *size).

        Returns:
            "pred" (B, K, *size).
        """
        return {"pred": network(batch["sources"])}

    def discriminator_terms(self, discriminator: Discriminator, batch: Batch, predicted: Mapping[str, Tensor]) -> Terms:
        """Compute the adversarial loss of the target and of the prediction, each halved.

        Args:
            discriminator: (B, M + K, *size) -> logits a patch, or a list that ends with them.
            batch: with "sources" (B, M, *size) and "target" (B, K, *size).
            predicted: with "pred" (B, K, *size), without gradient.

        Returns:
            "real" of the target, "fake" of the prediction.
        """
        real = _judged(discriminator, batch["sources"], batch["target"])
        fake = _judged(discriminator, batch["sources"], predicted["pred"])
        return {
            "real": 0.5 * self.adversarial(real, target_is_real=True, for_discriminator=True),
            "fake": 0.5 * self.adversarial(fake, target_is_real=False, for_discriminator=True),
        }

    def generator_terms(
        self, discriminator: Discriminator | None, batch: Batch, predicted: Mapping[str, Tensor]
    ) -> Terms:
        """Compute L1, and the adversarial loss where there is a discriminator.

        Args:
            discriminator: as of `discriminator_terms`; None leaves the adversarial term out.
            batch: with "sources" and "target", and perhaps "weight" (B, 1, *size).
            predicted: with "pred" (B, K, *size).

        Returns:
            "pixel" and, with a discriminator, "adversarial", weighted.
        """
        terms = {"pixel": self.pixel_weight * weighted_l1(predicted["pred"], batch)}
        if discriminator is not None:
            fake = _judged(discriminator, batch["sources"], predicted["pred"])
            adversarial = self.adversarial(fake, target_is_real=True, for_discriminator=False)
            terms["adversarial"] = self.adversarial_weight * adversarial
        return terms


FORMS = {"paper": 0.1, "stable": 100.0}  # the weight of each L1 term
NORMS = ("mean", "sum")


class Disentangling(Pix2Pix):
    """FD-GAN's (Eq. 3-5): the prediction, its pseudo-target and, if so wanted, its edges, each by L1 to the target.

    A network without a pseudo-target, a U-Net say, has the other terms.

    Args:
        form: "paper" weighs both of Eq. 5's terms by the 0.1 that is printed, "stable" by pix2pix's 100. In both, the
            network raises D(G) as the text says, not as Eq. 4 is printed.
        norm: what Eq. 5's norm is over an image's pixels. With their "mean", 0.1 is far less than the adversarial
            term; their "sum" is 65,536 times that at 256 x 256, and 0.1 of it as a weight of 6,554.
        edge_weight: of the prediction's slopes, an edge-aware term that the paper leaves to the future.

    Raises:
        ValueError: there is no such form or norm, or the weight is below 0.
    """

    def __init__(self, *, form: str = "stable", norm: str = "mean", edge_weight: float = 0.0) -> None:
        for name, value, allowed in (("form", form, FORMS), ("norm", norm, NORMS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        _check_weights(edge_weight=edge_weight)
        super().__init__(pixel_weight=FORMS[form])
        self.norm, self.edge_weight = norm, edge_weight

    def predict(self, network: Callable[..., Tensor], batch: Batch) -> Terms:
        """Give the network the sources, and keep its pseudo-target where it makes one.

        Args:
            network: such as `FDGAN`; without `forward_with_pseudo_target` it is called as it is.
            batch: with "sources" (B, M, H, W).

        Returns:
            "pred" and perhaps "pseudo_target", (B, K, H, W) each.
        """
        forward = getattr(network, "forward_with_pseudo_target", None)
        if forward is None:
            return super().predict(network, batch)
        prediction, pseudo_target = forward(batch["sources"])
        return {"pred": prediction, "pseudo_target": pseudo_target}

    def generator_terms(
        self, discriminator: Discriminator | None, batch: Batch, predicted: Mapping[str, Tensor]
    ) -> Terms:
        """Compute Pix2Pix's terms and those of Eq. 5 and the edges.

        Args:
            discriminator: as of `Pix2Pix`.
            batch: as of `Pix2Pix`.
            predicted: what `predict` gave.

        Returns:
            "pixel", "adversarial" with a discriminator, "pseudo_target" where there is one, "edge" where it has a
            weight.
        """
        terms = super().generator_terms(discriminator, batch, predicted)
        if "pseudo_target" in predicted:  # Eq. 5's second term
            terms["pseudo_target"] = self.pixel_weight * weighted_l1(predicted["pseudo_target"], batch)
        if self.norm == "sum":
            pixels = batch["target"][0].numel()
            terms |= {name: pixels * terms[name] for name in ("pixel", "pseudo_target") if name in terms}
        if self.edge_weight:
            synthetic, real = predicted["pred"], batch["target"]
            slopes = [l1_loss(synthetic.diff(dim=axis), real.diff(dim=axis)) for axis in range(2, synthetic.dim())]
            terms["edge"] = self.edge_weight * torch.stack(slopes).sum()
        return terms


class AnyScale(Pix2Pix):
    """HMF-MambaINR's, with targets finer than the sources, so that its decoder learns what lies between their
    pixels.

    Sources are always `finest` times as coarse as the images, so that a pixel is of one size for the encoder, in
    training and after it. Targets have a size by chance, of the sources' to the images' own; in validation the latter.
    The discriminator sees the sources enlarged to the target. The text's "1 and 100 respectively" are `pixel_weight`
    and `adversarial_weight`; pix2pix's are the other way round.

    Args:
        finest: at least 1. With 1, the paper's, sources and targets are the images.
        pixel_weight, adversarial_weight: as of `Pix2Pix`.

    Raises:
        ValueError: `finest` is below 1 or not finite.
    """

    def __init__(self, *, finest: float = 1.0, pixel_weight: float = 100.0, adversarial_weight: float = 1.0) -> None:
        if not 1 <= finest < math.inf:
            raise ValueError(f"finest must be at least 1 and finite, got {finest}")
        super().__init__(pixel_weight=pixel_weight, adversarial_weight=adversarial_weight)
        self.finest = finest

    def predict(self, network: Callable[..., Tensor], batch: Batch) -> Terms:
        """Give the network sources made coarser, and ask it for a finer size.

        Args:
            network: (B, M, h, w) and the output's size -> (B, K, *size), such as `HMFMambaINR`; while it is in training
                the size is drawn, else it is the batch's.
            batch: with "sources" (B, M, H, W).

        Returns:
            "pred" (B, K, *size), and "sources" (B, M, *size) enlarged to it; with `finest` 1 only "pred", of (H, W).
        """
        if self.finest == 1:
            return super().predict(network, batch)
        height, width = batch["sources"].shape[2:]
        coarse = max(1, round(height / self.finest)), max(1, round(width / self.finest))
        sources = _resized(batch["sources"], coarse)
        size = height, width
        if getattr(network, "training", False):
            times = 1 + (self.finest - 1) * float(torch.rand(()))
            size = min(height, round(coarse[0] * times)), min(width, round(coarse[1] * times))
        return {"pred": network(sources, size), "sources": _resized(sources, size)}

    def discriminator_terms(self, discriminator: Discriminator, batch: Batch, predicted: Mapping[str, Tensor]) -> Terms:
        """Compute Pix2Pix's, sources and target at the prediction's size.

        Args:
            discriminator: as of `Pix2Pix`.
            batch: as of `Pix2Pix`, at full size.
            predicted: what `predict` gave, without gradient.

        Returns:
            "real" and "fake".
        """
        return super().discriminator_terms(discriminator, _as_fine(batch, predicted), predicted)

    def generator_terms(
        self, discriminator: Discriminator | None, batch: Batch, predicted: Mapping[str, Tensor]
    ) -> Terms:
        """Compute Pix2Pix's, sources and target at the prediction's size.

        Args:
            discriminator: as of `Pix2Pix`.
            batch: as of `Pix2Pix`, at full size.
            predicted: what `predict` gave.

        Returns:
            "pixel" and, with a discriminator, "adversarial", weighted.
        """
        return super().generator_terms(discriminator, _as_fine(batch, predicted), predicted)


def _as_fine(batch: Batch, predicted: Mapping[str, Tensor]) -> Batch:
    """The batch at the prediction's size, with the sources of which it was made."""
    if "sources" not in predicted:
        return batch
    size = predicted["pred"].shape[2], predicted["pred"].shape[3]
    resized = {name: _resized(batch[name], size) for name in ("target", "weight") if name in batch}
    return {**batch, **resized, "sources": predicted["sources"]}


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), each pixel the mean of what it covers"""
    if (images.shape[2], images.shape[3]) == size:
        return images
    return interpolate(images, size, mode="bilinear", antialias=True)


def weighted_l1(synthetic: Tensor, batch: Batch) -> Tensor:
    """Compute the mean error against the batch's target, each pixel counted by its "weight" where there is one.

    Args:
        synthetic: (B, K, *size).
        batch: with "target" of that shape, and perhaps "weight" (B, 1, *size).

    Returns:
        A scalar; NaN where the weights are all 0.

    Example:
        >>> batch = {"target": torch.tensor([[[0.0, 1.0]]]), "weight": torch.tensor([[[1.0, 3.0]]])}
        >>> float(weighted_l1(torch.zeros(1, 1, 2), batch))
        0.75
    """
    wrong = (synthetic - batch["target"]).abs()
    if "weight" not in batch:
        return wrong.mean()
    weight = batch["weight"].expand_as(wrong)
    return (wrong * weight).sum() / weight.sum()


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if weight < 0:
            raise ValueError(f"{name} must be at least 0, got {weight}")


def _judged(discriminator: Discriminator, sources: Tensor, image: Tensor) -> Tensor:
    """(B, M, *size), (B, K, *size) -> a number a patch, in float32: in bfloat16 a loss would lose its small steps"""
    answer = discriminator(torch.cat([sources, image], dim=1))
    last = answer[-1] if isinstance(answer, list | tuple) else answer  # MONAI's gives its features too
    return last.float()
