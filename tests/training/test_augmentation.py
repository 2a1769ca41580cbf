"""Sources are harmed in training as in evaluation, by the draw alone; the target never."""

import pytest
import torch
from monai.transforms import Compose

from monai_ext.data.perturbations import Perturbation, perturb, randomize
from monai_ext.training.augmentation import HarmSources
from monai_ext.training.datasets import samples


def make_item(channels: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels + 1, 5, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (20, 24), mode="bilinear")[0]
    return {"sources": images[:channels], "target": images[channels:], "subject": "a"}


def harmed(seed: int, *, levels: list[float], kind: str = "translate", channels: int = 2) -> dict[str, torch.Tensor]:
    transform = HarmSources([{"kind": kind, "contrast": "t2w", "levels": levels}], sources=["T1", "T2"])
    transform.set_random_state(seed=seed)
    return transform(make_item(channels))


def test_patches_are_not_harmed():
    harm = [{"kind": "translate", "contrast": "T2", "levels": [1]}]
    with pytest.raises(ValueError, match=r"augment is for slices, and patch_size \[8, 8, 8\] asks for patches in 3D"):
        samples(
            data=[],
            sources=["T1", "T2"],
            target=["PD"],
            slices="nonempty",
            image_size=8,
            patch_size=[8, 8, 8],
            augment=harm,
        )


@pytest.mark.parametrize("kind", ["translate", "displace", "rotate", "motion", "noise"])
def test_the_named_source_alone_is_harmed(kind: str):
    item, changed = make_item(), harmed(3, levels=[0.5], kind=kind)
    assert not torch.equal(changed["sources"][1], item["sources"][1])
    assert torch.equal(changed["sources"][0], item["sources"][0])
    assert torch.equal(changed["target"], item["target"])
    assert changed["subject"] == "a"


def test_it_is_what_evaluation_does_to_a_slice():
    one = Perturbation("displace", "T2", (2.0,))
    transform = HarmSources([{"kind": "displace", "contrast": "T2", "levels": [2]}], sources=["T1", "T2"])
    transform.set_random_state(seed=7)
    made = transform(make_item())["sources"]
    draw = randomize(one, (20, 24, 1), seed=transform.seed, subject="")
    volume = perturb(one, make_item()["sources"][..., None], draw, level=2.0, sources=["T1", "T2"])
    torch.testing.assert_close(made, volume[..., 0])


def test_each_level_is_as_likely_and_0_is_the_image_itself():
    item = make_item()
    still = [torch.equal(harmed(seed, levels=[0, 3])["sources"], item["sources"]) for seed in range(60)]
    assert 15 < sum(still) < 45


def test_the_draw_decides_all_that_is_random():
    first, again, other = (harmed(seed, levels=[1, 2, 3])["sources"] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_slices_beside_a_source_are_harmed_with_it():
    item, changed = make_item(6), harmed(1, levels=[3], channels=6)
    same = [torch.equal(a, b) for a, b in zip(item["sources"], changed["sources"], strict=True)]
    assert same == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("perturbation", "message"),
    [
        ({"kind": "translate", "contrast": "FLAIR"}, "augment harms sources, T1, T2, got translate of FLAIR"),
        ({"kind": "none"}, "augment harms sources, T1, T2, got none of nothing"),
        ({"kind": "shake", "contrast": "T2"}, "kind must be one of none, translate"),
        ({"kind": "translate", "contrast": "T2", "levels": [-1]}, "levels must be finite and at least 0"),
    ],
)
def test_what_cannot_harm_a_source_is_refused(perturbation: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Compose([HarmSources([perturbation], sources=["T1", "T2"])])
