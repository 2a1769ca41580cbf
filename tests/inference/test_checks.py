"""Scans that are not what they are said to be are refused; those that are, are not."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.phantoms.patients import Phantom, make_phantom
from monai_ext.data.phantoms.sites import SITES
from monai_ext.data.volumes import Volume, write_volume
from monai_ext.inference.checks import INTERCHANGED, Findings, look
from monai_ext.inference.recogniser import UPRIGHT, WEIGHTS, together
from monai_ext.modalities import MODALITIES

REAL = {
    "ms_patient26": {"T1": "T1", "T1C": "T1POST", "T2": "T2", "FLAIR": "FLAIR"},
    "ms_raw_patient01": {"T1": "T1W", "T2": "T2W", "FLAIR": "FLAIR"},
    "ms_raw_patient03_study2": {"T1": "study2_T1W", "T2": "study2_T2W", "FLAIR": "study2_FLAIR"},
    "ms_raw_patient04_study1": {"T1": "study1_T1W", "T2": "study1_T2W", "FLAIR": "study1_FLAIR"},
    "glioma_du7294": {"T1": "t1", "T1C": "t1c", "T2": "t2", "FLAIR": "fla"},
    "stroke_isles0001": {"DWI": "dwi", "ADC": "adc"},
    "mni152_2mm": {"T1": "T1", "T2": "T2"},
    "epi_flash_pair": {"T1": "flash_t1", "T2": "epi_t2"},
}
STRIPPED = {"ms_patient26", "glioma_du7294", "stroke_isles0001"}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SITES["healthy"], index=6, spacing=(3.0, 3.0, 3.0), contrasts=("T1", "T2"))


def files(folder: Path, **images: str) -> dict[str, Path]:
    return {name: folder / f"{stem}.nii.gz" for name, stem in images.items()}


def kinds(findings: Findings, severity: str | None = None) -> set[str]:
    return {one.kind for one in findings.found if severity in (None, one.severity)}


def turned(volume: Volume, axis: int) -> Volume:
    """The head mirrored along an axis of the image, under the same header."""
    return Volume(np.flip(volume.array, axis).copy(), volume.affine)


@pytest.mark.parametrize("case", REAL)
def test_no_real_scan_is_refused(real_data: Path, case: str) -> None:
    findings = look(files(real_data / case, **REAL[case]))
    assert not findings.refusals(), [one.message for one in findings.refusals()]
    assert all(one.seen is not None for one in findings.images.values())
    assert json.loads(json.dumps(findings.record()))["images"].keys() == REAL[case].keys()


def test_most_real_contrasts_are_named_rightly_and_every_head_is_seen_upright(real_data: Path) -> None:
    seen = {
        (case, name): one.seen
        for case in REAL
        for name, one in look(files(real_data / case, **REAL[case])).images.items()
    }
    assert all(one.pose == UPRIGHT for one in seen.values())
    likeliest = {key: max(one.contrasts, key=one.contrasts.__getitem__) for key, one in seen.items()}
    right = [name == found or {name, found} <= INTERCHANGED for (_, name), found in likeliest.items()]
    assert sum(right) >= 0.85 * len(right), likeliest


def test_all_real_contrasts_are_named_rightly_by_what_a_person_has_of_them(real_data: Path) -> None:
    for case, names in REAL.items():
        for name, (found, share) in look(files(real_data / case, **names)).shown().items():
            assert name == found or {name, found} <= INTERCHANGED, (case, name, found)
            assert 0 < share <= 1


def by_itself(**shares: float) -> dict[str, float]:
    return {name: shares.get(name, 0.0) for name in MODALITIES}


def likeliest(*scans: dict[str, float]) -> list[str]:
    return [max(one, key=one.__getitem__) for one in together(scans)]


def test_scans_are_read_together_by_what_goes_together() -> None:
    either = by_itself(FLAIR=0.55, DWI=0.45)
    assert likeliest(either) == ["FLAIR"]
    assert likeliest(by_itself(ADC=0.9, T2=0.1), either) == ["ADC", "DWI"]  # ADC is computed of one
    assert likeliest(by_itself(ADC=0.7, T2=0.3)) == ["T2"]
    assert likeliest(by_itself(T1=0.9, PD=0.1), by_itself(T1=0.6, PD=0.4)) == ["T1", "PD"]  # hardly two of one
    assert likeliest(by_itself(T1=1.0), by_itself(T1=1.0)) == ["T1", "T1"]
    assert together([]) == []
    for one in together([either, by_itself(T2=1.0)]):
        assert sum(one.values()) == pytest.approx(1)


def test_the_recogniser_is_small_and_was_measured_on_people_it_did_not_know() -> None:
    assert WEIGHTS.stat().st_size < 2e6
    with np.load(WEIGHTS) as stored:
        about = json.loads(bytes(stored["about"]).decode())
    assert about["unseen_scans"] >= 1000
    assert about["right"]["contrast"] > 0.9
    assert about["right"]["pose"] > 0.95
    assert about["right"]["upright"] > 0.995
    assert about["sure_of_pose"] < 0.99  # above it no more than one in a thousand upright heads is seen wrongly


def test_real_scans_that_headers_put_apart_are_to_be_registered_and_others_are_not(real_data: Path) -> None:
    apart = look(files(real_data / "epi_flash_pair", **REAL["epi_flash_pair"]))
    assert apart.registration
    assert apart.pairs[0].likeness.apart == pytest.approx(27, abs=3)  # mm, as its description says
    together = look(files(real_data / "ms_raw_patient01", **REAL["ms_raw_patient01"]))
    assert not together.registration
    assert not any(pair.same_grid for pair in together.pairs)


def test_a_real_head_of_another_person_is_refused(real_data: Path) -> None:
    other = real_data / "ms_raw_patient04_study1" / "study1_T2W.nii.gz"
    findings = look({"T1": real_data / "ms_raw_patient01" / "T1W.nii.gz", "T2": other})
    (found,) = [one for one in findings.refusals() if one.kind == "other_head"]
    assert found.images == ("T1", "T2")
    with pytest.raises(ValueError, match=r"show two heads.*--trust-names"):
        findings.admitted()
    assert found.message in findings.admitted(trust_names=True)


def test_two_contrasts_of_one_head_agree_and_are_not_to_be_registered(phantom: Phantom) -> None:
    findings = look(phantom.images)
    assert not findings.refusals(), [one.message for one in findings.refusals()]
    assert not findings.registration
    assert findings.pairs[0].same_grid
    assert findings.pairs[0].own > 0.6


def test_a_shifted_head_is_found_where_it_is(phantom: Phantom) -> None:
    affine = phantom.images["T2"].affine.copy()
    affine[:3, 3] += (0, 12, -5)
    findings = look({"T1": phantom.images["T1"], "T2": Volume(phantom.images["T2"].array, affine)})
    assert findings.registration
    assert "apart" in kinds(findings, "warn")
    assert np.allclose(findings.pairs[0].likeness.shift, (0, -12, 5), atol=1.5)


def test_one_mirrored_scan_of_two_is_refused(phantom: Phantom) -> None:
    axis = 0  # the healthy site stores left to right along i
    assert nib.aff2axcodes(phantom.images["T2"].affine)[axis] in "LR"
    findings = look({"T1": phantom.images["T1"], "T2": turned(phantom.images["T2"], axis)})
    pair = findings.pairs[0].likeness
    assert pair.mirrored > pair.best
    assert "mirrored" in kinds(findings, "refuse")


def test_another_phantoms_head_is_refused(phantom: Phantom) -> None:
    other = make_phantom(SITES["healthy"], index=4, spacing=(3.0, 3.0, 3.0), contrasts=("T2",))
    assert "other_head" in kinds(look({"T1": phantom.images["T1"], "T2": other.images["T2"]}), "refuse")


def test_the_same_image_twice_is_refused_whatever_its_scale(phantom: Phantom) -> None:
    again = Volume(phantom.images["T1"].array * 2.5 + 40, phantom.images["T1"].affine)
    findings = look({"T1": phantom.images["T1"], "T2": again})
    assert "duplicate" in kinds(findings, "refuse")
    assert "duplicate" not in kinds(look(phantom.images))


def test_thick_slices_a_mask_and_a_constant_image_are_refused(phantom: Phantom) -> None:
    image = phantom.images["T1"]
    thick = Volume(image.array[:, :, ::4], image.affine @ np.diag([1, 1, 4, 1]))
    assert "thick" in kinds(look({"T1": thick}), "refuse")
    mask = Volume((image.array > image.array.mean()).astype(np.float32), image.affine)
    assert "labels" in kinds(look({"T1": mask}), "refuse")
    constant = look({"T1": Volume(np.full((40, 40, 40), 7, np.float32), image.affine)})
    assert [one.kind for one in constant.refusals(trust_names=True)] == ["constant"]
    empty = np.zeros((40, 40, 40), np.float32)
    empty[0, 0, 0] = np.nan
    assert [one.kind for one in look({"T1": Volume(empty, image.affine)}).refusals(trust_names=True)] == ["constant"]


def test_a_clipped_and_a_cropped_image_are_said_to_be(phantom: Phantom) -> None:
    image = phantom.images["T1"]
    whole = kinds(look({"T1": image}))
    assert not {"clipped", "cropped"} & whole
    clipped = Volume(np.minimum(image.array, np.percentile(image.array, 85)), image.affine)
    assert "clipped" in kinds(look({"T1": clipped}), "warn")
    half = image.array.shape[0] // 2
    assert "cropped" in kinds(look({"T1": Volume(image.array[:half].copy(), image.affine)}), "warn")


def test_an_image_that_says_that_it_is_synthetic_is_no_scan(phantom: Phantom, tmp_path: Path) -> None:
    given = {}
    for name, said in (("T1", "a scanner's own words"), ("T2", "SYNTHETIC T2 by agi_net 1 from T1")):
        given[name] = tmp_path / f"{name}.nii.gz"
        write_volume(given[name], phantom.images[name], description=said)
    (refused,) = look(given).refusals()
    assert (refused.kind, refused.images) == ("synthetic", ("T2",))
    assert not look(given).refusals(trust_names=True)


def test_a_file_that_cannot_be_read_is_a_finding_and_the_others_are_looked_at(phantom: Phantom, tmp_path: Path) -> None:
    (tmp_path / "T1.nii.gz").write_text("<html>not found</html>")
    write_volume(tmp_path / "T2.nii.gz", phantom.images["T2"])
    findings = look({"T1": tmp_path / "T1.nii.gz", "T2": tmp_path / "T2.nii.gz"})
    (found,) = findings.refusals(trust_names=True)
    assert found.kind == "unreadable"
    assert "T1.nii.gz" in found.message
    assert findings.images["T2"].seen is not None


def test_a_stripped_and_a_whole_head_are_told_apart(real_data: Path) -> None:
    for case in ("ms_patient26", "ms_raw_patient01"):
        findings = look(files(real_data / case, **REAL[case]))
        assert {one.skull for one in findings.images.values()} == {case not in STRIPPED}
        assert findings.skull is (case not in STRIPPED)


def test_swapped_files_are_refused_by_what_they_show_and_trusted_where_that_is_asked_for(real_data: Path) -> None:
    for case in ("ms_patient26", "ms_raw_patient01", "mni152_2mm"):
        images = REAL[case]
        findings = look(files(real_data / case, T1=images["T2"], T2=images["T1"]))
        assert "contrast" in kinds(findings, "refuse"), case
        assert "--trust-names" in next(one.message for one in findings.refusals() if one.kind == "contrast")
        assert not findings.refusals(trust_names=True)
        assert "contrast" in {one.kind for one in findings.warnings(trust_names=True)}


def test_a_flair_called_t2_and_an_adc_called_dwi_are_refused(real_data: Path) -> None:
    flair = look({"T2": real_data / "ms_raw_patient01" / "FLAIR.nii.gz"})
    adc = look({"DWI": real_data / "stroke_isles0001" / "adc.nii.gz"})
    assert kinds(flair, "refuse") == kinds(adc, "refuse") == {"contrast"}


def test_a_head_upside_down_is_refused(real_data: Path) -> None:
    image = nib.load(real_data / "ms_patient26" / "T1.nii.gz")
    volume = Volume(image.get_fdata(dtype=np.float32), image.affine)
    findings = look({"T1": turned(volume, 2)})
    (found,) = findings.refusals()
    assert found.kind == "pose"
    assert "upside down" in found.message
