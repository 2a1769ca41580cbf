"""Names of every dataset, as they are published, say whose image it is, of which visit and which contrast."""

from pathlib import PurePosixPath

import pytest

from monai_ext.data.naming import LAYOUTS, Found

VSD = "VSD.Brain"


@pytest.mark.parametrize(
    ("layout", "path", "expected"),
    [
        ("ixi", "IXI-T1/IXI012-HH-1211-T1.nii.gz", Found("IXI012", "T1")),
        ("ixi", "IXI035-IOP-0873-PD.nii.gz", Found("IXI035", "PD")),
        ("ixi", "IXI-DTI/IXI012-HH-1211-DTI-00.nii.gz", Found("IXI012", "")),
        ("ixi", "IXI-MRA/IXI012-HH-1211-MRA.nii.gz", Found("IXI012", "")),
        ("ixi", "IXI012-HH-1211-T1.txt", None),
        (
            "brats2015",
            f"HGG/brats_tcia_pat153_0181/{VSD}.XX.O.MR_T1c.35536/{VSD}.XX.O.MR_T1c.35536.mha",
            Found("brats_tcia_pat153", "T1C", "0181"),
        ),
        (
            "brats2015",
            f"LGG/brats_2013_pat0001_1/{VSD}.XX.O.MR_Flair.54512.mha",
            Found("LGG_brats_2013_pat0001", "FLAIR", "1"),
        ),
        (
            "brats2015",
            f"HGG/brats_2013_pat0001_1/{VSD}_3more.XX.O.OT.54517/{VSD}_3more.XX.O.OT.54517.mha",
            Found("HGG_brats_2013_pat0001", "label", "1"),
        ),
        ("brats2015", f"HG/0001/{VSD}_3more.XX.XX.OT.6560.mha", Found("HG_0001", "label")),
        (
            "brats2015",
            f"HGG/brats_tcia_pat153_0181/{VSD}.XX.O.MR_T1c.35536_n4.mha",
            Found("brats_tcia_pat153", "", "0181"),
        ),
        ("brats2020", "BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz", Found("BraTS20_Training_001", "T1C")),
        ("brats2020", "BraTS20_Validation_001/BraTS20_Validation_001_t1.nii", Found("BraTS20_Validation_001", "T1")),
        ("brats2020", "BraTS20_Training_355/W39_1998.09.19_Segm.nii", Found("BraTS20_Training_355", "label")),
        ("brats2020", "BraTS2021_00000/BraTS2021_00000_seg.nii.gz", Found("BraTS2021_00000", "label")),
        (
            "brats2020",
            "HGG/Brats18_TCIA01_390_1/Brats18_TCIA01_390_1_flair.nii.gz",
            Found("Brats18_TCIA01_390", "FLAIR", "1"),
        ),
        ("brats2020", "HGG/BraTS19_2013_10_1/BraTS19_2013_10_1_t2.nii.gz", Found("BraTS19_2013_10", "T2", "1")),
        ("brats2023", "BraTS-GLI-00000-001/BraTS-GLI-00000-001-t1n.nii.gz", Found("BraTS-GLI-00000", "T1", "001")),
        ("brats2023", "BraTS-MET-00007-000-t2w.nii.gz", Found("BraTS-MET-00007", "T2", "000")),
        ("brats2023", "BraTS-GLI-00000-000-t2f.nii.gz", Found("BraTS-GLI-00000", "FLAIR", "000")),
        ("brats2023", "BraTS-GLI-00000-000-seg.nii.gz", Found("BraTS-GLI-00000", "label", "000")),
        ("brats2023", "BraTS-GLI-00000-000-t1n-voided.nii.gz", Found("BraTS-GLI-00000", "", "000")),
        (
            "isles22",
            "rawdata/sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_adc.nii.gz",
            Found("sub-strokecase0001", "ADC", "0001"),
        ),
        (
            "isles22",
            "sub-strokecase0001/ses-0001/anat/sub-strokecase0001_ses-0001_FLAIR.nii.gz",
            Found("sub-strokecase0001", "FLAIR", "0001"),
        ),
        (
            "isles22",
            "derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz",
            Found("sub-strokecase0001", "label", "0001"),
        ),
        ("bids", "sub-01/anat/sub-01_T1w.nii.gz", Found("sub-01", "T1")),
        ("bids", "sub-01/ses-pre/anat/sub-01_ses-pre_acq-mprage_run-1_T1w.nii.gz", Found("sub-01", "T1", "pre")),
        ("bids", "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz", Found("sub-01", "T1C")),
        ("bids", "sub-01/anat/sub-01_ce-gadolinium_FLAIR.nii.gz", Found("sub-01", "")),
        ("bids", "sub-01/anat/sub-01_PDw.nii.gz", Found("sub-01", "PD")),
        ("bids", "sub-01/anat/sub-01_T2starw.nii.gz", Found("sub-01", "")),
        ("bids", "sub-01/anat/sub-01_part-phase_T1w.nii.gz", Found("sub-01", "")),
        ("bids", "sub-01/func/sub-01_task-rest_bold.nii.gz", Found("sub-01", "")),
        ("bids", "derivatives/prep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", None),
        ("bids", "derivatives/prep/sub-01/anat/sub-01_desc-brain_mask.nii.gz", None),
        ("bids", "derivatives/lesions/sub-01/anat/sub-01_label-lesion_mask.nii.gz", Found("sub-01", "label")),
        (
            "bids",
            "derivatives/sub-01/ses-02/sub-01_ses-02_space-ncct_lesion-msk.nii.gz",
            Found("sub-01", "label", "02"),
        ),
        ("folder", "case7/case7_T1+C.nii.gz", Found("case7", "T1C", home="case7")),
        ("folder", "case7_trace_b1000.nii.gz", Found("case7", "DWI")),
        ("folder", "case7_t1post_contrast.nhdr", Found("case7", "T1C")),
        ("folder", "case7/T1.nii.gz", Found("case7", "T1", home="case7")),
        ("folder", "case7/case7_t1_ce.nii", Found("case7", "T1C", home="case7")),
        ("folder", "group/case7/Tête FLAIR.mha", Found("case7", "FLAIR", home="group/case7")),
        ("folder", "case7/visit2/T2.nrrd", Found("case7", "T2", "visit2", "case7/visit2")),
        ("folder", "case7/2019-05-01/T2.nii.gz", Found("case7", "T2", "2019-05-01", "case7/2019-05-01")),
        ("folder", "case7/anat/T2.nii.gz", Found("case7", "T2", home="case7")),
        ("folder", "case7/DWI/x_adc.nii.gz", Found("case7", "ADC", home="case7")),
        ("folder", "case7/T1/image.nii.gz", Found("case7", "T1", home="case7")),
        ("folder", "T1/case7.nii.gz", Found("case7", "T1")),
        ("folder", "labels/case7.nii.gz", Found("case7", "label")),
        ("folder", "case7_T1.nii.gz", Found("case7", "T1")),
        ("folder", "case7/seg.nii.gz", Found("case7", "label", home="case7")),
        ("folder", "case7/lesion_mask.nii.gz", Found("case7", "label", home="case7")),
        ("folder", "case7/brain_mask.nii.gz", Found("case7", "", home="case7")),
        ("folder", "case7/T1_mask.nii.gz", Found("case7", "", home="case7")),
        ("folder", "case7/notes.txt", None),
        ("folder", "case7_visit1_T1.nii.gz", Found("case7", "T1", "visit1")),
        ("folder", "case7_visit_2_t1_ce.nii.gz", Found("case7", "T1C", "visit_2")),
        ("folder", "T1/case7-2019-05-01.nii.gz", Found("case7", "T1", "2019-05-01")),
        ("folder", "OAS1_0001_MR2_T1.nii.gz", Found("OAS1_0001", "T1", "MR2")),
        ("folder", "case_12_baseline_FLAIR.nii", Found("case_12", "FLAIR", "baseline")),
        ("folder", "visit1_T1.nii.gz", Found("visit1", "T1")),
        ("folder", "case_2741_T1.nii.gz", Found("case_2741", "T1")),
        ("folder", "case_premature_T1.nii.gz", Found("case_premature", "T1")),
        ("folder", "MR1234567/T1.nii.gz", Found("MR1234567", "T1", home="MR1234567")),
        ("folder", "site/MR1234567/T1.nii.gz", Found("MR1234567", "T1", home="site/MR1234567")),
    ],
)
def test_a_name_says_who_when_and_what(layout: str, path: str, expected: Found | None) -> None:
    assert LAYOUTS[layout](PurePosixPath(path)) == expected


@pytest.mark.parametrize(
    "visit",
    [
        "visit2", "ses-a", "week-044", "month_6", "year2", "day 30", "MR1", "MR_d0129", "pre", "POST", "baseline",
        "follow-up 1", "followup", "2019", "2019-05", "2019-05-01", "20190501", "2019.05.01",
        "week-085-2", "2006-04-18_08_20_30.0", "20190501-120000", "20190501_MRI",
    ],
)  # fmt: skip
def test_a_visit_is_never_taken_for_a_person(visit: str) -> None:
    """A person in two splits would be tested on what was trained with."""
    assert LAYOUTS["folder"](PurePosixPath(f"P1/{visit}/T1.nii.gz")) == Found("P1", "T1", visit, f"P1/{visit}")
    assert LAYOUTS["folder"](PurePosixPath(f"P1_{visit}_FLAIR.nii.gz")) == Found("P1", "FLAIR", visit)
