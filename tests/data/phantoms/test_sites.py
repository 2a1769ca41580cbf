"""Sites play contrasts that radiologists expect, at either field, and each sees its own disease."""

import numpy as np
import pytest

from monai_ext.data.phantoms.sequences import signal
from monai_ext.data.phantoms.sites import SITES, available, site_protocol
from monai_ext.data.phantoms.tissues import tissues

FIELDS = (1.5, 3.0)


def levels(site: str, tesla: float, contrast: str) -> dict[str, float]:
    sequences = site_protocol(SITES[site], np.random.default_rng(0), tesla=tesla)
    return {name: abs(float(signal(tissue, sequences[contrast]))) for name, tissue in tissues(tesla).items()}


@pytest.mark.parametrize("tesla", FIELDS)
@pytest.mark.parametrize("site", ["healthy", "glioma", "brats", "immune"])
def test_t1_shows_white_over_grey_over_fluid_and_t2_the_reverse(site: str, tesla: float) -> None:
    t1, t2 = levels(site, tesla, "T1"), levels(site, tesla, "T2")
    assert t1["wm"] > 1.1 * t1["gm"] > 1.1 * 1.5 * t1["csf"]
    assert t2["csf"] > 1.5 * t2["gm"] > 1.5 * 1.2 * t2["wm"]


@pytest.mark.parametrize("tesla", FIELDS)
def test_flair_has_dark_fluid_and_grey_over_white(tesla: float) -> None:
    flair = levels("glioma", tesla, "FLAIR")
    assert flair["ventricle"] < 0.35 * flair["wm"] < 0.35 * flair["gm"]


@pytest.mark.parametrize("tesla", FIELDS)
def test_proton_density_shows_grey_and_fluid_over_white(tesla: float) -> None:
    pd = levels("healthy", tesla, "PD")
    assert min(pd["gm"], pd["csf"]) > 1.05 * pd["wm"]


@pytest.mark.parametrize("tesla", FIELDS)
def test_diffusion_weighting_leaves_fluid_dark(tesla: float) -> None:
    dwi = levels("stroke", tesla, "DWI")
    assert dwi["csf"] < 0.5 * dwi["wm"]


def test_before_and_after_gadolinium_one_protocol_is_played_and_adc_comes_from_dwi() -> None:
    played = site_protocol(SITES["brats"], np.random.default_rng(1), tesla=3.0)
    assert played["T1C"].contrast_agent
    assert (played["T1"].tr, played["T1"].te, played["T1"].ti) == (played["T1C"].tr, played["T1C"].te, played["T1C"].ti)
    assert played["ADC"] == played["DWI"]


def test_immune_subjects_lack_contrasts_but_keep_two_and_other_sites_lack_none() -> None:
    rng = np.random.default_rng(0)
    kept = [available(SITES["immune"], rng) for _ in range(100)]
    assert len(set(kept)) == 11  # every subset of two, three or four
    assert available(SITES["stroke"], rng) == SITES["stroke"].contrasts
