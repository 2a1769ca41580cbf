"""The selective objective counts what has ground truth, and nothing else."""

import pytest
import torch

from monai_ext.networks import ContrastDiscriminators, PMMSynth
from monai_ext.training.selective import SelectiveSupervision


def make_batch(*, condition: tuple[int, ...], available: tuple[int, ...]) -> dict:
    generator = torch.Generator().manual_seed(0)
    there = torch.tensor([available] * 2).bool()
    target = torch.rand(2, 3, 32, 32, generator=generator) * there[:, :, None, None]
    given = torch.tensor([condition] * 2).bool()
    return {
        "sources": target * given[:, :, None, None],
        "target": target,
        "condition": given,
        "available": there,
        "dataset": ["a", "b"],
    }


def test_each_term_is_the_equations_by_hand():
    batch = make_batch(condition=(1, 0, 0), available=(1, 1, 0))
    pred = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    constant = lambda images, which: [images.new_full((len(images), 1, 2, 2), 0.25) for _ in which]  # noqa: E731
    objective = SelectiveSupervision(sites=("a", "b"))
    terms = objective.generator_terms(constant, batch, {"pred": pred})
    wrong = (pred - batch["target"]).abs()
    torch.testing.assert_close(terms["synthesis"], 100 * wrong[:, 1].mean())
    torch.testing.assert_close(terms["reconstruction"], 30 * wrong[:, 0].mean())
    assert terms["adversarial"].item() == pytest.approx(0.75**2)
    terms = objective.discriminator_terms(constant, batch, {"pred": pred})
    assert {name: value.item() for name, value in terms.items()} == pytest.approx({"real": 0.75**2, "fake": 0.25**2})


def test_what_has_no_ground_truth_gets_no_gradient():
    batch = make_batch(condition=(1, 0, 0), available=(1, 1, 0))
    network = PMMSynth(modalities=("T1", "T2", "DWI"), sites=("a", "b"), width=4)
    judges = ContrastDiscriminators(modalities=("T1", "T2", "DWI"), width=4)
    objective = SelectiveSupervision(sites=network.sites)
    predicted = objective.predict(network, batch)
    sum(objective.generator_terms(judges, batch, predicted).values()).backward()
    moved = [any(p.grad is not None and p.grad.any() for p in part.parameters()) for part in network.decoders]
    assert moved == [True, True, False]
    assert [any(p.grad is not None for p in judge.parameters()) for judge in judges.each] == [False, True, False]


def test_a_batch_that_mixes_availability_is_refused():
    batch = make_batch(condition=(1, 0, 0), available=(1, 1, 0))
    batch["available"][0, 2] = True
    with pytest.raises(ValueError, match="a batch must have one availability and one condition"):
        SelectiveSupervision(sites=("a", "b")).generator_terms(None, batch, {"pred": batch["target"]})


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="reconstruction_weight must be at least 0, got -1"):
        SelectiveSupervision(sites=("a",), reconstruction_weight=-1)


def test_pixels_count_as_their_weight_says():
    batch = make_batch(condition=(1, 0, 0), available=(1, 1, 0))
    pred = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch["weight"] = torch.zeros(2, 1, 32, 32)
    batch["weight"][:, :, 5, 6] = 3
    terms = SelectiveSupervision(sites=("a", "b")).generator_terms(None, batch, {"pred": pred})
    torch.testing.assert_close(terms["synthesis"], 100 * (pred - batch["target"])[:, 1, 5, 6].abs().mean())


def test_without_reconstruction_sources_are_not_made():
    batch = make_batch(condition=(1, 0, 0), available=(1, 1, 0))
    network = PMMSynth(modalities=("T1", "T2", "DWI"), sites=("a", "b"), width=4)
    made = SelectiveSupervision(sites=network.sites, reconstruction_weight=0).predict(network, batch)["pred"]
    assert made.flatten(2).any(2).any(0).tolist() == [False, True, False]


def test_of_a_batch_that_names_no_dataset_the_network_is_told_none():
    batch = make_batch(condition=(1, 0, 0), available=(1, 1, 1))
    told = []

    def network(sources: torch.Tensor, *arguments: torch.Tensor | None) -> torch.Tensor:
        told.append(arguments[1])
        return sources

    objective = SelectiveSupervision(sites=("a", "b"))
    objective.predict(network, batch)
    objective.predict(network, {**batch, "dataset": ["", ""]})
    assert told[0].tolist() == [0, 1]
    assert told[1] is None
