"""Every dataset's own naming becomes the right people, visits, contrasts and labels; faults are reported."""

import json
from pathlib import Path

import pytest

from monai_ext.__main__ import main
from monai_ext.data.choosing import Choices
from monai_ext.data.datalist import read_datalist
from monai_ext.data.layouts import Index, index
from monai_ext.data.volumes import ITK_SUFFIXES, NIFTI_SUFFIXES


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")
    return root


def paths(found: Index, root: Path) -> dict[str, dict[str, str]]:
    return {
        subject.name: {kind: path.relative_to(root).as_posix() for kind, path in subject.images.items()}
        | ({"label": subject.label.relative_to(root).as_posix()} if subject.label else {})
        for subject in found.subjects
    }


BRATS_2013 = "GG/brats_2013_pat0001_1/VSD.Brain"
DATASETS = {
    "ixi": {
        "IXI002": {"PD": "IXI-PD/IXI002-Guys-0828-PD.nii.gz"},
        "IXI012": {"T1": "IXI-T1/IXI012-HH-1211-T1.nii.gz", "T2": "IXI-T2/IXI012-HH-1211-T2.nii.gz"},
    },
    "brats2015": {
        "HGG_brats_2013_pat0001_1": {
            "T1": f"H{BRATS_2013}.XX.O.MR_T1.2/VSD.Brain.XX.O.MR_T1.2.mha",
            "label": f"H{BRATS_2013}_3more.XX.O.OT.3/VSD.Brain_3more.XX.O.OT.3.mha",
        },
        "LGG_brats_2013_pat0001_1": {"T2": f"L{BRATS_2013}.XX.O.MR_T2.9.mha"},
    },
    "brats2020": {
        "BraTS20_Training_355": {
            "T1C": "BraTS20_Training_355/BraTS20_Training_355_t1ce.nii",
            "label": "BraTS20_Training_355/W39_1998.09.19_Segm.nii",
        }
    },
    "brats2023": {
        f"BraTS-GLI-00000_{time}": {"T1C": f"a/BraTS-GLI-00000-{time}/BraTS-GLI-00000-{time}-t1c.nii.gz"}
        for time in ("000", "001")
    },
    "isles22": {
        "sub-strokecase0001_0001": {
            "DWI": "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz",
            "ADC": "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_adc.nii.gz",
            "FLAIR": "sub-strokecase0001/ses-0001/anat/sub-strokecase0001_ses-0001_FLAIR.nii.gz",
            "label": "derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz",
        }
    },
    "bids": {
        "sub-01": {"T1": "sub-01/anat/sub-01_T1w.nii.gz", "T1C": "sub-01/anat/sub-01_ce-gd_T1w.nii.gz"},
        "sub-02_1": {"FLAIR": "sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz"},
    },
}


@pytest.mark.parametrize("layout", DATASETS)
def test_auto_knows_each_dataset_by_its_names(tmp_path: Path, layout: str) -> None:
    make(tmp_path, *(name for files in DATASETS[layout].values() for name in files.values()))
    found = index(tmp_path)
    assert (found.layout, found.failures, found.unused) == (layout, [], [])
    assert paths(found, tmp_path) == DATASETS[layout]


def test_plain_folders_are_what_no_dataset_claims(tmp_path: Path) -> None:
    found = index(make(tmp_path, "Zoé 1/t1w.nii.gz", "Zoé 1/lesion.nii.gz", "b c/fla.mha", "b c/T1/x.hdr"))
    assert found.layout == "folder"
    assert found.dataset == tmp_path.name
    assert paths(found, tmp_path) == {
        "Zoé 1": {"T1": "Zoé 1/t1w.nii.gz", "label": "Zoé 1/lesion.nii.gz"},
        "b c": {"FLAIR": "b c/fla.mha"},
    }


@pytest.mark.parametrize("suffix", [*NIFTI_SUFFIXES, *ITK_SUFFIXES])
def test_whatever_can_be_read_is_indexed(tmp_path: Path, suffix: str) -> None:
    found = index(make(tmp_path, f"a/T1{suffix}"))
    assert paths(found, tmp_path) == {"a": {"T1": f"a/T1{suffix}"}}


def test_a_root_of_two_datasets_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "IXI012-HH-1211-T1.nii.gz", "IXI013-HH-1212-T1.nii.gz", "BraTS-GLI-00000-000-t1c.nii.gz")
    with pytest.raises(ValueError, match=r"several datasets: ixi \(2 files\), brats2023 \(1 files\); give --layout"):
        index(tmp_path)
    assert [subject.name for subject in index(tmp_path, layout="brats2023").subjects] == ["BraTS-GLI-00000_000"]


def test_two_files_of_one_contrast_are_listed_with_a_way_to_choose_that_works(tmp_path: Path) -> None:
    both = [f"sub-{number}/anat/sub-{number}_acq-{kind}_T1w.nii.gz" for number in "12" for kind in ("flash", "mprage")]
    make(tmp_path, *both, "sub-3/anat/sub-3_T1w.nii.gz")
    found = index(tmp_path)
    assert [subject.name for subject in found.subjects] == ["sub-3"]
    assert [fault.subject for fault in found.failures] == ["sub-1", "sub-2"]
    reason = found.failures[0].reason
    assert reason.splitlines() == [
        '2 files could be its T1, choose with --choose "T1=*acq-flash*":',
        *(f"  {path}" for path in both[:2]),
    ]
    found = index(tmp_path, choices=Choices(["t1w=*acq-mprage*"]))
    assert not found.failures
    assert [subject.images["T1"].name for subject in found.subjects] == [
        "sub-1_acq-mprage_T1w.nii.gz",
        "sub-2_acq-mprage_T1w.nii.gz",
        "sub-3_T1w.nii.gz",
    ]


def test_the_first_pattern_that_fits_is_taken(tmp_path: Path) -> None:
    make(tmp_path, *(f"sub-1_run-{run}_T1w.nii" for run in (1, 2)), *(f"sub-2_run-{run}_T1w.nii" for run in (2, 3)))
    found = index(tmp_path, choices=Choices(["T1=*run-1*", "T1=*run-3*"]))
    assert [subject.images["T1"].name for subject in found.subjects] == ["sub-1_run-1_T1w.nii", "sub-2_run-3_T1w.nii"]


def test_a_pattern_can_say_what_an_unnamed_file_is(tmp_path: Path) -> None:
    make(tmp_path, "a/T1.nii", "a/T1_brain.nii", "b/T1.nii", "b/T1_brain.nii", "b/seg_auto.nii")
    found = index(tmp_path, choices=Choices(["T1=*_brain*", "label=*seg_auto*"]))
    assert paths(found, tmp_path) == {
        "a": {"T1": "a/T1_brain.nii"},
        "b": {"T1": "b/T1_brain.nii", "label": "b/seg_auto.nii"},
    }


def test_a_pattern_among_named_files_claims_no_unnamed_ones(tmp_path: Path) -> None:
    make(tmp_path, "a/dwi.mha", "a/dwi.nii.gz", "b/T1.nii.gz", "b/mask.nii.gz")
    assert paths(index(tmp_path, choices=Choices(["DWI=*.nii.gz"])), tmp_path) == {
        "a": {"DWI": "a/dwi.nii.gz"},
        "b": {"T1": "b/T1.nii.gz"},
    }


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("T1", "--choose must be CONTRAST=PATTERN.*got 'T1'"),
        ("T9=*x*", "unknown contrast 'T9'"),
        ("T1=*mprage*", r'--choose "T1=\*mprage\*" fits no file under .* that could be T1'),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused(tmp_path: Path, choice: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index(make(tmp_path, "a/T1.nii"), choices=Choices([choice]))


def test_a_diffusion_series_is_no_dwi_image(tmp_path: Path) -> None:
    make(tmp_path, "sub-1/dwi/sub-1_dwi.nii.gz", "sub-1/dwi/sub-1_dwi.bvec", "sub-1/anat/sub-1_T1w.nii.gz")
    found = index(tmp_path)
    assert list(found.subjects[0].images) == ["T1"]
    assert [path.name for path in found.unused] == ["sub-1_dwi.nii.gz"]


def test_two_folders_of_one_name_are_duplicates(tmp_path: Path) -> None:
    found = index(make(tmp_path, "x/case1/T1.nii", "y/case1/T2.nii", "y/case2/T2.nii"))
    assert [subject.name for subject in found.subjects] == ["case2"]
    assert [str(fault) for fault in found.failures] == [
        "case1: duplicate: the folders x/case1, y/case1 all bear its name; rename all but one, or --exclude them"
    ]
    assert not index(tmp_path, exclude=["x/*"]).failures


def test_one_visit_written_in_two_ways_is_refused(tmp_path: Path) -> None:
    found = index(make(tmp_path, "a/visit1/T1.nii", "a_visit1/T1.nii"))
    assert not found.subjects
    reason = "duplicate: the folders a/visit1, a_visit1 all bear its name; rename all but one, or --exclude them"
    assert found.failures[0].reason.endswith(reason)


def test_a_persons_visit_folders_stay_together(tmp_path: Path) -> None:
    found = index(make(tmp_path, "case7_visit1/T1.nii", "case7_visit2/T1.nii", "case8/T1.nii"))
    assert [(subject.subject, subject.session) for subject in found.subjects] == [
        ("case7", "visit1"), ("case7", "visit2"), ("case8", ""),
    ]  # fmt: skip


def test_a_folder_without_a_known_contrast_is_reported(tmp_path: Path) -> None:
    found = index(make(tmp_path, "a/T1.nii", "b/anatomy.nii", "c/lesion.nii"))
    assert [str(fault) for fault in found.failures] == [
        "b: has no image with a contrast's name, only b/anatomy.nii; "
        '--choose "T1=*anatomy.nii" says which file is what',
        'c: has no image with a contrast\'s name, only c/lesion.nii; --choose "T1=*lesion.nii" says which file is what',
    ]


def test_visits_without_what_is_required_are_left_out_by_name(tmp_path: Path) -> None:
    make(tmp_path, "a/T1.nii", "a/T2.nii", "b/T1.nii", "c/T2.nii")
    found = index(tmp_path, require=["T1", "T2"])
    assert [subject.name for subject in found.subjects] == ["a"]
    assert found.left_out == {"b": "no T2", "c": "no T1"}
    assert not found.failures


def test_an_empty_file_and_a_dangling_link_are_their_subjects_faults(tmp_path: Path) -> None:
    make(tmp_path, "a/T1.nii", "b/T1.nii")
    (tmp_path / "b/T2.nii").touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c/T1.nii").symlink_to("gone.nii")
    found = index(tmp_path)
    assert [subject.name for subject in found.subjects] == ["a"]
    assert [(fault.subject, fault.reason) for fault in found.failures] == [
        ("b", "is empty (0 bytes); copy or download it again"),
        ("c", "cannot be read: No such file or directory"),
    ]


def test_links_to_folders_are_followed_and_loops_are_cut(tmp_path: Path) -> None:
    make(tmp_path, "store/real/T1.nii")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).symlink_to(tmp_path / "store/real")
    (root / "loop").symlink_to(root)
    (root / "itself").symlink_to("itself")
    found = index(root)
    assert [subject.name for subject in found.subjects] == ["a", "b"]
    assert [str(fault) for fault in found.failures] == [
        f"loop: {root / 'loop'}: is a link that leads back to {root}; remove it"
    ]


def test_dicom_is_named_once_a_folder(tmp_path: Path) -> None:
    found = index(make(tmp_path, "a/T1.nii", "d/series1/001.dcm", "d/series2/001.dcm"))
    assert [subject.name for subject in found.subjects] == ["a"]
    assert [(fault.subject, fault.path) for fault in found.failures] == [("d", tmp_path / "d")]
    assert 'convert it to NIfTI first, or pass over it with --exclude "*.dcm"' in found.failures[0].reason
    assert not index(tmp_path, exclude=["*.dcm"]).failures
    assert [fault.path for fault in index(tmp_path / "d/series1").failures] == [tmp_path / "d/series1"]


def test_a_name_that_is_not_text_is_its_subjects_fault(tmp_path: Path) -> None:
    make(tmp_path, "a/T1.nii")
    try:
        make(tmp_path, "b/\udcff_T1.nii")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only UTF-8 names")
    found = index(tmp_path)
    assert [subject.name for subject in found.subjects] == ["a"]
    assert "not UTF-8 text; rename it" in found.failures[0].reason


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    found = index(make(tmp_path, "a/T1.nii", "a/._T1.nii", ".trash/b/T1.nii"))
    assert paths(found, tmp_path) == {"a": {"T1": "a/T1.nii"}}


def test_the_command_writes_a_datalist_and_says_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "my scans", tmp_path / "my scans/datalist.json"
    make(root, *(f"p{n}/{kind}.nii" for n in range(10) for kind in ("T1", "flair")), "p0/seg.nii", "p1/mask.nii")
    status = main(["index", "--root", str(root), "--out", str(out), "--split", "7/2/1"])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    table = [line.split() for line in captured.out.splitlines()]
    assert captured.out.startswith(f"my scans: {root}, read as folder\n")
    assert ["visits", "people", "T1", "FLAIR", "label"] in table
    assert ["training", "7", "7", "7", "7"] in [row[:5] for row in table]
    assert ["all", "10", "10", "10", "10", "1"] in table
    assert "1 images not used: p1/mask.nii" in captured.out
    assert len(read_datalist(out).subjects) == 10


def test_the_command_indexes_the_rest_and_its_status_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a/T1.nii", "b/T1.nii", "b/T1w.nii")
    assert main(["index", "--root", str(tmp_path), "--out", str(tmp_path / "x.json"), "--split", "1/0/0"]) == 1
    assert "1 of 2 subjects could not be indexed" in capsys.readouterr().err
    assert [subject.name for subject in read_datalist(tmp_path / "x.json").subjects] == ["a"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], [], "nothing to index under"),
        (["a/anatomy.nii"], [], "nothing to index under"),
        (["T9.nii"], ["--layout", "ixi"], "read as ixi; images there: T9.nii"),
        (["a/T1.nii"], ["--require", "T2"], "1 visits left out, no T2: a"),
        (["a/T1.nii"], ["--require", "T9"], "unknown contrast 'T9'"),
        (["a/T1.nii"], ["--split", "2/0/0"], "asks for 2 people, there are 1"),
    ],
)
def test_a_command_that_can_do_nothing_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], options: list[str], message: str
) -> None:
    make(tmp_path, *files)
    assert main(["index", "--root", str(tmp_path), "--out", str(tmp_path / "x.json"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_a_root_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "--root", str(tmp_path / "nowhere")]) == 2
    assert "--root must be a folder, got" in capsys.readouterr().err


def test_every_real_nifti_and_metaimage_case_is_indexed(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose = ["DWI=*.nii.gz", "ADC=*.nii.gz", "label=*lesion_eval*", "label=*fusion_mav*"]
    command = ["index", "--root", str(real_data), "--out", str(tmp_path / "real.json")]
    assert main([*command, "--choose", *choose, "--exclude", "*.dcm"]) == 0
    content = {
        subject.name: (sorted(subject.images), subject.label is not None)
        for subject in read_datalist(tmp_path / "real.json").subjects
    }
    assert content == {
        "epi_flash_pair": (["T1", "T2"], False),
        "glioma_du7294": (["FLAIR", "T1", "T1C", "T2"], True),
        "mni152_2mm": (["T1", "T2"], False),
        "ms_patient26": (["FLAIR", "T1", "T1C", "T2"], True),
        "ms_raw_patient01": (["FLAIR", "T1", "T2"], False),
        "ms_raw_patient03_study2": (["FLAIR", "T1", "T2"], False),
        "ms_raw_patient04_study1": (["FLAIR", "T1", "T2"], False),
        "stroke_isles0001": (["ADC", "DWI"], True),
    }
    assert main(command) == 1
    complaint = capsys.readouterr().err
    assert "dicom_volunteer" in complaint
    assert '2 files could be its DWI, choose with --choose "DWI=*.nii.gz"' in complaint
    assert json.loads((tmp_path / "real.json").read_text())["root"] == real_data.as_posix()
