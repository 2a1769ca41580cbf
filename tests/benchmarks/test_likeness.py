"""The figures of real scans against what they must be: by hand, and HaarPSI against piq 0.8's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness import Case, figures, haarpsi, psnr, scaled
from real import on_card
from torch.nn.functional import interpolate

PAGE = Path(__file__).resolve().parents[2] / "bundles" / "agi_net" / "docs" / "README.md"
SHAPE = (24, 26, 12)


def make_case(*, lesion: bool = True) -> Case:
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, bool)
    brain[4:20, 4:22, 2:10] = True
    t1, t2 = (np.where(brain, rng.uniform(0.2, 1, SHAPE), 0).astype(np.float32) for _ in range(2))
    where = np.zeros(SHAPE, bool)
    where[8:11, 8:11, 4:7] = True
    flair = np.where(brain, 0.3 * t1 * t2 + 0.2 * t1 + 0.1, 0).astype(np.float32)
    flair[where] = 0.9
    return Case("one", {"T1": t1, "T2": t2, "FLAIR": flair}, brain, where if lesion else None, (2.0, 2.0, 2.0))


def test_the_truth_itself_has_no_error_left():
    case = make_case()
    found = figures(case.images["FLAIR"], case, sources=["T1", "T2"], target="FLAIR")
    assert found["psnr"] == 100
    assert found["ssim"] == pytest.approx(1)
    assert found["haarpsi"] == pytest.approx(1)
    assert found["lesion_over_white_made"] == found["lesion_over_white_real"] > 1
    assert found["bias_rim"] == pytest.approx(0, abs=1e-6)


def test_another_scale_costs_what_is_made_and_not_what_is_fitted():
    case = make_case()
    found = figures(0.5 * case.images["FLAIR"], case, sources=["T1", "T2"], target="FLAIR")
    assert found["psnr"] == pytest.approx(psnr(0.5 * case.images["FLAIR"], case.images["FLAIR"], case.brain))
    assert found["psnr"] < 20
    assert found["psnr_white_matched"] > 80
    assert found["psnr_fitted"] > 80


def test_a_product_of_the_sources_is_the_quadratic_mix_alone():
    case = make_case(lesion=False)
    t1, t2 = case.images["T1"], case.images["T2"]
    case.images["FLAIR"][...] = 0.3 * t1 * t2 + 0.2 * t1 + 0.1 * case.brain
    found = figures(t1, case, sources=["T1", "T2"], target="FLAIR")
    assert found["psnr_quadratic_mix"] > 80
    assert found["psnr_linear_mix"] < 40
    assert "lesion_over_white_made" not in found


def test_a_coils_shading_costs_what_is_fitted_and_not_what_is_shaded():
    case = make_case(lesion=False)
    made = 0.3 * case.images["T1"] * case.images["T2"] + 0.1 * case.brain
    case.images["FLAIR"][...] = made
    i, j, k = (np.linspace(-1, 1, side) for side in SHAPE)
    case.images["FLAIR"][...] *= (1 + 0.4 * i * i)[:, None, None] - 0.2 * j[:, None] + 0.2 * k * j[:, None]
    found = figures(made, case, sources=["T1", "T2"], target="FLAIR")
    assert found["psnr_fitted"] < 40
    assert found["psnr_shaded"] > 80
    assert found["psnr_quadratic_mix_shaded"] > found["psnr_quadratic_mix"] + 10


def test_what_is_made_adds_to_the_quadratic_mix_what_no_source_shows_alone():
    case = make_case(lesion=False)
    places = np.sin(np.arange(np.prod(SHAPE)).reshape(SHAPE)).astype(np.float32)
    case.images["FLAIR"][...] = 0.3 * case.images["T1"] ** 2 + 0.1 * places * case.brain
    found = figures(places * case.brain, case, sources=["T1", "T2"], target="FLAIR")
    assert found["psnr_quadratic_mix_with_made"] > 80
    assert found["psnr_quadratic_mix"] < 40
    known = figures(case.images["T2"], case, sources=["T1", "T2"], target="FLAIR")
    assert known["psnr_quadratic_mix_with_made"] == pytest.approx(known["psnr_quadratic_mix"], abs=1e-3)


def test_rim_and_inside_share_the_brain_at_four_millimetres():
    case = make_case()
    inner = case.inner
    assert inner[12, 12, 6]
    assert not inner[4:6, 12, 6].any()  # 2 and 4 mm from the first voxel that is no brain
    assert inner[6, 12, 6]


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_what_an_agent_lights_up_is_left_out_and_little_else(noise: float):
    case = make_case()
    rng = np.random.default_rng(1)
    t1c = 0.6 * case.images["T1"] + 0.05 + noise * rng.normal(size=SHAPE)
    t1c[case.lesion] += 0.3
    case = replace(case, images={**case.images, "T1C": t1c.astype(np.float32)})
    healthy = case.brain & ~case.lesion
    assert not (case.unenhanced & case.lesion).any()
    assert not (case.unenhanced & ~case.brain).any()
    assert (case.unenhanced & healthy).sum() > 0.99 * healthy.sum()


def test_white_is_the_brains_own():
    case = make_case()
    image = np.where(case.brain, 2 * case.images["T1"], 9).astype(np.float32)
    assert np.percentile(scaled(image, case.brain)[case.brain], 99.5) == pytest.approx(1, abs=1e-3)


def test_haarpsi_is_what_piq_gives():
    torch.manual_seed(0)
    truth = interpolate(torch.rand(1, 1, 24, 28), size=(96, 112), mode="bilinear")[0]
    image = (truth + 0.05 * torch.randn_like(truth)).clamp(0, 1)
    assert haarpsi(image, truth) == pytest.approx(0.874496, abs=2e-6)
    assert haarpsi(truth, truth) == pytest.approx(1)


def test_a_model_cards_table_and_digest_are_replaced_and_nothing_else():
    case = make_case()
    row = {
        "case": case.name,
        "task": "T1,T2:FLAIR",
        **figures(case.images["T2"], case, target="FLAIR", sources=["T1", "T2"]),
    }
    first = on_card(PAGE.read_text(), [row, row], weights="a" * 64)
    assert first.count("\n| one | T1,T2 -> FLAIR | ") == 2
    assert "sha256 `aaaaaaaaaaaaaaaa...`" in first
    other = on_card(first, [row], weights="b" * 64)
    assert on_card(other, [row, row], weights="a" * 64) == first
    kept = [line for line in PAGE.read_text().splitlines() if not line.startswith("|") and "sha256" not in line]
    assert [line for line in other.splitlines() if not line.startswith("|") and "sha256" not in line] == kept


def test_a_page_without_such_a_table_is_refused():
    with pytest.raises(SystemExit, match="must have one table"):
        on_card("# A page\n\n| a | b |\n|---|---|\n", [], weights="a" * 64)
