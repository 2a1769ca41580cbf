"""A 3D image and where it lies: read from NIfTI, MetaImage or NRRD, bad files refused, written as NIfTI."""

import contextlib
import gzip
import struct
import zlib
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import DTypeLike, NDArray

from monai_ext.data.declared import check_bytes, check_count, check_itk_header, check_regular
from monai_ext.files import whole_file

NIFTI_SUFFIXES = (".nii", ".nii.gz")
DESCRIP_BYTES = 79  # the header has 80, of which some readers want the last to be zero
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
LARGEST_SHEAR = 2e-3  # cosine between two axes: 0.2 mm at the edge of a head; float32 rounds to 1e-6
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK: left, posterior positive; nibabel: right, anterior

_LARGEST_CONFLICT = 0.5  # mm
_VOXEL = (0.01, 30.0)  # mm, least and most along an edge: beyond lies another unit or a damaged header
_LARGEST_OFFSET = 1 << 26  # bytes of extensions before the voxels
_MOST_BEYOND = 1 << 28  # bytes after the voxels that are unpacked to get to the checksum
_BLOCK = 1 << 20  # bytes decompressed at a time


@dataclass(frozen=True)
class Volume:
    """A 3D image and where it lies.

    Attributes:
        array: (i, j, k).
        affine: 4 x 4, voxel index -> world in mm, RAS+ as in nibabel.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many voxels there are along i, j and k."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing(self) -> NDArray[np.float64]:
        """The voxel's edges in mm, along i, j and k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_volume(path: str | Path, *, allow_constant: bool = False) -> Volume:
    """Read one 3D image.

    Memory is taken for what the file holds, never for what its header declares; MONAI_EXT_MAX_VOXELS (536870912) is the
    most.

    Args:
        path: a NIfTI, MetaImage or NRRD.
        allow_constant: for masks and label maps, which may well be empty.

    Returns:
        The image, its array float32.

    Raises:
        ValueError: the file cannot be trusted; the message names it and says what is wrong and what to do.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "T1.nii.gz"
        >>> write_volume(path, Volume(np.arange(24.0, dtype=np.float32).reshape(2, 3, 4), np.diag([1.0, 1, 5, 1])))
        >>> volume = read_volume(path)
        >>> volume.shape, volume.spacing.tolist()
        ((2, 3, 4), [1.0, 1.0, 5.0])
    """
    path = Path(path)
    is_itk = path.name.lower().endswith(ITK_SUFFIXES)
    if not is_itk and not path.name.lower().endswith(NIFTI_SUFFIXES):
        suffixes = " ".join(NIFTI_SUFFIXES + ITK_SUFFIXES)
        raise ValueError(f"{path} is not an image by its name: expected one of {suffixes}")
    check_regular(path)
    _check_first_bytes(path, is_itk=is_itk)
    array, affine = _read_itk(path) if is_itk else _read_nifti(path)
    _check_affine(path, affine)
    _check_voxels(path, array, allow_constant=allow_constant)
    return Volume(array, affine)


def read_channels(path: str | Path) -> list[Volume]:
    """Read a NIfTI of one image or of several on one grid, with the checks of `read_volume`.

    Args:
        path: of three dimensions, or of four, whose last counts the images.

    Returns:
        The images, their arrays float32.

    Raises:
        ValueError: the file cannot be trusted, or is no NIfTI; the message names it and says what is wrong.
    """
    path = Path(path)
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        raise ValueError(f"{path} is not NIfTI by its name: expected one of {' '.join(NIFTI_SUFFIXES)}")
    check_regular(path)
    _check_first_bytes(path, is_itk=False)
    array, affine = _read_nifti(path, channels=True)
    _check_affine(path, affine)
    _check_voxels(path, array, allow_constant=False)
    return [Volume(channel, affine) for channel in np.moveaxis(array, -1, 0)]


def read_description(path: str | Path) -> str:
    """Read what a NIfTI's header says of it.

    Args:
        path: of an image that `read_volume` takes.

    Returns:
        Its `descrip`, "" where it has none or is no NIfTI.
    """
    path = Path(path)
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        return ""
    header: Any = nib.load(path).header
    return bytes(header["descrip"]).split(b"\0")[0].decode("ascii", "replace").strip()


def write_volume(
    path: str | Path, volume: Volume, *, dtype: DTypeLike = np.float32, slope: float = 1.0, description: str = ""
) -> None:
    """Write a NIfTI, whole or not at all.

    Args:
        path: .nii or .nii.gz.
        volume: what is written.
        dtype: of the stored voxels.
        slope: integers store `round(array / slope)`, and scl_slope undoes it.
        description: for the header's `descrip`.

    Raises:
        ValueError: another ending, or values that do not fit into the dtype.
    """
    path = Path(path)
    if not path.name.endswith(NIFTI_SUFFIXES):
        raise ValueError(f"{path}: volumes are written as .nii or .nii.gz")
    kind = np.dtype(dtype)
    stored = volume.array / slope if slope != 1.0 else volume.array
    if np.issubdtype(kind, np.integer):
        stored, limits = np.rint(stored), np.iinfo(kind)
        if stored.min() < limits.min or stored.max() > limits.max:
            low, high = volume.array.min(), volume.array.max()
            raise ValueError(f"{path}: values {low:g} to {high:g} at slope {slope:g} do not fit into {kind}")
    image = nib.Nifti1Image(stored.astype(kind), volume.affine, dtype=kind)
    image.header.set_xyzt_units("mm")
    image.set_qform(volume.affine, code="scanner")  # both, so that every viewer finds the same place
    image.set_sform(volume.affine, code="scanner")
    image.header.set_slope_inter(slope, 0)
    image.header["descrip"] = description.encode("ascii", "replace")[:DESCRIP_BYTES]
    with whole_file(path) as partial:
        nib.save(image, partial)


def _check_first_bytes(path: Path, *, is_itk: bool) -> None:
    """Empty files, text (an error page, a pointer to a file that was never fetched) and wrong suffixes."""
    with path.open("rb") as file:
        head = file.read(348)
    if not head:
        raise ValueError(f"{path} is empty (0 bytes): copy or download it again")
    gzipped, named_gz = head.startswith(b"\x1f\x8b"), path.name.lower().endswith(".gz")
    if (head.startswith(b"NRRD") or b"NDims" in head) if is_itk else (gzipped or b"\0" in head):
        if gzipped != named_gz:
            fault = "is gzip-compressed, which its name does not say" if gzipped else "is not gzip-compressed"
            raise ValueError(f"{path} {fault}: name it .nii.gz if compressed, .nii if not")
        return
    with contextlib.suppress(UnicodeDecodeError):
        line = head.decode().strip().split("\n")[0][:40]
        raise ValueError(f"{path} is text, not an image; it begins with {line!r}: copy or download it again")
    raise ValueError(f"{path} is not an image: its first bytes are {head[:8]!r}")


def _read_nifti(path: Path, *, channels: bool = False) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """(i, j, k), or (i, j, k, channels), and the affine"""
    try:
        _check_nifti_size(path)
        image: Any = nib.load(path)
        shape = _three_dimensions(path, image.shape[:3] if channels else image.shape)
        if channels:
            shape = (*shape, prod(image.shape[3:]))
        _check_nifti_header(path, image)
        array = _nifti_voxels(path, image).reshape(shape, order="F")
    except (FileNotFoundError, PermissionError):
        raise
    except (EOFError, zlib.error, struct.error, ImageFileError, HeaderDataError, OSError) as error:
        raise _damaged(path, error, line=0) from error
    except MemoryError as error:
        raise ValueError(f"{path} is too large for this machine's memory") from error
    return array, np.asarray(image.affine, dtype=np.float64)


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _check_nifti_size(path: Path) -> None:
    """What the header says of sizes and places, before nibabel computes with it."""
    with _opened(path) as file:
        head = file.read(540)
    kinds = {size: kind for kind in (nib.Nifti1Header, nib.Nifti2Header) for size in (kind.sizeof_hdr,)}
    lengths = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    kind = next((kinds[length] for length in lengths if length in kinds), None)
    if kind is None or len(head) < kind.sizeof_hdr:
        return  # ANALYZE or nothing known: nibabel says what it is
    header = kind(head[: kind.sizeof_hdr], check=False)
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _LARGEST_OFFSET:
        raise ValueError(
            f"{path} is damaged (its voxels begin at byte {offset:g}, expected 0 to {_LARGEST_OFFSET}): "
            "copy or download it again"
        )
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise ValueError(f"{path} is damaged (it has {count} dimensions, expected 1 to 7): copy or download it again")
    sizes = [int(size) for size in header["dim"][1 : count + 1]]
    check_count(path, sizes)
    try:
        itemsize = int(header.get_data_dtype().itemsize)
    except KeyError:
        unknown = f"its voxels are of kind {int(header['datatype'])}, which NIfTI does not know"
        raise ValueError(f"{path} is damaged ({unknown}): copy or download it again") from None
    needed = int(offset) + prod(max(size, 0) for size in sizes) * itemsize
    check_bytes(path, needed=needed, available=path.stat().st_size, packed=path.name.lower().endswith(".gz"))


def _nifti_voxels(path: Path, image: Any) -> NDArray[np.float32]:
    """As nibabel's get_fdata, but compressed voxels are unpacked a block at a time into pages not yet taken."""
    if not path.name.lower().endswith(".gz"):
        return image.get_fdata(dtype=np.float32, caching="unchanged")
    proxy = image.dataobj
    stored = np.empty(prod(image.shape), dtype=proxy.dtype)
    room = memoryview(stored.view(np.uint8).data)
    with gzip.open(path) as file:
        file.seek(proxy.offset)
        at = 0
        while at < len(room):
            count = file.readinto(room[at : at + _BLOCK])
            if not count:
                raise EOFError(f"Expected {len(room)} bytes, got {at} bytes")
            at += count
        beyond = 0  # only at its end does gzip compare what was unpacked with the file's checksum
        while beyond < _MOST_BEYOND and (rest := file.read(_BLOCK)):
            beyond += len(rest)
    slope, inter = (np.asanyarray(factor) for factor in (proxy.slope, proxy.inter))
    return np.asarray(apply_read_scaling(stored, slope, inter), dtype=np.float32)


def _check_nifti_header(path: Path, image: Any) -> None:
    with _opened(path) as file:
        raw = image.header_class.from_fileobj(file, check=False)  # nibabel turns a spacing of zero into 1
    _check_spacing(path, raw["pixdim"][1:4])
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"{path} has voxels of {image.get_data_dtype()}, expected one real number a voxel")
    qform, sform = image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]
    if qform is None or sform is None:
        return
    last = [size - 1 for size in image.shape[:3]]
    corners = np.array([(*corner, 1) for corner in product(*[(0, index) for index in last])])
    apart = np.linalg.norm((qform - sform) @ corners.T, axis=0).max()
    if not apart <= _LARGEST_CONFLICT:
        raise ValueError(
            f"{path}: sform and qform disagree by up to {apart:.1f} mm about where the image lies "
            f"({_LARGEST_CONFLICT} mm is allowed): find out which is right and set the other equal to it"
        )


def _read_itk(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    import itk  # slow to load, and most datasets are NIfTI

    available, packed = check_itk_header(path)
    try:
        header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
        if header is None:
            raise ValueError(f"{path} is neither MetaImage nor NRRD")
        header.SetFileName(str(path))
        header.ReadImageInformation()
        sizes = [header.GetDimensions(axis) for axis in range(header.GetNumberOfDimensions())]
        _three_dimensions(path, sizes)
        check_count(path, sizes)
        check_bytes(path, needed=prod(sizes) * header.GetComponentSize(), available=available, packed=packed)
        _check_spacing(path, [header.GetSpacing(axis) for axis in range(3)])
        if header.GetNumberOfComponents() != 1:
            raise ValueError(f"{path} has {header.GetNumberOfComponents()} numbers a voxel, expected one")
        directions = np.array([header.GetDirection(axis) for axis in range(3)], dtype=np.float64)
        _check_affine(path, np.block([[directions[:, :3].T, np.zeros((3, 1))], [np.eye(1, 4, 3)]]))
        image = itk.imread(str(path), itk.F)
    except RuntimeError as error:
        raise _damaged(path, error, line=-1) from error
    affine = np.eye(4)
    direction = itk.array_from_matrix(image.GetDirection())
    affine[:3, :3] = direction[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = np.array(image.GetOrigin())[:3]
    array = itk.array_from_image(image).T.reshape(sizes[:3], order="F")
    return array, LPS_TO_RAS @ affine


def _damaged(path: Path, error: Exception, *, line: int) -> ValueError:
    """With the one line of a library's message that says what it found."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[line].strip()
    return ValueError(f"{path} is truncated or damaged ({message}): copy or download it again")


def _three_dimensions(path: Path, sizes: Any) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in sizes)
    if len(sizes) < 3 or any(size != 1 for size in sizes[3:]):
        hint = ""
        if len(sizes) == 4:
            hint = f"; if it is a stack of {sizes[3]} contrasts or b-values, write each to a file of its own"
        raise ValueError(f"{path} has {len(sizes)} dimensions {sizes}, expected 3{hint}")
    if min(sizes) < 1:
        raise ValueError(f"{path} has no voxels: its size is {sizes}")
    return sizes[:3]


def _check_spacing(path: Path, spacing: Any) -> None:
    if not all(np.isfinite(step) and step != 0 for step in spacing):
        steps = " x ".join(f"{step:g}" for step in spacing)
        raise ValueError(f"{path} has a voxel spacing of {steps} mm: every one must be above zero")


def _check_affine(path: Path, affine: NDArray[np.float64]) -> None:
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    rows = np.array2string(axes, precision=3, separator=", ").replace("\n", "")
    if not np.all(np.isfinite(affine)) or np.any(lengths == 0):
        raise ValueError(f"{path} has a singular affine {rows}: its voxels have no place in the world")
    if lengths.min() < _VOXEL[0] or lengths.max() > _VOXEL[1]:
        steps = " x ".join(f"{length:.3g}" for length in lengths)
        raise ValueError(
            f"{path} has voxels of {steps} mm, expected {_VOXEL[0]:g} to {_VOXEL[1]:g}: is the header damaged, or in "
            "another unit?"
        )
    cosines = np.abs((axes / lengths).T @ (axes / lengths) - np.eye(3))
    if abs(np.linalg.det(axes / lengths)) < 1e-3:
        raise ValueError(f"{path} has a singular affine {rows}: its voxels have no place in the world")
    if cosines.max() > LARGEST_SHEAR:
        angle = np.degrees(np.arccos(cosines.max()))
        raise ValueError(f"{path} has a sheared affine {rows}: two axes meet at {angle:.1f} degrees, expected 90")


def _check_voxels(path: Path, array: NDArray[np.float32], *, allow_constant: bool) -> None:
    low, high = float(array.min()), float(array.max())  # NaN and infinity both show in these two
    if not np.isfinite([low, high]).all():
        bad = ~np.isfinite(array)
        where = tuple(int(index) for index in np.argwhere(bad)[0])
        raise ValueError(f"{path} has {bad.sum()} voxels that are NaN or infinite, the first at {where}")
    if low == high and not allow_constant:
        raise ValueError(f"{path} shows nothing: every voxel is {low:g}")
