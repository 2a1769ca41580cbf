"""MR physics: the equations against textbook cases, the contrasts that radiologists expect, and the receiver."""

from collections.abc import Mapping

import numpy as np
import pytest

from monai_ext.data.anatomy import TISSUES
from monai_ext.data.signal import (
    Sequence,
    Tissue,
    apparent_diffusion,
    bias_field,
    mix,
    nulling_time,
    rician,
    signal,
    tissues,
    vary,
    wetter,
)
from monai_ext.data.sites import SITES, protocol

FIELDS = (1.5, 3.0)


def levels(site: str, tesla: float, contrast: str) -> dict[str, float]:
    sequences = protocol(SITES[site], np.random.default_rng(0), tesla=tesla)
    return {name: abs(signal(tissue, sequences[contrast])) for name, tissue in tissues(tesla).items()}


def test_a_spin_echo_recovers_with_t1_and_decays_with_t2() -> None:
    tissue = Tissue(t1=1000, t2=100, pd=0.8, d=0)
    full = signal(tissue, Sequence(tr=1e6, te=0))
    assert full == pytest.approx(0.8)
    assert signal(tissue, Sequence(tr=1000 * np.log(2), te=0)) == pytest.approx(0.4)
    assert signal(tissue, Sequence(tr=1e6, te=100 * np.log(2))) == pytest.approx(0.4)


def test_an_inversion_at_the_nulling_time_gives_nothing_and_before_it_points_down() -> None:
    water = tissues(3.0)["csf"]
    time = nulling_time(water, 9000)
    assert signal(water, Sequence(tr=9000, te=100, ti=time)) == pytest.approx(0, abs=1e-12)
    assert signal(water, Sequence(tr=9000, te=100, ti=0.5 * time)) < -0.1


def test_gadolinium_adds_to_the_relaxation_rate() -> None:
    plain = Tissue(t1=1000, t2=1e9, pd=1, d=0, gadolinium=1.0)
    shortened = 1 / (1e-3 + 4.3e-3)
    given = signal(plain, Sequence(tr=500, te=0, contrast_agent=True))
    assert given == pytest.approx(1 - np.exp(-500 / shortened))
    assert given > signal(plain, Sequence(tr=500, te=0))


def test_diffusion_weighting_and_the_adc_map_undo_each_other() -> None:
    tissue = Tissue(t1=1000, t2=100, pd=0.8, d=0.75)
    unweighted, weighted = (np.full((2, 2), signal(tissue, Sequence(tr=5000, te=80, b=b))) for b in (0, 1000))
    adc = apparent_diffusion(unweighted, weighted, 1000)
    np.testing.assert_allclose(adc, 0.75, rtol=1e-5)
    np.testing.assert_allclose(unweighted * np.exp(-adc), weighted, rtol=1e-5)


def test_adc_of_mixed_voxels_is_consistent_with_the_mixed_signals() -> None:
    rng = np.random.default_rng(0)
    fractions = rng.dirichlet(np.ones(len(TISSUES)), size=50).T.astype(np.float32)
    table, plain = tissues(3.0), Sequence(tr=5000, te=80)
    zero = np.zeros(50, dtype=np.float32)
    unweighted = mix(fractions, zero, table, plain)
    weighted = mix(fractions, zero, table, Sequence(tr=5000, te=80, b=1000))
    np.testing.assert_allclose(
        unweighted * np.exp(-apparent_diffusion(unweighted, weighted, 1000)), weighted, rtol=1e-4
    )


@pytest.mark.parametrize("tesla", FIELDS)
@pytest.mark.parametrize("site", ["healthy", "glioma", "brats", "immune"])
def test_t1_shows_white_over_grey_over_fluid_and_t2_the_reverse(site: str, tesla: float) -> None:
    t1, t2 = levels(site, tesla, "T1"), levels(site, tesla, "T2")
    assert t1["wm"] > 1.1 * t1["gm"] > 1.1 * 1.5 * t1["csf"]
    assert t2["csf"] > 1.5 * t2["gm"] > 1.5 * 1.2 * t2["wm"]


@pytest.mark.parametrize("tesla", FIELDS)
def test_flair_has_dark_fluid_and_bright_lesions(tesla: float) -> None:
    flair = levels("glioma", tesla, "FLAIR")
    assert flair["csf"] < 0.35 * flair["wm"] < 0.35 * flair["gm"]
    assert min(flair["oedema"], flair["plaque"]) > 1.4 * flair["gm"]


@pytest.mark.parametrize("tesla", FIELDS)
def test_proton_density_shows_grey_and_fluid_over_white(tesla: float) -> None:
    pd = levels("healthy", tesla, "PD")
    assert min(pd["gm"], pd["csf"]) > 1.05 * pd["wm"]


@pytest.mark.parametrize("tesla", FIELDS)
def test_after_gadolinium_the_rim_outshines_white_matter_and_the_rest_stays(tesla: float) -> None:
    before, after = levels("glioma", tesla, "T1"), levels("glioma", tesla, "T1C")
    assert after["rim"] > 1.3 * after["wm"] > before["rim"]
    assert after["necrosis"] < 0.8 * after["wm"]
    for name in ("gm", "wm", "csf"):
        assert after[name] == pytest.approx(before[name], rel=0.15)


@pytest.mark.parametrize("tesla", FIELDS)
def test_an_infarct_is_bright_on_dwi_where_fluid_is_dark(tesla: float) -> None:
    dwi = levels("stroke", tesla, "DWI")
    assert dwi["infarct"] > 1.5 * dwi["gm"]
    assert dwi["csf"] < 0.5 * dwi["wm"]


def test_partial_volume_is_the_mean_of_what_is_mixed() -> None:
    table, sequence = tissues(1.5), Sequence(tr=4000, te=90)
    (got,) = mixed(table, sequence, gm=0.5, csf=0.5)
    assert got == pytest.approx((signal(table["gm"], sequence) + signal(table["csf"], sequence)) / 2, rel=1e-5)


def test_fluid_still_inverted_cancels_the_brain_it_shares_a_voxel_with() -> None:
    table, sequence = tissues(1.5), Sequence(tr=8000, te=20, ti=1600)
    grey, fluid = signal(table["gm"], sequence), signal(table["csf"], sequence)
    assert fluid < 0 < grey
    share = grey / (grey - fluid)
    assert mixed(table, sequence, gm=1 - share, csf=share)[0] == pytest.approx(0, abs=1e-6)
    received = rician(mixed(table, sequence, csf=1.0), np.random.default_rng(0), sigma=0.0)
    assert received[0] == pytest.approx(-fluid, rel=1e-5)


def mixed(table: Mapping[str, Tissue], sequence: Sequence, **shares: float) -> np.ndarray:
    """One voxel of these tissues."""
    fractions = np.array([[shares.get(name, 0)] for name in TISSUES], dtype=np.float32)
    return mix(fractions, np.zeros(1, dtype=np.float32), table, sequence)


def test_a_little_more_water_is_right_to_first_order() -> None:
    table, sequence = tissues(3.0), Sequence(tr=9000, te=105, ti=2400)
    fractions = np.zeros((len(TISSUES), 1), dtype=np.float32)
    fractions[TISSUES.index("wm")] = 1
    got = mix(fractions, np.full(1, 0.04, dtype=np.float32), table, sequence)
    assert got[0] == pytest.approx(signal(wetter(table["wm"], 0.04), sequence), rel=5e-3)


def test_rician_noise_has_its_known_moments() -> None:
    rng = np.random.default_rng(0)
    air = rician(np.zeros((100, 100, 10), dtype=np.float32), rng, sigma=2.0)
    tissue = rician(np.full((100, 100, 10), 100, dtype=np.float32), rng, sigma=2.0)
    assert air.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)
    assert (tissue.mean(), tissue.std()) == (pytest.approx(100.02, abs=0.03), pytest.approx(2.0, rel=0.02))


def test_a_bias_field_is_smooth_positive_and_as_strong_as_asked() -> None:
    fields = [bias_field(np.random.default_rng(n), shape=(30, 40, 20), strength=0.1) for n in range(12)]
    assert min(field.min() for field in fields) > 0
    assert 0.04 < np.mean([np.log(field).std() for field in fields]) < 0.2
    for field in fields:
        assert max(np.abs(np.diff(np.log(field), axis=axis)).max() for axis in range(3)) < 0.06


def test_subjects_differ_by_the_spread_and_water_stays_water() -> None:
    drawn = [vary(tissues(3.0), np.random.default_rng(n), spread=0.04) for n in range(60)]
    grey = np.log([d["gm"].t1 for d in drawn])
    assert 0.03 < grey.std() < 0.07
    assert np.log([d["csf"].t1 for d in drawn]).std() < 0.6 * grey.std()
    assert max(tissue.pd for d in drawn for tissue in d.values()) <= 1


def test_a_field_strength_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"field must be 1\.5 or 3\.0 tesla, got 7"):
        tissues(7.0)
