"""Slices of prepared subjects: the right voxels, by the papers' rules, every fault named, nothing held."""

import gzip
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd, RandShiftIntensityd
from torch.utils.data import DataLoader

from monai_ext.data.batching import Draw, Kind, ModalityConsistentBatches
from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.data.slice_files import read_slices
from monai_ext.data.slices import SliceDataset, choose_slices, parse_rule

SHAPE = (6, 5, 8)


def write_nifti(
    path: Path,
    stored: np.ndarray,
    *,
    slope: float | None = 1 / 65535,
    affine: np.ndarray | None = None,
    order: str = "<",
) -> Path:
    """An uncompressed NIfTI with exactly these stored numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_sform(np.eye(4) if affine is None else affine, code=1)
    header.set_slope_inter(slope, None if slope is None else 0)
    header["vox_offset"] = 352
    path.write_bytes(header.binaryblock + bytes(4) + stored.astype(stored.dtype.newbyteorder(order)).tobytes("F"))
    return path


def make_subject(
    root: Path,
    name: str,
    contrasts: str,
    *,
    dataset: str = "ixi",
    shape: tuple[int, int, int] = SHAPE,
    empty: tuple[int, ...] = (),
    mask: np.ndarray | None = None,
) -> Subject:
    """A prepared subject of random voxels, none of them zero but for the slices named `empty`."""
    rng = np.random.default_rng(sum(name.encode()))
    images = {}
    for contrast in contrasts.split():
        stored = rng.integers(1, 2**16, size=shape, dtype=np.uint16)
        stored[:, :, list(empty)] = 0
        images[contrast] = write_nifti(root / name / f"{contrast}.nii", stored)
    if mask is not None:
        write_nifti(root / name / "mask.nii", mask, slope=None)
    return Subject(subject=name, dataset=dataset, images=images)


def with_truth(root: Path, subject: Subject, targets: str, masks: str = "") -> Subject:
    """The same subject with targets and masks that are not its images."""
    rng = np.random.default_rng(9)
    folder = root / subject.name
    made = {
        name: write_nifti(folder / f"{name}_target.nii", rng.integers(1, 2**16, size=SHAPE, dtype=np.uint16))
        for name in targets.split()
    }
    drawn = {
        name: write_nifti(folder / f"{name}.nii", rng.integers(0, 2, size=SHAPE, dtype=np.uint8) * 3, slope=None)
        for name in masks.split()
    }
    return replace(subject, targets=made, masks=drawn)


def test_the_target_is_read_from_the_targets_and_the_sources_from_the_images(tmp_path: Path) -> None:
    subject = with_truth(tmp_path, make_subject(tmp_path, "a", "T1 T2"), "T2 FLAIR")
    item = SliceDataset([subject], sources=["T1"], target=["T2", "FLAIR"])[3]
    truth = [nib.load(subject.targets[name]).get_fdata(dtype=np.float32)[:, :, 3] for name in ("T2", "FLAIR")]
    np.testing.assert_allclose(item["target"], np.stack(truth), atol=1e-7)
    np.testing.assert_allclose(item["sources"][0], volume(subject, "T1")[:, :, 3], atol=1e-7)
    any_to_any = SliceDataset([subject], sources=["T1", "T2"], target=["T1", "T2"])[3]
    np.testing.assert_allclose(any_to_any["sources"][1], volume(subject, "T2")[:, :, 3], atol=1e-7)
    np.testing.assert_allclose(any_to_any["target"][1], truth[0], atol=1e-7)
    np.testing.assert_allclose(any_to_any["target"][0], volume(subject, "T1")[:, :, 3], atol=1e-7)


def test_a_contrast_with_a_target_and_no_image_is_no_source(tmp_path: Path) -> None:
    subject = with_truth(tmp_path, make_subject(tmp_path, "a", "T1 T2"), "FLAIR")
    with pytest.raises(SubjectError, match="lacks FLAIR"):
        SliceDataset([subject], sources=["T1", "FLAIR"], target=["T2"])


def test_masks_come_along_as_ones_and_zeros_where_they_are_named(tmp_path: Path) -> None:
    subject = with_truth(tmp_path, make_subject(tmp_path, "a", "T1 T2"), "T2", "brain lesion")
    item = SliceDataset([subject], sources=["T1"], target=["T2"], masks=["lesion", "brain"])[2]
    for mask, name in zip(item["masks"], ("lesion", "brain"), strict=True):
        np.testing.assert_array_equal(mask, nib.load(subject.masks[name]).get_fdata()[:, :, 2] > 0)
    assert "masks" not in SliceDataset([subject], sources=["T1"], target=["T2"])[2]
    with pytest.raises(SubjectError, match="a: has no mask 'brain'"):
        SliceDataset([replace(subject, masks={})], sources=["T1"], target=["T2"], masks=["brain"])
    with pytest.raises(ValueError, match="masks must be a list of brain and lesion, got 'brain'"):
        SliceDataset([subject], sources=["T1"], target=["T2"], masks="brain")


def volume(subject: Subject, contrast: str) -> np.ndarray:
    return nib.load(subject.images[contrast]).get_fdata(dtype=np.float32)


def brain(shape: tuple[int, int, int], areas: Mapping[int, int]) -> np.ndarray:
    """A mask with `areas[k]` voxels in slice k."""
    mask = np.zeros(shape, dtype=np.uint8)
    for number, area in areas.items():
        mask[:, :, number].flat[:area] = 1
    return mask


def chosen(dataset: SliceDataset) -> list[int]:
    return [dataset[index]["slice"] for index in range(len(dataset))]


def test_items_are_the_volumes_own_slices(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "IXI012", "T1 T2 PD")
    dataset = SliceDataset([subject], sources=["T2", "T1"], target=["PD"])
    assert len(dataset) == SHAPE[2]
    for index in range(len(dataset)):
        item = dataset[index]
        for channel, contrast in zip([*item["sources"], *item["target"]], ["T2", "T1", "PD"], strict=True):
            np.testing.assert_allclose(channel, volume(subject, contrast)[:, :, index], atol=1e-6)
    assert set(item) == {"sources", "target", "subject", "slice", "dataset", "available"}
    assert item["sources"].shape == (2, 6, 5)
    assert item["target"].shape == (1, 6, 5)
    assert item["sources"].dtype == item["target"].dtype == torch.float32
    assert (item["subject"], item["slice"], item["dataset"]) == ("IXI012", 7, "ixi")
    assert item["available"].tolist() == [True, True, True]
    assert item["available"].dtype == torch.bool


def test_contrasts_go_by_any_of_their_names(tmp_path: Path) -> None:
    dataset = SliceDataset([make_subject(tmp_path, "a", "T1 FLAIR")], sources=["t1w"], target=["t2f"])
    assert dataset.contrasts == ("T1", "FLAIR")


def test_a_path_with_spaces_and_accents_is_read(tmp_path: Path) -> None:
    subject = make_subject(tmp_path / "données à moi", "Zoë", "T1 T2")
    assert SliceDataset([subject], sources=["T1"], target=["T2"])[0]["subject"] == "Zoë"


def test_big_endian_files_are_read_right(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 2**16, size=SHAPE, dtype=np.uint16)
    path = write_nifti(tmp_path / "T1.nii", stored, order=">")
    np.testing.assert_allclose(read_slices(path, 2, 4), stored.transpose(2, 0, 1)[2:4] / 65535, atol=1e-6)


def test_an_intercept_is_applied(tmp_path: Path) -> None:
    stored = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)
    path = write_nifti(tmp_path / "T1.nii", stored)
    header = bytearray(path.read_bytes())
    header[116:120] = np.float32(0.25).tobytes()
    path.write_bytes(header)
    np.testing.assert_allclose(read_slices(path, 0, 1)[0], stored[:, :, 0] / 65535 + 0.25, atol=1e-6)


@pytest.mark.parametrize(("first", "stop"), [(-1, 2), (3, 3), (7, 9)])
def test_slices_outside_the_volume_are_refused(tmp_path: Path, first: int, stop: int) -> None:
    path = write_nifti(tmp_path / "T1.nii", np.ones(SHAPE, np.uint16))
    with pytest.raises(ValueError, match="are not among its 8"):
        read_slices(path, first, stop)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_a_slice_is_read_without_reading_the_rest(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "T1.nii", np.ones((256, 256, 20), np.uint16))
    read_slices(path, 0, 1)
    before = bytes_read()
    read_slices(path, 11, 12)
    assert bytes_read() - before < 1.2 * 256 * 256 * 2


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("every", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("nonempty", [1, 2, 3, 5, 6, 7]),
        (("middle", 4), [2, 3, 5, 6]),
        (["middle", 3], [2, 3, 5]),
        (("middle", 80), [1, 2, 3, 5, 6, 7]),
        (("brain", 2), [3, 5]),
        (["brain", 4], [2, 3, 5, 6]),
        (("brain", 60), [1, 2, 3, 5, 6, 7]),
    ],
)
def test_each_rule_takes_its_slices_by_the_mask(tmp_path: Path, rule: object, expected: list[int]) -> None:
    mask = brain(SHAPE, {1: 2, 2: 6, 3: 20, 5: 21, 6: 6, 7: 1})
    subject = make_subject(tmp_path, "a", "T1 T2", mask=mask)
    assert chosen(SliceDataset([subject], sources=["T1"], target=["T2"], slices=rule)) == expected


def test_without_a_mask_a_slice_is_empty_where_any_contrast_is(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2", empty=(0, 7))
    stored = np.asarray(nib.load(subject.images["T2"]).dataobj.get_unscaled()).copy()
    stored[:, :, 3] = 0
    write_nifti(subject.images["T2"], stored)
    assert chosen(SliceDataset([subject], sources=["T1"], target=["T2"])) == [1, 2, 4, 5, 6]
    assert chosen(SliceDataset([subject], sources=["T1"], target=["T2"], slices=("middle", 3))) == [2, 4, 5]


def test_slices_outside_a_contrasts_field_of_view_are_empty_whatever_the_mask_says(tmp_path: Path) -> None:
    mask = brain(SHAPE, dict.fromkeys(range(1, 8), 9))
    subject = make_subject(tmp_path, "a", "T1 T2 PD", mask=mask)
    for contrast, unseen in (("T1", [0, 1]), ("T2", [6, 7])):
        stored = np.asarray(nib.load(subject.images[contrast]).dataobj.get_unscaled()).copy()
        stored[:, :, unseen] = 0
        write_nifti(subject.images[contrast], stored)
    assert chosen(SliceDataset([subject], sources=["T1"], target=["T2"])) == [2, 3, 4, 5]
    assert chosen(SliceDataset([subject], sources=["T1"], target=["PD"])) == [2, 3, 4, 5, 6, 7]


def test_more_slices_than_one_block_are_counted_in_order(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2", shape=(3, 3, 40), empty=(0, 16, 33))
    dataset = SliceDataset([subject], sources=["T1"], target=["T2"])
    assert chosen(dataset) == [number for number in range(40) if number not in (0, 16, 33)]


def test_brain_needs_a_mask(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2")
    with pytest.raises(SubjectError, match=r"a: .*has no mask\.nii, which the rule 'brain' needs"):
        SliceDataset([subject], sources=["T1"], target=["T2"], slices=("brain", 60))


@pytest.mark.parametrize(
    "rule", ["all", "middle", ("middle", 0), ("middle", "80"), ("brain", 2.5), ("brain", True), ("every", 3), ()]
)
def test_an_unknown_rule_is_refused(rule: object) -> None:
    with pytest.raises(ValueError, match="slices must be"):
        parse_rule(rule)


def test_the_middle_of_the_papers_case_is_eighty() -> None:
    content = np.zeros(155, dtype=int)
    content[10:131] = 1
    numbers = choose_slices(content, rule="middle", count=80)
    assert (numbers[0], numbers[-1], len(numbers)) == (30, 109, 80)


def test_a_subject_without_a_contrast_is_refused_by_name(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "TTI7", "T1 T2")
    with pytest.raises(SubjectError, match="TTI7: lacks FLAIR; leave it out, or take zeros"):
        SliceDataset([subject], sources=["T1", "FLAIR"], target=["T2"])


def test_a_missing_source_may_be_zero_and_is_marked(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "TTI7", "T1 T2")
    dataset = SliceDataset([subject], sources=["FLAIR", "T1"], target=["T2"], allow_missing=True)
    item = dataset[3]
    assert item["available"].tolist() == [False, True, True]
    assert not item["sources"][0].any()
    np.testing.assert_allclose(item["sources"][1], volume(subject, "T1")[:, :, 3], atol=1e-6)


@pytest.mark.parametrize(
    ("contrasts", "sources", "target", "message"),
    [
        ("T2", ["T1", "FLAIR"], ["T2"], "has T2 of T1, FLAIR, T2"),
        ("T1", ["T1"], ["T2"], "has T1 of T1, T2"),
        ("PD", ["T1"], ["T2"], "has none of T1, T2"),
        ("T1", ["T1", "T2"], ["T1", "T2"], "has T1 of T1, T2"),
    ],
)
def test_a_subject_needs_a_source_and_another_contrast_as_target(
    tmp_path: Path, contrasts: str, sources: list[str], target: list[str], message: str
) -> None:
    subject = make_subject(tmp_path, "a", contrasts)
    with pytest.raises(SubjectError, match=f"a: {message}: it takes a source and another"):
        SliceDataset([subject], sources=sources, target=target, allow_missing=True)


def test_a_bad_subject_is_put_by_and_the_others_serve(tmp_path: Path) -> None:
    subjects = [make_subject(tmp_path, "good", "T1 T2"), make_subject(tmp_path, "bad", "T1")]
    failures: list[SubjectError] = []
    dataset = SliceDataset(subjects, sources=["T1"], target=["T2"], failures=failures)
    assert [fault.subject for fault in failures] == ["bad"]
    assert {dataset[index]["subject"] for index in range(len(dataset))} == {"good"}
    with pytest.raises(ValueError, match="none of the 1 subjects can serve"):
        SliceDataset(subjects[1:], sources=["T1"], target=["T2"], failures=failures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": ["T1", "t1w"]}, "sources names a contrast twice"),
        ({"sources": []}, "sources must be a list of at least one contrast"),
        ({"target": "T2"}, "target must be a list of at least one contrast, got 'T2'"),
        ({"sources": ["T1", "T2"]}, "must have no contrast in common, or be the same list"),
        ({"sources": ["T9"]}, "unknown contrast 'T9'"),
        ({"neighbours": -1}, "neighbours must be a whole number of at least 0, got -1"),
        ({"slices": "some"}, "slices must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SliceDataset([], **{"sources": ["T1"], "target": ["T2"], **arguments})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def compress(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


LAS = np.diag([-1.0, 1, 1, 1])
BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"T2\.nii: is truncated: 822 bytes, its header asks for 832"),
    "text": (lambda path: path.write_text("no image\n" * 60), r"T2\.nii: is no uncompressed NIfTI"),
    "zero bytes": (lambda path: path.write_bytes(b""), r"T2\.nii: is no uncompressed NIfTI"),
    "compressed": (compress, r"T2\.nii: is no uncompressed NIfTI"),
    "gone": (lambda path: path.unlink(), r"T2\.nii: cannot be read: No such file"),
    "4D": (lambda path: write_nifti(path, np.ones((*SHAPE, 2), np.uint16)), r"has shape \(6, 5, 8, 2\)"),
    "another grid": (lambda path: write_nifti(path, np.ones((6, 5, 9), np.uint16)), r"T1\.nii is \(6, 5, 8\)"),
    "not RAS": (lambda path: write_nifti(path, np.ones(SHAPE, np.uint16), affine=LAS), "orientation LAS"),
    "as scanned": (lambda path: write_nifti(path, np.ones(SHAPE, np.uint16), slope=None), r"to \[0, 1\]"),
    "float": (lambda path: write_nifti(path, np.ones(SHAPE, np.float32), slope=None), r"to \[0, 1\]"),
    "all zero": (lambda path: write_nifti(path, np.zeros(SHAPE, np.uint16)), "every slice is empty"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_file_that_is_not_prepared_is_refused_with_its_subject(tmp_path: Path, fault: str) -> None:
    subject = make_subject(tmp_path, "P1", "T1 T2", shape=(6, 5, 8))
    spoil, message = BAD_FILES[fault]
    spoil(subject.images["T2"])
    with pytest.raises(SubjectError, match=message) as raised:
        SliceDataset([subject], sources=["T1"], target=["T2"])
    assert raised.value.subject == "P1"


def test_a_mask_of_another_grid_is_refused(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2", mask=np.ones((6, 5, 7), np.uint8))
    with pytest.raises(SubjectError, match=r"mask\.nii: is \(6, 5, 7\), but T1\.nii is \(6, 5, 8\)"):
        SliceDataset([subject], sources=["T1"], target=["T2"])


def test_a_file_cut_short_in_the_middle_of_training_is_named(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "P1", "T1 T2")
    dataset = SliceDataset([subject], sources=["T1"], target=["T2"])
    truncate(subject.images["T2"])
    assert dataset[6]["slice"] == 6
    with pytest.raises(SubjectError, match=r"P1: .*T2\.nii: slice 7: is truncated"):
        dataset[7]


def test_neighbours_stand_beside_their_contrast_and_the_edges_repeat(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2 PD")
    dataset = SliceDataset([subject], sources=["T1", "T2"], target=["PD"], neighbours=2)
    t1, t2, pd = (np.moveaxis(volume(subject, contrast), 2, 0) for contrast in ("T1", "T2", "PD"))
    for index, around in [(0, [0, 0, 0, 1, 2]), (3, [1, 2, 3, 4, 5]), (7, [5, 6, 7, 7, 7])]:
        item = dataset[index]
        np.testing.assert_allclose(item["sources"], np.concatenate([t1[around], t2[around]]), atol=1e-6)
        np.testing.assert_allclose(item["target"], pd[[index]], atol=1e-6)


def test_more_neighbours_than_slices_repeat_the_edges(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2", shape=(4, 4, 2))
    item = SliceDataset([subject], sources=["T1"], target=["T2"], neighbours=3)[0]
    expected = np.moveaxis(volume(subject, "T1"), 2, 0)[[0, 0, 0, 0, 1, 1, 1]]
    np.testing.assert_allclose(item["sources"], expected, atol=1e-6)


def augment() -> Compose:
    keys = ["sources", "target"]
    return Compose(
        [RandFlipd(keys=keys, prob=0.5, spatial_axis=0), RandShiftIntensityd(keys=keys, offsets=(0.1, 0.5), prob=1.0)]
    )


def test_a_draw_repeats_its_augmentation_and_another_gives_another(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2")
    dataset = SliceDataset([subject], sources=["T1"], target=["T2"], transform=augment())
    first, again, other = (dataset[Draw(2, seed)] for seed in (7, 7, 8))
    assert type(first["sources"]) is torch.Tensor
    assert torch.equal(first["sources"], again["sources"])
    assert torch.equal(first["target"], again["target"])
    assert not torch.equal(first["sources"], other["sources"])


def shifts(loader: DataLoader, plain: SliceDataset) -> list[float]:
    """By how much each item's brightness was shifted, in the loader's order."""
    items = [item for batch in loader for item in zip(batch["slice"].tolist(), batch["sources"], strict=True)]
    return [round(float((image - plain[number]["sources"]).mean()), 5) for number, image in items]


@pytest.mark.parametrize("persistent", [False, True])
def test_plain_numbers_draw_anew_in_every_worker_and_epoch(tmp_path: Path, persistent: bool) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2")
    shift = RandShiftIntensityd(keys=["sources"], offsets=(0.1, 0.5), prob=1.0)
    plain, dataset = (
        SliceDataset([subject], sources=["T1"], target=["T2"], transform=transform) for transform in (None, shift)
    )
    loader = DataLoader(dataset, num_workers=2, persistent_workers=persistent)
    torch.manual_seed(0)
    drawn = [*shifts(loader, plain), *shifts(loader, plain)]
    assert len(set(drawn)) == len(drawn) == 2 * SHAPE[2]
    torch.manual_seed(0)
    again = DataLoader(dataset, num_workers=2)
    assert shifts(again, plain) == drawn[: SHAPE[2]]


def test_an_augmentation_moves_sources_and_target_together(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2")
    flip = RandFlipd(keys=["sources", "target"], prob=0.5, spatial_axis=0)
    plain = SliceDataset([subject], sources=["T1"], target=["T2"])[4]
    dataset = SliceDataset([subject], sources=["T1"], target=["T2"], transform=flip)
    flips = set()
    for seed in range(8):
        item = dataset[Draw(4, seed)]
        flipped = torch.equal(item["sources"], plain["sources"].flip(1))
        assert flipped or torch.equal(item["sources"], plain["sources"])
        assert torch.equal(item["target"], plain["target"].flip(1) if flipped else plain["target"])
        flips.add(flipped)
    assert flips == {True, False}


def test_what_is_absent_stays_zero_through_an_augmentation(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2")
    every = ["T1", "T2", "FLAIR"]
    dataset = SliceDataset(
        [subject], sources=every, target=every, allow_missing=True, neighbours=1, transform=augment()
    )
    item = dataset[Draw(3, seed=1)]
    assert not item["sources"][6:].any()
    assert not item["target"][2].any()
    assert item["sources"][:6].all()


def test_a_condition_blanks_what_is_to_be_synthesised(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2 FLAIR")
    every = ["T1", "T2", "FLAIR"]
    dataset = SliceDataset([subject], sources=every, target=every, neighbours=1, transform=augment())
    item = dataset[Draw(3, 0, (True, False, True))]
    assert item["condition"].tolist() == [True, False, True]
    assert [bool(item["sources"][channel].any()) for channel in range(9)] == [True] * 3 + [False] * 3 + [True] * 3
    assert item["target"].flatten(1).any(1).all(), "the target is whole, to reconstruct what is given too"


def test_an_unnamed_draw_keeps_its_dataset_to_itself(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2")
    dataset = SliceDataset([subject], sources=["T1"], target=["T2"])
    assert dataset[Draw(0, 0)]["dataset"] == dataset[0]["dataset"] == subject.dataset != ""
    assert dataset[Draw(0, 0, None, named=False)]["dataset"] == ""


def test_a_condition_on_a_fixed_task_is_refused(tmp_path: Path) -> None:
    dataset = SliceDataset([make_subject(tmp_path, "a", "T1 T2")], sources=["T1"], target=["T2"])
    with pytest.raises(ValueError, match="a synthesis condition has an entry a contrast"):
        dataset[Draw(0, 0, (True, False))]


def mixed(root: Path) -> list[Subject]:
    return [
        make_subject(root / "x", "a", "T1 T2 FLAIR", dataset="brats"),
        make_subject(root / "x", "b", "T1 T2", dataset="tti"),
        make_subject(root / "x", "c", "T1 FLAIR", dataset="tti"),
        make_subject(root / "x", "d", "T1 T2", dataset="tti", shape=(4, 5, 3)),
    ]


def test_kinds_say_what_each_item_is(tmp_path: Path) -> None:
    every = ["T1", "T2", "FLAIR"]
    dataset = SliceDataset(mixed(tmp_path), sources=every, target=every, allow_missing=True)
    kinds = dataset.kinds
    assert len(kinds) == len(dataset) == 27
    for index, kind in enumerate(kinds):
        item = dataset[index]
        size = tuple(item["target"].shape[1:])
        assert kind == Kind(item["dataset"], tuple(item["available"].tolist()), size)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_give_the_batches_that_one_process_gives(tmp_path: Path, start: str) -> None:
    every = ["T1", "T2", "FLAIR"]
    dataset = SliceDataset(mixed(tmp_path), sources=every, target=every, allow_missing=True, transform=augment())
    sampler = ModalityConsistentBatches(dataset.kinds, batch_size=4, curriculum=0)
    alone = list(DataLoader(dataset, batch_sampler=sampler))
    workers = DataLoader(dataset, batch_sampler=sampler, num_workers=2, multiprocessing_context=start)
    for ours, theirs in zip(alone, workers, strict=True):
        assert len(set(ours["dataset"])) == 1
        assert (ours["condition"] == ours["condition"][0]).all()
        assert ours["subject"] == theirs["subject"]
        for name in ("sources", "target", "available", "condition", "slice"):
            assert torch.equal(ours[name], theirs[name])


def test_a_fault_in_a_worker_names_subject_and_file(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "P1", "T1 T2")
    dataset = SliceDataset([subject], sources=["T1"], target=["T2"])
    subject.images["T2"].unlink()
    with pytest.raises((SubjectError, RuntimeError), match=r"P1: .*T2\.nii: slice 0: cannot be read: No such file"):
        next(iter(DataLoader(dataset, num_workers=1)))


def linked(root: Path, subject: Subject, number: int) -> list[Subject]:
    """The same files under many subjects' names."""
    many = []
    for index in range(number):
        folder = root / f"linked{index:03}"
        folder.symlink_to(subject.images["T1"].parent)
        images = {contrast: folder / path.name for contrast, path in subject.images.items()}
        many.append(Subject(subject=folder.name, dataset="ixi", images=images))
    return many


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="counts open files as Unix does")
def test_no_file_stays_open(tmp_path: Path) -> None:
    subjects = linked(tmp_path, make_subject(tmp_path, "a", "T1 T2 PD FLAIR"), 50)
    dataset = SliceDataset(subjects, sources=["T1", "T2", "PD"], target=["FLAIR"])
    assert all(dataset[index]["sources"].any() for index in range(0, len(dataset), 3))
    opened = [os.path.realpath(link) for link in Path("/dev/fd").iterdir()]
    assert [path for path in opened if path.startswith(str(tmp_path))] == []


def test_what_is_kept_of_a_subject_is_small_whatever_its_volumes(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, "a", "T1 T2 PD FLAIR", shape=(64, 64, 20))
    many = SliceDataset(linked(tmp_path, subject, 50), sources=["T1", "T2", "PD"], target=["FLAIR"])
    pickle.loads(pickle.dumps(many))[0]
    assert len(pickle.dumps(many)) < 50 * 2000
