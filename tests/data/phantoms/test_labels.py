"""Label maps become shares of tissue, whatever their orientation and voxels; what is no head is refused."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from balls import SIZE, write_labels
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.phantoms.anatomy import BRAIN, CLASSES, FAR, label_maps, read_anatomy, read_labels
from monai_ext.data.volumes import Volume


def share(path: Path, tissue: str) -> NDArray[np.float32]:
    return read_anatomy(path).stored[CLASSES.index(tissue)].numpy() / np.float32(255)


def test_each_tissue_keeps_its_volume_and_borders_are_shared(head: Path, labels: NDArray[np.int32]) -> None:
    for tissue, label in (("wm", 2), ("gm", 3), ("ventricle", 4), ("csf", 24), ("deep", 12)):
        expected = {"deep": 0.95}.get(tissue, 1.0) * (labels == label).sum()
        if tissue == "gm":
            expected += 0.05 * (labels == 12).sum()  # the striatum is partly grey matter
        assert share(head, tissue).sum() == pytest.approx(expected, rel=0.01)
    brain = sum(share(head, tissue) for tissue in BRAIN)
    assert brain.max() < 1.01
    at_border = share(head, "wm") * share(head, "gm")
    border = (labels == 2) & ndimage.binary_dilation(labels == 3)
    near = ndimage.binary_dilation(border | (labels == 12), iterations=4)  # the striatum has grey matter in it
    assert at_border[border].min() > 0.02  # a voxel at the border between them holds both
    assert at_border[~near].max() == 0


def test_the_last_channel_is_the_depth_below_the_brains_surface(head: Path) -> None:
    anatomy = read_anatomy(head)
    depth = anatomy.channels(head=False)[-1].numpy() - FAR
    middle = np.rint(anatomy.centre).astype(int)
    along = depth[:, middle[1], middle[2]]
    where = np.arange(len(along)) - anatomy.centre[0]
    near = np.abs(np.abs(where) - 48) < 8
    np.testing.assert_allclose(along[near], (48 - np.abs(where))[near], atol=1.6)


@pytest.mark.parametrize("axes", ["LIA", "LPS", "ASR"])
def test_a_map_in_another_orientation_is_the_same_anatomy(tmp_path: Path, head: Path, axes: str) -> None:
    image = nib.load(head)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    turned = image.as_reoriented(turn)
    path = write_labels(tmp_path / "turned.nii", np.asarray(turned.dataobj), turned.affine)
    np.testing.assert_array_equal(read_labels(path), read_labels(head))


def test_voxels_that_are_not_cubes_of_a_millimetre_become_so(tmp_path: Path, labels: NDArray[np.int32]) -> None:
    coarse = labels[:, :, ::2]
    back = read_labels(write_labels(tmp_path / "thick.nii", coarse, np.diag([1.0, 1.0, 2.0, 1.0])))
    assert back.shape == labels.shape
    np.testing.assert_array_equal(back[:, :, 0:8:2], labels[:, :, 0:8:2])
    assert (back == 2).sum() == pytest.approx((labels == 2).sum(), rel=0.02)


def test_a_few_strange_numbers_are_soft_tissue_and_many_are_refused(tmp_path: Path, labels: NDArray[np.int32]) -> None:
    few, many = labels.copy(), labels.copy()
    few[:8, :8, :8] = 1234
    many[labels == 511] = 1234
    few_path = write_labels(tmp_path / "few.nii", few)
    muscle = read_anatomy(few_path).stored[CLASSES.index("muscle")]
    assert muscle[:6, :6, :6].float().mean() > 0.5 * 255
    with pytest.raises(ValueError, match=r"many\.nii: .*labels that are not FreeSurfer's.*1234 \(\d+ voxels\)"):
        read_anatomy(write_labels(tmp_path / "many.nii", many))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda labels: labels * 0, "holds 0 mL of brain"),
        (lambda labels: np.where(labels == 511, 511, 0), "holds 0 mL of brain"),
        (lambda labels: labels[: SIZE // 2 + 10], "the brain is cut off at the right"),
        (lambda labels: labels[:, SIZE // 2 - 10 :], "the brain is cut off at the back"),
        (lambda labels: labels[:, :, : SIZE // 2 + 20], "the brain is cut off at the top"),
        (lambda labels: np.where(labels == 2, 9999, labels), "has label 9999"),
    ],
)
def test_what_is_no_whole_head_is_refused(
    tmp_path: Path, labels: NDArray[np.int32], spoil: object, message: str
) -> None:
    assert callable(spoil)
    with pytest.raises(ValueError, match=message):
        read_anatomy(write_labels(tmp_path / "bad.nii", spoil(labels)))


def test_a_map_cut_through_the_neck_is_taken(tmp_path: Path, labels: NDArray[np.int32]) -> None:
    path = write_labels(tmp_path / "neck.nii", labels[:, :, SIZE // 2 - 35 :])
    assert read_anatomy(path).stored.shape[0] == len(CLASSES) + 1


def test_an_image_and_coarse_voxels_are_no_label_map(tmp_path: Path, labels: NDArray[np.int32]) -> None:
    halves = tmp_path / "halves.nii"
    nib.save(nib.Nifti1Image(labels.astype(np.float32) + 0.5, np.eye(4)), halves)
    with pytest.raises(ValueError, match="a label map holds whole numbers"):
        read_labels(halves)
    coarse = Volume(labels[::6, ::6, ::6], np.diag([6.0, 6.0, 6.0, 1.0]))
    with pytest.raises(ValueError, match="too coarse for an anatomy"):
        read_labels(write_labels(tmp_path / "coarse.nii", coarse.array, coarse.affine))


def test_a_folder_without_label_maps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "head.nii.bak").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no label map"):
        label_maps(tmp_path)
