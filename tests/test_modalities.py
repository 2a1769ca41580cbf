"""Contrast names: what people write leads to one of seven, and what does not is refused with a hint."""

import pytest

from monai_ext.modalities import _ALIASES, MODALITIES, canonical


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, name) for name in MODALITIES],
        *[(alias, "T1") for alias in ("t1", "T1w", "t1n", "T1_WI", "MPRAGE")],
        *[
            (alias, "T1C")
            for alias in ("t1ce", "T1Gd", "t1c", "T1POST", "T1-Gd", "t1_post", "T1+C", "t1_gad", "t1post_contrast")
        ],
        *[(alias, "T2") for alias in ("t2", "T2w", "t2 w")],
        *[(alias, "FLAIR") for alias in ("fla", "flair", "t2f", "T2-FLAIR", "FLAIR", "tirm")],
        *[(alias, "PD") for alias in ("pd", "PDw")],
        *[(alias, "DWI") for alias in ("dwi", "trace", "b1000", "TRACEW", "trace_b1000")],
        *[(alias, "ADC") for alias in ("adc", "ADC_map")],
    ],
)
def test_every_name_that_datasets_use_leads_to_its_contrast(name: str, expected: str) -> None:
    assert canonical(name) == expected


@pytest.mark.parametrize(("name", "alias"), [(n, alias) for n, every in _ALIASES.items() for alias in every.split()])
def test_every_alias_leads_to_one_contrast_in_any_case_and_with_separators(name: str, alias: str) -> None:
    assert [other for other, every in _ALIASES.items() if alias in every.split()] == [name]
    assert {canonical(alias), canonical(alias.upper()), canonical("_".join(alias)), canonical(f" {alias}-")} == {name}


def test_an_unknown_name_is_refused_with_the_nearest_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown contrast 'flaer'.*flair \(= FLAIR\)"):
        canonical("flaer")


@pytest.mark.parametrize("name", ["", "seg", "bold", "T", "12"])
def test_a_name_near_nothing_is_refused_with_the_known_contrasts_or_the_nearest(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown contrast {name!r}; the nearest known ones: .+"):
        canonical(name)
