"""Perturbations: what is asked for happens to the one source named, as far as its level says, the same every time."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, rotate
from skimage.registration import phase_cross_correlation
from torch import Tensor

from monai_ext.data.perturbations import LEVELS, MOVES, Harm, Perturbation, apply, perturb, randomize

SHAPE = (48, 52, 6)
KINDS = ("translate", "displace", "rotate", "motion", "noise")


def head(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """A textured ellipse in [0, 1] on a background of zeros, far from the edges."""
    rng = np.random.default_rng(0)
    i, j, _ = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    inside = gaussian_filter((i**2 / 0.4 + j**2 / 0.5 < 1).astype(float), (1, 1, 0))
    texture = gaussian_filter(rng.random(shape), (1.5, 1.5, 0))
    image = inside * (0.3 + 0.5 * (texture - texture.min()) / np.ptp(texture))
    return torch.tensor(np.where(image > 0.01, image, 0)).float()


def drawn(kind: str, *, seed: int = 0, subject: str = "a", shape: tuple[int, int, int] = SHAPE) -> Harm:
    return randomize(Perturbation(kind, "T2"), shape, seed=seed, subject=subject)


def perturbed(kind: str, level: float, volume: Tensor | None = None, **options) -> Tensor:
    volume = head() if volume is None else volume
    draw = drawn(kind, shape=tuple(volume.shape), **options)
    return apply(Perturbation(kind, "T2"), volume, draw, level=level)


def shift_of(moved: Tensor, still: Tensor) -> np.ndarray:
    """By how much one slice lies beside the other, found by scikit-image."""
    return phase_cross_correlation(moved.numpy(), still.numpy(), upsample_factor=50, normalization=None)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_level_zero_changes_nothing(kind: str) -> None:
    assert torch.equal(perturbed(kind, 0.0), head())


@pytest.mark.parametrize("kind", KINDS)
def test_harm_grows_with_the_level_and_values_stay_in_range(kind: str) -> None:
    harm = [float((perturbed(kind, level) - head()).square().mean()) for level in LEVELS[kind]]
    assert harm[0] == 0
    assert harm == sorted(harm)
    assert harm[1] > 1e-6
    worst = perturbed(kind, LEVELS[kind][-1])
    assert 0 <= worst.min() < worst.max() <= 1
    assert worst.dtype == torch.float32
    assert worst.shape == SHAPE


@pytest.mark.parametrize("kind", ["translate", "displace", "rotate", "motion"])
def test_energy_is_moved_not_made(kind: str) -> None:
    before, after = head(), perturbed(kind, LEVELS[kind][-1])
    torch.testing.assert_close(after.square().mean((0, 1)), before.square().mean((0, 1)), rtol=0.06, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_harm_and_others_other_harm(kind: str) -> None:
    level = LEVELS[kind][-1]
    first = perturbed(kind, level)
    assert torch.equal(first, perturbed(kind, level))
    for other in (perturbed(kind, level, seed=1), perturbed(kind, level, subject="b")):
        assert not torch.equal(first, other)
    moved = randomize(Perturbation(kind, "T1"), SHAPE, seed=0, subject="a")
    assert any(not torch.equal(a, b) for a, b in zip(moved, drawn(kind), strict=True)), "another contrast"


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_s_draw_does_not_depend_on_how_many_follow(kind: str) -> None:
    volume = head()
    fewer = perturbed(kind, LEVELS[kind][-1], volume[:, :, :4].contiguous())
    torch.testing.assert_close(fewer, perturbed(kind, LEVELS[kind][-1], volume)[:, :, :4], atol=1e-6, rtol=0)


def test_a_translation_is_of_any_length_up_to_the_level_along_each_axis() -> None:
    poses = randomize(Perturbation("translate", "T2"), (8, 8, 4000), seed=0, subject="a").poses[0]
    assert not poses[:, 2].any()
    for along in poses[:, :2].T:
        assert -1 <= along.min() < -0.99 < 0.99 < along.max() <= 1
        assert abs(along.mean()) < 0.03
        assert along.std().item() == pytest.approx(3**-0.5, abs=0.02), "each length is as likely"
    assert abs(np.corrcoef(poses[:, 0], poses[:, 1])[0, 1]) < 0.05


@pytest.mark.parametrize("level", [0.5, 1.0, 3.0])
def test_each_slice_is_displaced_by_the_level_in_a_direction_of_its_own(level: float) -> None:
    moved, still = perturbed("displace", level), head()
    shifts = np.array([shift_of(moved[:, :, k], still[:, :, k]) for k in range(SHAPE[2])])
    np.testing.assert_allclose(np.linalg.norm(shifts, axis=1), level, atol=0.06)
    np.testing.assert_allclose(shifts, level * drawn("displace").poses[0, :, :2].numpy(), atol=0.06)
    directions = np.arctan2(shifts[:, 1], shifts[:, 0])
    assert np.ptp(directions) > 1


def test_whole_pixels_are_moved_exactly_and_what_comes_in_is_zero() -> None:
    volume = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    poses = torch.tensor([1.0, -1.0, 0.0]).expand(1, SHAPE[2], 3)
    draw = Harm(poses=poses, held=torch.zeros(0, SHAPE[1]), noise=torch.zeros(2, 0, 0, 0))
    moved = apply(Perturbation("translate", "T2"), volume, draw, level=2.0)
    torch.testing.assert_close(moved[2:, :-2], volume[:-2, 2:], atol=2e-4, rtol=0)
    assert moved[:2].max() < 1e-5
    assert moved[:, -2:].max() < 1e-5


def test_each_slice_is_turned_by_the_level_to_one_side_or_the_other() -> None:
    turned, still = perturbed("rotate", 7.0), head()
    sides = drawn("rotate").poses[0, :, 2].tolist()
    assert set(sides) == {-1.0, 1.0}
    for k, side in enumerate(sides):
        expected, wrong = (
            rotate(still[:, :, k].numpy(), angle * side, reshape=False, order=3) for angle in (7.0, -7.0)
        )
        error, apart = (float(np.sqrt(np.mean((turned[:, :, k].numpy() - image) ** 2))) for image in (expected, wrong))
        assert error < 0.006
        assert apart > 5 * error


def test_motion_without_moves_is_no_motion() -> None:
    """All lines in one pose are the image in that pose: k-space is cut up and put together right."""
    volume, poses = head(), torch.tensor([2.0, 1.0, 0.0]).expand(1, SHAPE[2], 3)
    draw = Harm(poses=poses, held=torch.zeros(SHAPE[2], SHAPE[1], dtype=torch.int64), noise=torch.zeros(2, 0, 0, 0))
    scanned = apply(Perturbation("motion", "T2"), volume, draw, level=1.0)
    moved = apply(Perturbation("translate", "T2"), volume, draw, level=1.0)
    torch.testing.assert_close(scanned, moved, atol=1e-5, rtol=0)


def test_a_move_at_both_ends_of_the_scan_changes_the_highest_frequencies_alone() -> None:
    volume = 0.2 + 0.5 * head()  # far from 0 everywhere, so that the magnitude folds nothing
    held = torch.zeros(SHAPE[2], SHAPE[1], dtype=torch.int64)
    held[:, :9] = held[:, -8:] = 1
    poses = torch.stack([torch.zeros(SHAPE[2], 3), torch.tensor([0.0, 3.0, 0.0]).expand(SHAPE[2], 3)])
    draw = Harm(poses=poses, held=held, noise=torch.zeros(2, 0, 0, 0))
    scanned = apply(Perturbation("motion", "T2"), volume, draw, level=1.0)
    change = torch.fft.fftshift(torch.fft.fft(scanned - volume, dim=1), dim=1).abs().mean((0, 2))
    assert change[9:-8].max() < 0.01 * change[-8:].min()


def test_motion_makes_ghosts_but_hardly_displaces() -> None:
    moved, still = perturbed("motion", 4.0), head()
    shifts = [np.linalg.norm(shift_of(moved[:, :, k], still[:, :, k])) for k in range(SHAPE[2])]
    assert np.mean(shifts) < 0.15 * 4
    air = slice(0, 3)
    assert not still[:, air].any()
    assert moved[:, air].mean() > 100 * perturbed("translate", 4.0)[:, air].mean()
    held = drawn("motion").held
    assert (held.diff(dim=1) >= 0).all(), "lines are acquired one after another"
    assert held.max() <= MOVES
    middle = drawn("motion").poses[held[:, SHAPE[1] // 2], torch.arange(SHAPE[2])]
    assert not middle.any()


def test_noise_is_rician_and_leaves_what_was_cut_away() -> None:
    shape = (64, 64, 8)
    bright, dark = (torch.full(shape, value) for value in (0.5, 1e-6))
    noisy = perturbed("noise", 0.05, bright)
    assert float((noisy - bright).std()) == pytest.approx(0.05, rel=0.03)
    assert float(noisy.mean()) == pytest.approx(0.5 + 0.05**2 / (2 * 0.5), abs=1e-3)
    rayleigh = perturbed("noise", 0.05, dark)
    assert float(rayleigh.mean()) == pytest.approx(0.05 * math.sqrt(math.pi / 2), rel=0.02)
    assert not perturbed("noise", 0.05, torch.zeros(shape)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_source_changes(kind: str) -> None:
    image = torch.stack([head(), head() / 2, head() / 3])
    before = image.clone()
    changed = perturb(Perturbation(kind, "t2w"), image, drawn(kind), level=1.0, sources=("T1", "T2", "FLAIR"))
    assert torch.equal(image, before), "the input is left as it was"
    assert [torch.equal(a, b) for a, b in zip(changed, image, strict=True)] == [True, False, True]


def test_a_perturbation_says_what_it_does() -> None:
    assert Perturbation("none").described() == {"kind": "none", "contrast": "", "levels": [0.0], "unit": ""}
    described = Perturbation("translate", "t2w").described()
    assert described == {"kind": "translate", "contrast": "T2", "levels": [0, 0.5, 1, 1.5, 2, 2.5, 3], "unit": "px"}
    assert Perturbation("noise", "T1", [0.1]).described()["levels"] == [0.1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "shake", "contrast": "T2"},
            "kind must be one of none, translate, displace, rotate, motion, noise, got 'shake'",
        ),
        ({"kind": "rotate", "contrast": "T9"}, "unknown contrast 'T9'"),
        ({"kind": "rotate"}, "unknown contrast ''"),
        ({"kind": "none", "contrast": "T1"}, "'none' has no contrast"),
        ({"kind": "noise", "contrast": "T1", "levels": [0, -1]}, r"at least 0, got \[0.0, -1.0\]"),
        ({"kind": "noise", "contrast": "T1", "levels": [math.nan]}, "levels must be finite"),
        ({"kind": "noise", "contrast": "T1", "levels": [1, 2, 1]}, "levels must differ"),
    ],
)
def test_a_perturbation_that_makes_no_sense_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Perturbation(**arguments)
