"""Each method's terms against their formulas, and what a discriminator's answer may be."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from monai_ext.networks import FDGAN
from monai_ext.training.objectives import AnyScale, Disentangling, Pix2Pix, weighted_l1

BATCH = {"sources": torch.rand(2, 2, 8, 8), "target": torch.rand(2, 1, 8, 8)}
MADE = {"pred": torch.rand(2, 1, 8, 8)}


def judge(x: torch.Tensor) -> list[torch.Tensor]:
    """As MONAI's: features first, the answer last; it depends on sources and image apart."""
    return [x, 3 * x[:, :2].mean((1, 2, 3)) - 2 * x[:, 2:].mean((1, 2, 3))]


def logits(image: torch.Tensor) -> torch.Tensor:
    return judge(torch.cat([BATCH["sources"], image], 1))[-1]


def test_the_network_minimises_weighted_l1_and_the_discriminators_doubt():
    terms = Pix2Pix(pixel_weight=10, adversarial_weight=2).generator_terms(judge, BATCH, MADE)
    assert terms["pixel"].item() == pytest.approx(10 * (MADE["pred"] - BATCH["target"]).abs().mean().item())
    assert terms["adversarial"].item() == pytest.approx(2 * softplus(-logits(MADE["pred"])).mean().item(), rel=1e-5)


def test_the_discriminator_minimises_half_of_each_mistake():
    terms = Pix2Pix().discriminator_terms(judge, BATCH, MADE)
    assert terms["real"].item() == pytest.approx(0.5 * softplus(-logits(BATCH["target"])).mean().item(), rel=1e-5)
    assert terms["fake"].item() == pytest.approx(0.5 * softplus(logits(MADE["pred"])).mean().item(), rel=1e-5)


def test_a_discriminator_that_is_sure_still_gives_a_gradient():
    image = MADE["pred"].clone().requires_grad_()
    Pix2Pix().generator_terms(lambda x: -50 - x[:, 2:].sum((1, 2, 3)), BATCH, {"pred": image})["adversarial"].backward()
    torch.testing.assert_close(image.grad, torch.full_like(image, 0.5))  # of the mean over two images


def test_without_a_discriminator_there_is_l1_alone():
    assert set(Pix2Pix().generator_terms(None, BATCH, MADE)) == {"pixel"}


@pytest.mark.parametrize(
    ("objective", "weight"),
    [
        (Pix2Pix, "pixel_weight"),
        (Pix2Pix, "adversarial_weight"),
        (AnyScale, "pixel_weight"),
        (AnyScale, "adversarial_weight"),
        (Disentangling, "edge_weight"),
    ],
)
def test_a_negative_weight_is_refused(objective: type, weight: str):
    with pytest.raises(ValueError, match=f"{weight} must be at least 0, got -1"):
        objective(**{weight: -1})


@pytest.mark.parametrize(("form", "weight"), [("paper", 0.1), ("stable", 100)])
def test_fd_gan_holds_prediction_and_pseudo_target_to_the_target_alike(form: str, weight: float):
    made = {**MADE, "pseudo_target": torch.rand(2, 1, 8, 8)}
    terms = Disentangling(form=form).generator_terms(judge, BATCH, made)
    for name, key in (("pixel", "pred"), ("pseudo_target", "pseudo_target")):
        assert terms[name].item() == pytest.approx(weight * (made[key] - BATCH["target"]).abs().mean().item())
    assert terms["adversarial"].item() == pytest.approx(softplus(-logits(MADE["pred"])).mean().item(), rel=1e-5)


def test_fd_gan_gives_both_of_its_images_and_another_network_its_one():
    network = FDGAN(width=4)
    made = Disentangling().predict(network, BATCH)
    torch.testing.assert_close(made["pseudo_target"], network.laf(BATCH["sources"]))
    assert set(Disentangling().predict(lambda x: x[:, :1], BATCH)) == {"pred"}


def test_edges_are_the_slopes_whatever_the_brightness():
    objective = Disentangling(edge_weight=3)
    brighter = {"pred": BATCH["target"] + 0.5}
    assert objective.generator_terms(None, BATCH, brighter)["edge"].item() == pytest.approx(0, abs=1e-6)
    step = BATCH["target"].clone()
    step[..., 4:] += 1  # one of seven slopes along a row is off by one
    assert objective.generator_terms(None, BATCH, {"pred": step})["edge"].item() == pytest.approx(3 / 7, rel=1e-5)
    assert "edge" not in Disentangling().generator_terms(None, BATCH, MADE)


def test_the_norm_of_eq_5_can_be_a_sum_over_pixels():
    batch = {"target": torch.rand(3, 1, 8, 6), "sources": torch.rand(3, 2, 8, 6)}
    predicted = {name: torch.rand(3, 1, 8, 6) for name in ("pred", "pseudo_target")}
    terms = Disentangling(form="paper", norm="sum").generator_terms(None, batch, predicted)
    for name, of in (("pixel", "pred"), ("pseudo_target", "pseudo_target")):
        by_hand = 0.1 * (predicted[of] - batch["target"]).abs().sum((1, 2, 3)).mean()
        torch.testing.assert_close(terms[name], by_hand)


def test_an_unknown_norm_is_refused_with_those_known():
    with pytest.raises(ValueError, match="norm must be one of mean, sum, got 'max'"):
        Disentangling(norm="max")


def test_an_unknown_form_is_refused_with_those_known():
    with pytest.raises(ValueError, match="form must be one of paper, stable, got 'printed'"):
        Disentangling(form="printed")


class Sizes(torch.nn.Module):
    """Notes what it was asked for."""

    def forward(self, x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        self.asked = tuple(x.shape[2:]), None if output_size is None else tuple(output_size)
        return x[:, :1] if output_size is None else torch.nn.functional.interpolate(x[:, :1], output_size)


def test_sources_are_always_as_coarse_and_targets_of_a_size_by_chance():
    torch.manual_seed(0)
    network, batch = Sizes(), {"sources": torch.rand(1, 2, 64, 48), "target": torch.rand(1, 1, 64, 48)}
    objective, sizes = AnyScale(finest=2), []
    for _ in range(60):
        predicted = objective.predict(network, batch)
        coarse, size = network.asked
        assert coarse == (32, 24)
        assert predicted["pred"].shape[2:] == predicted["sources"].shape[2:] == size
        sizes.append(size)
    assert all(32 <= high <= 64 and abs(wide - high * 48 / 64) < 1 for high, wide in sizes)
    assert min(high for high, _ in sizes) < 36 < 60 < max(high for high, _ in sizes)


def test_targets_and_the_discriminators_sources_are_of_the_predictions_size():
    torch.manual_seed(0)
    batch = {"sources": torch.rand(1, 2, 64, 48), "target": torch.rand(1, 1, 64, 48)}
    objective, seen = AnyScale(finest=2), []

    def discriminator(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images

    predicted = {name: value.detach() for name, value in objective.predict(Sizes(), batch).items()}
    objective.discriminator_terms(discriminator, batch, predicted)
    pixel = objective.generator_terms(None, batch, predicted)["pixel"]
    size = tuple(predicted["pred"].shape[2:])
    assert size != (64, 48)
    target = torch.nn.functional.interpolate(batch["target"], size, mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[0], torch.cat([predicted["sources"], target], 1))
    torch.testing.assert_close(pixel, 100 * (predicted["pred"] - target).abs().mean())


def test_validation_is_at_the_images_own_size_and_the_papers_training_changes_none():
    batch = {"sources": torch.rand(1, 2, 16, 16)}
    for network, finest, asked in ((Sizes().eval(), 2, ((8, 8), (16, 16))), (Sizes().train(), 1, ((16, 16), None))):
        for _ in range(8):
            AnyScale(finest=finest).predict(network, batch)
            assert network.asked == asked


def test_the_loss_weights_can_be_those_that_are_printed():
    batch = {"sources": torch.rand(1, 2, 16, 16), "target": torch.rand(1, 1, 16, 16)}
    objective = AnyScale(pixel_weight=1, adversarial_weight=100)
    terms = objective.generator_terms(lambda images: images, batch, {"pred": batch["target"] + 0.5})
    assert terms["pixel"] == pytest.approx(0.5)
    ours = AnyScale().generator_terms(lambda images: images, batch, {"pred": batch["target"] + 0.5})
    assert terms["adversarial"] == pytest.approx(100 * float(ours["adversarial"]))


@pytest.mark.parametrize("finest", [0.5, float("nan"), float("inf")])
def test_a_finest_below_one_is_refused(finest: float):
    with pytest.raises(ValueError, match=f"finest must be at least 1 and finite, got {finest}"):
        AnyScale(finest=finest)


def test_pixels_count_as_the_batchs_weight_says():
    made, target = torch.rand(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(2, 1, 8, 8)
    found = weighted_l1(made, {"target": target, "weight": weight})
    by_hand = np.average((made - target).abs().numpy(), weights=weight.numpy())
    assert found.item() == pytest.approx(by_hand)
    assert weighted_l1(made, {"target": target}).item() == pytest.approx((made - target).abs().mean().item())


def test_a_finer_targets_weight_is_of_its_size_too():
    torch.manual_seed(0)
    batch = {name: torch.rand(1, 1, 16, 16) for name in ("sources", "target", "weight")}
    objective = AnyScale(finest=2)
    predicted = objective.predict(Sizes(), batch)
    size = tuple(predicted["pred"].shape[2:])
    assert size != (16, 16)
    fine = {n: torch.nn.functional.interpolate(v, size, mode="bilinear", antialias=True) for n, v in batch.items()}
    expected = 100 * weighted_l1(predicted["pred"], fine)
    torch.testing.assert_close(objective.generator_terms(None, batch, predicted)["pixel"], expected)
