"""A phantom of a label map: seeds, physics, disease, and the canonical target beside each scan."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_ext.data.phantoms.acquisition import Grid
from monai_ext.data.phantoms.anatomy import Anatomy
from monai_ext.data.phantoms.drawing import Subject, draw_subject
from monai_ext.data.phantoms.lesions import KINDS, draw_lesions
from monai_ext.data.phantoms.protocols import ADC_TOP, WHITE
from monai_ext.data.phantoms.rendering import Rendered, render, scaled

GRID = Grid((36, 36, 34), (4.0, 4.0, 4.0))
EVERY = ("T1", "T2", "PD", "T1C", "FLAIR", "DWI", "ADC")


def drawn(anatomy: Anatomy, seed: int = 0, **options: object) -> Subject:
    settings: dict = {"grid": GRID, "contrasts": EVERY, "skull": False, **options}
    return draw_subject(np.random.default_rng(seed), anatomy, **settings)


@pytest.fixture(scope="module")
def healthy(anatomy: Anatomy) -> Rendered:
    return render(drawn(anatomy, seed=3, kind="none"))


def deep_white(rendered: Rendered) -> torch.Tensor:
    """Well within white matter: bright on the T1 target, dark on T2."""
    t1, t2 = rendered.targets["T1"], rendered.targets["T2"]
    return rendered.brain & (t1 > 0.95 * WHITE["T1"]) & (t2 < 1.1 * WHITE["T2"]) & ~rendered.lesion


def test_the_same_seed_gives_the_same_voxels_and_another_does_not(anatomy: Anatomy) -> None:
    one, same, other = (render(drawn(anatomy, seed=seed)) for seed in (1, 1, 2))
    for name in EVERY:
        torch.testing.assert_close(one.images[name], same.images[name], rtol=0, atol=0)
        assert not torch.allclose(one.images[name], other.images[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_voxels_that_the_cpu_gives(anatomy: Anatomy) -> None:
    subject = drawn(anatomy, seed=1)
    here, there = render(subject), render(subject, device="cuda")
    for name in EVERY:
        torch.testing.assert_close(there.targets[name].cpu(), here.targets[name], rtol=0, atol=1e-4)
        top = float(here.images[name].max())
        torch.testing.assert_close(there.images[name].cpu() / top, here.images[name] / top, rtol=0, atol=1e-4)


def test_white_matter_has_its_stated_value_in_every_target(healthy: Rendered) -> None:
    white = deep_white(healthy)
    assert white.sum() > 500
    for name, level in WHITE.items():
        assert float(healthy.targets[name][white].median()) == pytest.approx(level, rel=0.07)
    assert float(healthy.targets["ADC"][white].median()) == pytest.approx(0.73 / ADC_TOP, rel=0.15)


def test_fluid_around_the_brain_is_lifted_on_flair_and_ventricles_are_dark(healthy: Rendered) -> None:
    fluid = healthy.brain & (healthy.targets["T2"] > 0.7)
    place = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in GRID.shape], indexing="ij"))
    middle = torch.stack([axis[healthy.brain].mean() for axis in place])
    near = torch.linalg.vector_norm(place - middle[:, None, None, None], dim=0) < 6
    flair = healthy.targets["FLAIR"] / WHITE["FLAIR"]
    assert (fluid & near).any()
    assert float(flair[fluid & near].min()) < 0.35
    rim = healthy.brain & ~near & (healthy.targets["T2"] > 0.6)
    assert float(flair[rim].mean()) > float(flair[fluid & near].min()) + 0.15


def test_the_target_knows_nothing_of_the_scanner(anatomy: Anatomy) -> None:
    subject = drawn(anatomy, seed=4)
    noisy = {name: replace(a, noise=0.3, seed=a.seed + 5) for name, a in subject.acquisitions.items()}
    one, other = render(subject), render(replace(subject, acquisitions=noisy))
    for name in EVERY:
        torch.testing.assert_close(one.targets[name], other.targets[name])
        assert not torch.allclose(one.images[name], other.images[name])


def test_stripped_heads_end_with_the_mask_and_others_have_a_scalp(anatomy: Anatomy) -> None:
    fine = Grid((72, 72, 68), (2.0, 2.0, 2.0))  # a scalp is thinner than GRID's voxels
    bare, whole = (render(drawn(anatomy, seed=6, skull=skull, kind="none", grid=fine)) for skull in (False, True))
    assert not bare.images["T1"][~bare.foreground].any()
    assert not bare.targets["FLAIR"][~bare.foreground].any()
    outside = whole.foreground & ~whole.brain
    assert float(whole.targets["T1"][outside].quantile(0.9)) > WHITE["T1"]
    assert int(whole.foreground.sum()) > 1.2 * int(whole.brain.sum())


def test_an_infarct_is_bright_on_dwi_and_dark_on_adc_when_fresh(anatomy: Anatomy) -> None:
    found = []
    for seed in range(12):
        made = render(drawn(anatomy, seed=seed, kind="stroke", contrasts=("T1", "T2", "DWI", "ADC")))
        core = made.label == 1
        if core.sum() < 20:
            continue
        white = deep_white(made)
        dwi, adc = (float(made.targets[n][core].mean() / made.targets[n][white].median()) for n in ("DWI", "ADC"))
        found.append((dwi, adc))
    assert any(dwi > 1.4 and adc < 0.8 for dwi, adc in found), found


def test_a_gliomas_parts_are_numbered_and_bright_on_flair(anatomy: Anatomy) -> None:
    values, ratios = set(), []
    for seed in range(6):
        made = render(drawn(anatomy, seed=seed, kind="glioma", contrasts=("T1", "T2", "FLAIR")))
        values |= set(made.label.unique().tolist())
        oedema = made.label == 2
        if oedema.sum() > 30:
            ratios.append(float(made.targets["FLAIR"][oedema].mean()) / WHITE["FLAIR"])
    assert values == {0, 1, 2, 3}
    assert np.median(ratios) > 1.2


def test_disease_stays_within_its_hosts_and_between_nothing_and_all(anatomy: Anatomy) -> None:
    for kind in KINDS:
        lesions = draw_lesions(np.random.default_rng(2), anatomy, kind=kind, ageing=0.6)
        weight, t1 = lesions.maps[0], lesions.maps[1]
        assert 0 <= weight.min() <= weight.max() <= 1 + 1e-5
        assert (t1 <= weight + 1e-5).all()  # premultiplied
        tissue = anatomy.stored[:5].sum(dim=0, dtype=torch.int32).numpy()
        assert not weight[tissue == 0].any()
    assert not draw_lesions(np.random.default_rng(2), anatomy, kind="none").maps.any()
    with pytest.raises(ValueError, match="lesions are one of none, plaques, glioma, stroke, got 'tumor'"):
        draw_lesions(np.random.default_rng(2), anatomy, kind="tumor")


def test_what_was_scanned_is_scaled_as_prepare_scales_it() -> None:
    image = torch.arange(1000.0).reshape(10, 10, 10)
    foreground = image >= 200
    expected = (image / np.percentile(image[foreground], 99.5, method="inverted_cdf")).clamp(0, 1)
    torch.testing.assert_close(scaled(image, foreground), expected)
    assert not scaled(image, torch.zeros_like(foreground)).any()


def test_thick_slices_are_written_where_they_are_asked_for(anatomy: Anatomy) -> None:
    made = render(drawn(anatomy, grid=Grid((36, 36, 17), (4.0, 4.0, 8.0)), contrasts=("T1", "FLAIR")))
    assert made.images["T1"].shape == made.targets["FLAIR"].shape == made.brain.shape == (36, 36, 17)
