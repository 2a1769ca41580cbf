"""Pictures of the report: three planes of a volume as PNGs inside the page, and the error as a colour."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ERROR_TOP = 0.2  # of the images' range: where the colour scale ends, the same in every picture
LARGEST = 384  # pixels of a picture's longer side
# black, violet, red, orange, pale yellow: lighter is worse, in grey print and for any eyes
COLOURS = np.array([(0, 0, 0), (51, 18, 92), (142, 32, 98), (215, 73, 62), (249, 155, 36), (252, 246, 184)])


class Stored(NamedTuple):
    """A volume as it was kept: (I, J, K) along R, A and S, and where it lies."""

    array: NDArray[np.float32]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


class View(NamedTuple):
    """One plane: its PNG as a data URI, and its width in mm."""

    plane: str
    source: str
    width: float


def read_stored(path: Path) -> Stored:
    """A volume of a run folder."""
    try:
        image = nib.as_closest_canonical(nib.Nifti1Image.from_filename(path))
        array = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # nibabel, gzip and zlib have no common one
        raise ValueError(f"{path} cannot be read ({error}): evaluate again") from error
    if array.ndim != 3 or not np.isfinite(array).all():
        raise ValueError(f"{path} must be a 3D volume without NaN or infinity, got shape {array.shape}: evaluate again")
    return Stored(array, np.asarray(image.affine, dtype=np.float64))


def error_of(synthetic: Stored, truth: Stored, *, path: Path) -> Stored:
    if synthetic.array.shape != truth.array.shape or not np.allclose(synthetic.affine, truth.affine, atol=1e-3):
        raise ValueError(f"{path} and the truth beside it are not on one grid: evaluate again")
    return Stored(np.abs(synthetic.array - truth.array), truth.affine)


def middle_of(truth: Stored) -> tuple[int, int, int]:
    """The middle of what is not background."""
    inside = truth.array > 0.05
    if not inside.any():
        i, j, k = (size // 2 for size in truth.array.shape)
    else:
        spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        i, j, k = (int(span[0] + span[-1]) // 2 for span in spans)
    return i, j, k


def three_views(volume: Stored, at: tuple[int, int, int], *, is_error: bool = False) -> list[View]:
    """Axial, coronal, sagittal, as radiologists look at them: the patient's right, or front, is on the left."""
    i, j, k = at
    turned = volume.array[::-1, ::-1, ::-1]
    si, sj, sk = volume.spacing
    size_i, size_j, size_k = volume.array.shape
    planes = {
        "axial": (turned[:, :, size_k - 1 - k], si, sj),
        "coronal": (turned[:, size_j - 1 - j, :], si, sk),
        "sagittal": (turned[size_i - 1 - i, :, :], sj, sk),
    }
    return [
        View(plane, data_uri(_png(image.T, step_x, step_y, is_error=is_error)), image.shape[0] * step_x)
        for plane, (image, step_x, step_y) in planes.items()
    ]


def _png(image: NDArray[np.float32], step_x: float, step_y: float, *, is_error: bool) -> bytes:
    """(rows, columns) in [0, 1], or an error, to square pixels."""
    levels = np.rint(255 * np.clip(image / (ERROR_TOP if is_error else 1.0), 0, 1)).astype(np.uint8)
    height, width = levels.shape
    step = max(min(step_x, step_y), max(width * step_x, height * step_y) / LARGEST)
    size = (max(1, round(width * step_x / step)), max(1, round(height * step_y / step)))
    picture = Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR)
    if is_error:
        picture.putpalette(palette().tobytes())
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def palette() -> NDArray[np.uint8]:
    """(256, 3): the error's colours, from 0 to ERROR_TOP and above"""
    places = np.linspace(0, len(COLOURS) - 1, 256)
    channels = [np.interp(places, range(len(COLOURS)), COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def gradient() -> str:
    """The same scale for the style sheet."""
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in COLOURS)


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
