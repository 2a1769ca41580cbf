"""Metrics: scikit-image's figures over slices, volumes and brains, and stripes where there are some."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import MAEMetric, PSNRMetric, SSIMMetric
from scipy.ndimage import gaussian_filter
from skimage.metrics import mean_squared_error, normalized_root_mse, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from monai_ext.evaluation.metrics import FIGURES, compare_slices, compare_volumes, ssim_map, stripes
from monai_ext.evaluation.protocol import Protocol, chosen

SHAPE = (29, 36, 9)
SPACING = (1.0, 1.0, 1.0)


def pair(*, seed: int = 0, noise: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction, the truth, smooth and in [0, 1], and a mask that touches the edge of the slices."""
    rng = np.random.default_rng(seed)
    truth = gaussian_filter(rng.random(SHAPE), 1.5)
    truth = (truth - truth.min()) / np.ptp(truth)
    prediction = np.clip(truth + noise * rng.standard_normal(SHAPE), 0, 1)
    mask = truth > 0.45
    mask[:, :, 0] = False
    return torch.tensor(prediction).float(), torch.tensor(truth).float(), torch.tensor(mask)


def similarity(prediction: np.ndarray, truth: np.ndarray, *, data_range: float = 1.0) -> tuple[float, np.ndarray]:
    """scikit-image's SSIM of one slice as Wang et al. define it, and its map."""
    return structural_similarity(
        truth,
        prediction,
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )


def test_each_slice_has_scikit_image_s_figures() -> None:
    prediction, truth, _ = pair()
    found = compare_slices(prediction.movedim(-1, 0), truth.movedim(-1, 0))
    assert tuple(found) == FIGURES
    for k in range(SHAPE[2]):
        p, t = prediction[:, :, k].numpy(), truth[:, :, k].numpy()
        assert float(found["psnr"][k]) == pytest.approx(peak_signal_noise_ratio(t, p, data_range=1), abs=1e-4)
        assert float(found["ssim"][k]) == pytest.approx(similarity(p, t)[0], abs=1e-5)
        assert float(found["mae"][k]) == pytest.approx(np.abs(p - t).mean(), rel=1e-5)
        assert float(found["nrmse"][k]) == pytest.approx(normalized_root_mse(t, p, normalization="euclidean"), rel=1e-5)
        assert float(found["nmse"][k]) == pytest.approx(((p - t) ** 2).sum() / (t**2).sum(), rel=1e-5)


def test_monai_s_metrics_agree() -> None:
    prediction, truth = (image.movedim(-1, 0) for image in pair()[:2])
    found = compare_slices(prediction, truth)
    for name, metric in (("psnr", PSNRMetric(1.0)), ("mae", MAEMetric()), ("ssim", SSIMMetric(2))):
        theirs = metric(prediction[:, None], truth[:, None])[:, 0]
        torch.testing.assert_close(found[name].float(), theirs, atol=2e-5, rtol=1e-5)


def test_a_volume_is_all_of_its_voxels_together() -> None:
    prediction, truth, mask = pair()
    found = compare_volumes(prediction, truth, mask=mask, spacing=SPACING).volume
    p, t = prediction.numpy(), truth.numpy()
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(t, p, data_range=1), abs=1e-4)
    assert found["mae"] == pytest.approx(np.abs(p - t).mean(), rel=1e-5)
    assert found["nrmse"] == pytest.approx(normalized_root_mse(t, p, normalization="euclidean"), rel=1e-5)
    assert found["ssim"] == pytest.approx(
        np.mean([similarity(p[:, :, k], t[:, :, k])[0] for k in range(SHAPE[2])]), abs=1e-5
    )


def test_the_brain_is_the_voxels_inside_the_mask() -> None:
    prediction, truth, mask = pair()
    found = compare_volumes(prediction, truth, mask=mask, spacing=SPACING).brain
    p, t, inside = prediction.numpy(), truth.numpy(), mask.numpy()
    assert found["psnr"] == pytest.approx(-10 * np.log10(mean_squared_error(t[inside], p[inside])), abs=1e-4)
    assert found["mae"] == pytest.approx(np.abs(p - t)[inside].mean(), rel=1e-5)
    assert found["nmse"] == pytest.approx(((p - t)[inside] ** 2).sum() / (t[inside] ** 2).sum(), rel=1e-5)
    maps = np.stack([similarity(p[:, :, k], t[:, :, k])[1] for k in range(SHAPE[2])], axis=2)[5:-5, 5:-5]
    assert found["ssim"] == pytest.approx(maps[inside[5:-5, 5:-5]].mean(), abs=1e-5)


def test_what_lies_outside_the_mask_does_not_count_for_the_brain() -> None:
    prediction, truth, mask = pair()
    spoilt = torch.where(mask, prediction, 1 - truth)
    ours, other = (compare_volumes(image, truth, mask=mask, spacing=SPACING) for image in (prediction, spoilt))
    for name in ("psnr", "mae", "nrmse", "nmse", "stripes"):  # SSIM's windows reach out of the mask
        assert other.brain[name] == ours.brain[name]
    assert other.volume["psnr"] < ours.volume["psnr"]


def test_another_data_range_changes_nothing_but_the_unit() -> None:
    prediction, truth, mask = pair()
    one = compare_volumes(prediction, truth, mask=mask, spacing=SPACING)
    other = compare_volumes(prediction * 4095, truth * 4095, mask=mask, spacing=SPACING, data_range=4095.0)
    for name in ("psnr", "ssim", "nrmse", "nmse", "stripes"):
        assert other.brain[name] == pytest.approx(one.brain[name], rel=1e-4)
    assert other.brain["mae"] == pytest.approx(4095 * one.brain["mae"], rel=1e-4)


def test_a_perfect_result_has_finite_figures() -> None:
    _, truth, mask = pair()
    found = compare_volumes(truth, truth, mask=mask, spacing=SPACING)
    for region in (found.volume, found.brain):
        assert region == {
            "psnr": 100, "ssim": pytest.approx(1, abs=1e-6), "mae": 0, "nrmse": 0, "nmse": 0, "stripes": 0
        }  # fmt: skip
    assert found.slices["psnr"].tolist() == [100] * SHAPE[2]


def test_a_figure_without_meaning_is_not_a_number() -> None:
    prediction, truth, mask = pair()
    truth[:, :, 3] = 0
    by_slice = compare_volumes(prediction, truth, mask=mask, spacing=SPACING).slices
    assert math.isnan(by_slice["nrmse"][3])
    assert math.isnan(by_slice["nmse"][3])
    assert torch.isfinite(by_slice["psnr"]).all()
    masked = compare_slices(prediction.movedim(-1, 0), truth.movedim(-1, 0), mask=mask.movedim(-1, 0))
    assert [bool(masked[name].isnan()[0]) for name in FIGURES] == [True] * 5
    corner = torch.zeros_like(mask)
    corner[0, 0, 4] = True
    only = compare_volumes(prediction, truth, mask=corner, spacing=SPACING).brain
    assert math.isnan(only["ssim"]), "no window is centred there"
    assert math.isnan(only["stripes"])
    assert math.isfinite(only["psnr"])


def test_half_precision_is_compared_in_single() -> None:
    prediction, truth, mask = pair()
    half = compare_volumes(prediction.bfloat16(), truth, mask=mask, spacing=SPACING)
    single = compare_volumes(prediction.bfloat16().float(), truth, mask=mask, spacing=SPACING)
    assert half.brain == single.brain


def test_the_map_is_defined_where_its_window_fits() -> None:
    images = torch.rand(2, 3, 20, 11, generator=torch.Generator().manual_seed(0))
    assert ssim_map(images[0], images[1]).shape == (3, 10, 1)
    torch.testing.assert_close(ssim_map(images[0], images[0]), torch.ones(3, 10, 1))


PAPER = Protocol(peak="image", ssim="uniform", region="slice")


def test_by_a_papers_protocol_a_slice_has_scikit_images_default_ssim_and_its_own_maximum_in_psnr() -> None:
    prediction, truth, mask = pair()
    found = compare_volumes(prediction * 0.7, truth * 0.7, mask=mask, spacing=SPACING, protocol=PAPER)
    for k in range(SHAPE[2]):
        p, t = 0.7 * prediction[:, :, k].numpy(), 0.7 * truth[:, :, k].numpy()
        own = peak_signal_noise_ratio(t, p, data_range=t.max())
        assert float(found.slices["psnr"][k]) == pytest.approx(own, abs=1e-4)
        assert float(found.slices["ssim"][k]) == pytest.approx(structural_similarity(t, p, data_range=1), abs=1e-5)
    p, t, inside = 0.7 * prediction.numpy(), 0.7 * truth.numpy(), mask.numpy()
    assert found.volume["psnr"] == pytest.approx(peak_signal_noise_ratio(t, p, data_range=t.max()), abs=1e-4)
    error = mean_squared_error(t[inside], p[inside])
    assert found.brain["psnr"] == pytest.approx(10 * np.log10(t[inside].max() ** 2 / error), abs=1e-4)


def test_a_slice_of_nothing_has_no_maximum_of_its_own() -> None:
    prediction, truth, mask = pair()
    truth[:, :, 3] = 0
    found = compare_volumes(prediction, truth, mask=mask, spacing=SPACING, protocol=PAPER)
    assert math.isnan(found.slices["psnr"][3])
    assert math.isfinite(found.volume["psnr"])


def test_uniform_windows_are_smaller_and_their_map_larger() -> None:
    images = torch.rand(2, 3, 20, 7, generator=torch.Generator().manual_seed(0))
    assert ssim_map(images[0], images[1], protocol=PAPER).shape == (3, 14, 1)


def test_a_protocol_says_what_it_is() -> None:
    assert PAPER.described()["figures"]["psnr"] == "10 log10(max(t)^2 / mean((p - t)^2)) in dB, at most 100"
    assert PAPER.described()["ssim"]["covariance"] == "sample"
    assert Protocol().described()["ssim"]["sigma"] == 1.5


@pytest.mark.parametrize(
    ("name", "paper", "message"),
    [("theirs", {}, "protocol must be ours or paper, got 'theirs'"),
     ("paper", {}, "a paper's protocol needs peak, ssim, region, got nothing"),
     ("paper", {"peak": "image", "ssim": "uniform"}, "needs peak, ssim, region, got peak, ssim"),
     ("paper", {"peak": "one", "ssim": "uniform", "region": "slice"}, "peak must be one of range, image, got 'one'")],
)  # fmt: skip
def test_a_protocol_that_is_not_whole_is_refused(name: str, paper: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(name, paper=paper)


def smooth_volume(shape: tuple[int, int, int] = (40, 44, 30)) -> Tensor:
    i, j, k = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
    return torch.tensor(0.5 + 0.3 * np.sin(3 * i + 2 * j) * np.cos(2 * k)).float()


def test_stripes_are_the_deviation_of_independent_slices() -> None:
    truth = smooth_volume((20, 24, 4000))
    offsets = 0.03 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    assert stripes(truth + offsets, truth, spacing=SPACING) == pytest.approx(0.03, rel=0.05)


def test_stripes_grow_with_each_slice_s_own_gain() -> None:
    truth = smooth_volume()
    gains = torch.randn(truth.shape[2], generator=torch.Generator().manual_seed(1))
    found = [stripes(truth * (1 + level * gains), truth, spacing=SPACING) for level in (0.0, 0.01, 0.05, 0.1)]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] > 0.03


def test_smooth_error_and_even_noise_leave_no_stripes() -> None:
    truth = smooth_volume()
    drift = 0.1 * torch.linspace(-1, 1, truth.shape[2])
    assert stripes(truth * 0.8 + 0.05 + drift, truth, spacing=SPACING) < 5e-4
    noise = 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert stripes(truth + noise, truth, spacing=SPACING) < 0.2 * 0.05
    edges = 0.05 * torch.randn(*truth.shape[:2], 1, generator=torch.Generator().manual_seed(0))
    assert stripes(truth + edges, truth, spacing=SPACING) == 0, "rough in the plane, the same in every slice"


@pytest.mark.parametrize("thickness", [2, 5])
def test_thick_slices_are_compared_over_as_long_a_way_in_the_plane(thickness: int) -> None:
    rng = np.random.default_rng(0)
    error = torch.tensor(gaussian_filter(rng.standard_normal((60, 60, 60)), 2.5)).float()  # alike in all directions
    thick, scale = error[:, :, ::thickness], float(error.std())
    truth = torch.zeros_like(thick)
    isotropic, wrong = (stripes(thick, truth, spacing=(1.0, 1.0, k)) for k in (float(thickness), 1.0))
    assert isotropic < 0.3 * scale
    assert wrong > 2 * isotropic


def test_a_way_between_two_steps_is_followed_closely() -> None:
    rng = np.random.default_rng(0)
    fine = gaussian_filter(rng.standard_normal((120, 120, 120)), 6)
    error = torch.tensor(fine[::2, ::2, ::3].copy()).float()  # voxels of 2 x 2 x 3: a slice is 1.5 steps away
    truth, scale = torch.zeros_like(error), float(error.std())
    assert stripes(error, truth, spacing=(2.0, 2.0, 3.0)) < 0.03 * scale
    assert stripes(error, truth, spacing=(2.0, 2.0, 2.0)) > 0.05 * scale


def test_stripes_outside_the_mask_do_not_count() -> None:
    truth = smooth_volume()
    offsets = 0.05 * torch.randn(truth.shape[2], generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(truth.shape, dtype=torch.bool)
    mask[10:30, 10:30] = True
    striped = truth + torch.where(mask, torch.zeros(()), offsets)
    assert stripes(striped, truth, spacing=SPACING, mask=mask) == 0
    assert stripes(striped, truth, spacing=SPACING) > 0.02


def test_two_slices_have_no_stripes_to_tell_of() -> None:
    prediction, truth, mask = (image[:, :, 3:5] for image in pair())
    found = compare_volumes(prediction, truth, mask=mask, spacing=SPACING)
    assert math.isnan(found.volume["stripes"])
    assert math.isfinite(found.volume["psnr"])


def with_nan(image: Tensor) -> Tensor:
    spoilt = image.clone()
    spoilt[3, 4, 5] = math.nan
    spoilt[3, 4, 6] = math.inf
    return spoilt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t, m: (p[:-1], t, m, 1.0), r"one shape \(I, J, K\), got \(28, 36, 9\) and \(29, 36, 9\)"),
        (lambda p, t, m: (p[0], t[0], m[0], 1.0), r"one shape \(I, J, K\)"),
        (lambda p, t, m: (with_nan(p), t, m, 1.0), "prediction has 2 of 9396 voxels that are NaN or infinite"),
        (lambda p, t, m: (p, with_nan(t), m, 1.0), "truth has 2 of 9396 voxels"),
        (lambda p, t, m: (p, t.byte(), m, 1.0), "truth must be floating point, got torch.uint8"),
        (lambda p, t, m: (p, t, m & False, 1.0), "mask is empty"),
        (lambda p, t, m: (p, t, m.float(), 1.0), r"mask must be torch.bool .*got torch.float32"),
        (lambda p, t, m: (p, t, m[1:], 1.0), r"of the truth's shape \(29, 36, 9\)"),
        (lambda p, t, m: (p[:8], t[:8], m[:8], 1.0), r"at least 11 x 11 pixels, SSIM's window, got \(8, 36\)"),
        (lambda p, t, m: (p[..., :0], t[..., :0], m[..., :0], 1.0), "at least one slice"),
        (lambda p, t, m: (p, t, m, 0.0), "data_range must be above 0, got 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message: str) -> None:
    prediction, truth, mask, data_range = change(*pair())
    with pytest.raises(ValueError, match=message):
        compare_volumes(prediction, truth, mask=mask, spacing=SPACING, data_range=data_range)
