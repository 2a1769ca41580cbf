"""Every way in which a file may be bad has its own message, and every way in which it may be good is read right."""

import errno
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.volumes import LPS_TO_RAS, Volume, read_volume, write_volume

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 3, -40], [0, 1.5, 0, 10], [0, 0, 0, 1]])  # axes swapped and flipped


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(np.float32)


def save(path: Path, array: np.ndarray, *, affine: np.ndarray = AFFINE, change: Callable[[Any], None] | None = None):
    """A NIfTI as some tool may have written it; `change` gets its header."""
    image = nib.Nifti1Image(array, affine)
    if change is not None:
        change(image.header)
    nib.save(image, path)
    return path


def patch(path: Path, offset: int, data: bytes) -> Path:
    """Put bytes into an uncompressed file, past every library's checks."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


def floats(*numbers: float) -> bytes:
    return np.array(numbers, dtype="<f4").tobytes()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_written_is_read_back(tmp_path, values, name):
    write_volume(tmp_path / name, Volume(values, AFFINE))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.spacing, [2, 1.5, 3], atol=1e-6)


def test_sixteen_bits_hold_zero_to_one_to_half_a_step(tmp_path, values):
    array = values / values.max()
    write_volume(tmp_path / "a.nii", Volume(array, AFFINE), dtype=np.uint16, slope=1 / 65535)
    image = nib.load(tmp_path / "a.nii")
    assert image.get_data_dtype() == np.uint16
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").array, array, atol=0.51 / 65535)


def test_values_that_do_not_fit_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match="do not fit into uint8"):
        write_volume(tmp_path / "a.nii", Volume(values, AFFINE), dtype=np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_unsigned_sixteen_bits_are_read_right(tmp_path):
    array = np.array([0, 40000, 65535, 7], dtype=np.uint16).reshape(1, 2, 2)
    np.testing.assert_array_equal(read_volume(save(tmp_path / "a.nii.gz", array)).array, array)


def test_scl_slope_and_inter_are_applied(tmp_path):
    array = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    path = save(tmp_path / "a.nii", array, change=lambda header: header.set_slope_inter(0.5, -3))
    np.testing.assert_array_equal(read_volume(path).array, array * 0.5 - 3)


def test_big_endian_is_read_right(tmp_path, values):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(values.astype(np.int16), AFFINE, header=header)
    nib.save(image, tmp_path / "a.nii.gz")
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()).startswith(b"\0\0\x01\x5c")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, values)
    assert volume.array.dtype == np.dtype("=f4")


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd"])
def test_metaimage_and_nrrd_lie_where_the_nifti_does(tmp_path, values, name):
    image = itk.image_from_array(np.ascontiguousarray(values.T).astype(np.int16))
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    affine = LPS_TO_RAS @ AFFINE
    image.SetSpacing(spacing)
    image.SetOrigin(affine[:3, 3])
    image.SetDirection(itk.matrix_from_array(affine[:3, :3] / spacing))
    itk.imwrite(image, str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-9)


def test_a_path_may_have_spaces_and_any_letters(tmp_path, values):
    folder = tmp_path / "Größe 脑 мозг"
    folder.mkdir()
    write_volume(folder / "T1 é.nii.gz", Volume(values, AFFINE))
    np.testing.assert_array_equal(read_volume(folder / "T1 é.nii.gz").array, values)
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(values.T)), str(folder / "T1 é.mha"))
    np.testing.assert_array_equal(read_volume(folder / "T1 é.mha").array, values)


def test_a_fourth_dimension_of_one_is_no_dimension(tmp_path, values):
    np.testing.assert_array_equal(read_volume(save(tmp_path / "a.nii", values[..., None])).array, values)


def test_a_stack_of_contrasts_is_named_as_one(tmp_path, values):
    path = save(tmp_path / "a.nii", np.stack([values] * 4, axis=-1))
    with pytest.raises(ValueError, match=r"has 4 dimensions \(5, 6, 7, 4\).*stack of 4 contrasts.*file of its own"):
        read_volume(path)


def test_a_picture_is_no_volume(tmp_path, values):
    with pytest.raises(ValueError, match=r"has 2 dimensions \(5, 6\), expected 3"):
        read_volume(save(tmp_path / "a.nii", values[:, :, 0]))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_truncated_file_is_refused(tmp_path, values, name, share):
    path = tmp_path / name
    if name.endswith((".mha", ".nrrd")):
        itk.imwrite(itk.image_from_array(values), str(path))
    else:
        save(path, values)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"a\.\w+.* is truncated or damaged .*copy or download it again"):
        read_volume(path)


def test_damage_inside_a_compressed_file_is_refused(tmp_path, values):
    path = save(tmp_path / "a.nii.gz", values)
    patch(path, 300, b"\xff" * 40)
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_volume(path)


def test_a_bit_that_flipped_in_a_compressed_file_is_never_a_voxel(tmp_path):
    """Deflate seldom notices; the checksum at the file's end always does."""
    noise = np.random.default_rng(0).integers(0, 4000, (20, 24, 16)).astype(np.int16)
    content = save(tmp_path / "a.nii.gz", noise).read_bytes()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        harmed = bytearray(content)
        harmed[int(rng.integers(400, len(content) - 8))] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.nii.gz").write_bytes(harmed)
        with pytest.raises(ValueError, match=r"b\.nii\.gz is (truncated or )?damaged"):
            read_volume(tmp_path / "b.nii.gz")


def test_voxels_of_no_known_kind_are_refused(tmp_path, values):
    path = save(tmp_path / "a.nii", values)
    content = bytearray(path.read_bytes())
    content[70:72] = (83).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"its voxels are of kind 83, which NIfTI does not know\): copy or download"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"is empty \(0 bytes\)"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
def test_a_text_file_is_refused_with_how_it_begins(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="is text, not an image; it begins with 'version https://git-lfs"):
        read_volume(tmp_path / name)


def test_other_binary_content_is_refused(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    with pytest.raises(ValueError, match=r"a\.nii is truncated or damaged"):
        read_volume(tmp_path / "a.nii")


def test_a_suffix_that_lies_about_compression_is_named(tmp_path, values):
    plain, packed = save(tmp_path / "a.nii", values), save(tmp_path / "b.nii.gz", values)
    with pytest.raises(ValueError, match="is not gzip-compressed: name it"):
        read_volume(plain.rename(tmp_path / "c.nii.gz"))
    with pytest.raises(ValueError, match="is gzip-compressed, which its name does not say"):
        read_volume(packed.rename(tmp_path / "d.nii"))


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not an image by its name: expected one of"):
        read_volume(tmp_path / "a.png")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_is_refused_with_its_place(tmp_path, values, bad):
    values[1, 2, 3] = values[4, 0, 0] = bad
    with pytest.raises(ValueError, match=r"2 voxels that are NaN or infinite, the first at \(1, 2, 3\)"):
        read_volume(save(tmp_path / "a.nii", values))


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_is_refused_but_not_a_constant_mask(tmp_path, values, value):
    path = save(tmp_path / "a.nii", np.full_like(values, value))
    with pytest.raises(ValueError, match=f"shows nothing: every voxel is {value}"):
        read_volume(path)
    assert read_volume(path, allow_constant=True).array.max() == value


def test_a_singular_affine_is_refused(tmp_path, values):
    path = save(tmp_path / "a.nii", values, affine=np.eye(4))
    patch(path, 252, bytes(2))  # qform_code = 0: only the sform speaks
    patch(path, 296, floats(1, 0, 0, 0))  # srow_y = srow_x
    with pytest.raises(ValueError, match="singular affine"):
        read_volume(path)
    patch(path, 296, floats(0, 0, 0, 0))
    with pytest.raises(ValueError, match="singular affine"):
        read_volume(path)


def test_a_sheared_affine_is_refused_with_its_angle(tmp_path, values):
    path = save(tmp_path / "a.nii", values, affine=np.eye(4))
    patch(path, 252, bytes(2))
    patch(path, 280, floats(1, np.tan(np.radians(20)), 0, 0))
    with pytest.raises(ValueError, match=r"sheared affine .* meet at 70.0 degrees, expected 90"):
        read_volume(path)


def test_sform_and_qform_in_conflict_are_refused_with_their_distance(tmp_path, values):
    def move(header: Any) -> None:
        elsewhere = AFFINE.copy()
        elsewhere[0, 3] += 12
        header.set_qform(elsewhere, code=1)
        header.set_sform(AFFINE, code=1)

    with pytest.raises(ValueError, match=r"sform and qform disagree by up to 12.0 mm"):
        read_volume(save(tmp_path / "a.nii", values, change=move))


def test_sform_and_qform_that_differ_by_rounding_are_taken(tmp_path, values):
    def nudge(header: Any) -> None:
        near = AFFINE.copy()
        near[:3, 3] += 0.01
        header.set_qform(near, code=1)
        header.set_sform(AFFINE, code=1)

    assert read_volume(save(tmp_path / "a.nii", values, change=nudge)).shape == (5, 6, 7)


@pytest.mark.parametrize("spacing", [0.0, np.nan])
def test_a_spacing_of_zero_is_refused_in_nifti(tmp_path, values, spacing):
    path = patch(save(tmp_path / "a.nii", values), 80 + 4, floats(spacing))  # pixdim[2]
    with pytest.raises(ValueError, match=f"a voxel spacing of 2 x {spacing:g} x 3 mm"):
        read_volume(path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("a.mha", b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1"), ("a.nrrd", b"(1,0,0)", b"(0,0,0)")],
)
def test_a_spacing_of_zero_is_refused_in_other_formats(tmp_path, values, name, old, new):
    itk.imwrite(itk.image_from_array(values), str(tmp_path / name))
    content = (tmp_path / name).read_bytes()
    assert old in content
    (tmp_path / name).write_bytes(content.replace(old, new))
    with pytest.raises(ValueError, match="a voxel spacing of 0 x 1 x 1 mm"):
        read_volume(tmp_path / name)


def test_colour_is_refused(tmp_path):
    colour = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ValueError, match="expected one real number a voxel"):
        read_volume(save(tmp_path / "a.nii", colour))


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nii"):
        read_volume(tmp_path / "gone.nii")


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, values, monkeypatch):
    path = tmp_path / "a.nii"
    write_volume(path, Volume(values, AFFINE))

    def full(_image: Any, name: Path) -> None:
        name.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.nii"):
        write_volume(path, Volume(values + 1, AFFINE))
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii"]
    np.testing.assert_array_equal(read_volume(path).array, values)


def test_every_real_file_is_read(real_data):
    files = [path for path in sorted(real_data.rglob("*")) if path.name.endswith((".nii.gz", ".mha"))]
    assert len(files) > 20
    for path in files:
        volume = read_volume(path, allow_constant=True)
        assert 10 < volume.shape[2] < 400
        assert np.abs(np.linalg.det(volume.affine)) > 0


def test_a_real_case_in_two_formats_is_the_same(real_data):
    nifti, meta = (read_volume(real_data / "stroke_isles0001" / f"dwi.{suffix}") for suffix in ("nii.gz", "mha"))
    np.testing.assert_allclose(nifti.array, meta.array, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(nifti.affine, meta.affine, atol=1e-3)
