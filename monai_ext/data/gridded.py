"""One subject in memory: its contrasts read, placed on each other and put on one grid in [0, 1], and the way back.

What `prepare` writes and what inference gives to a network are the same, because both come from here.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.data.masks import foreground, otsu_brain, zero_background
from monai_ext.data.presets import DIFFERING, Preset
from monai_ext.data.registration import register_rigid
from monai_ext.data.resampling import IDENTITY, resample, share_inside, slice_grid, to_ras
from monai_ext.data.volumes import Volume, read_volume

logger = logging.getLogger(__name__)
PERCENTILE = 99.5  # of a contrast's foreground, or of all its voxels, becomes 1
ANATOMICAL = ("T1", "T2", "PD", "T1C", "FLAIR")  # those that show a skull dark between scalp and brain
LARGEST_LABEL = np.iinfo(np.uint16).max
LEAST_SEEN = 0.05  # of the foreground, by every contrast
NEAR = 1.1  # voxels so much larger or smaller are as good as the same: heads themselves differ by that


@dataclass(frozen=True)
class Scaled:
    """One contrast on the grid in [0, 1].

    Attributes:
        array: (I, J, K), the values.
        top: what 1 was in the contrast's file.
        to_source: 4 x 4, from the reference's world to its own, in mm.
        moved_mm: how far registration moved it.
        seen: the share of the mask that its field of view holds.
        placed_by: "its grid", "its header" or "rigid registration".
    """

    array: NDArray[np.float32]
    top: float
    to_source: NDArray[np.float64]
    moved_mm: float
    seen: float
    placed_by: str

    @property
    def record(self) -> dict[str, Any]:
        """What is told of it in a sidecar."""
        return {
            "range": [0.0, self.top],
            "to_source": self.to_source.tolist(),
            "moved_mm": self.moved_mm,
            "seen": self.seen,
            "placed_by": self.placed_by,
        }


@dataclass(frozen=True)
class Grid:
    """Where the reference lies as it is stored, and the RAS grid that all contrasts are put on.

    Attributes:
        contrast: which the reference is.
        stored_shape, stored_affine: of the reference's file.
        shape, affine: of the grid.
    """

    contrast: str
    stored_shape: tuple[int, int, int]
    stored_affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def back(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring an image from the grid to the reference's own voxels: crop, size, spacing and orientation undone.

        Args:
            array: (I, J, K). One of another shape than the grid's covers the same field of view.

        Returns:
            An array of `stored_shape`, 0 outside of the grid.
        """
        stored = Volume(np.broadcast_to(np.float32(0), self.stored_shape), self.stored_affine)
        upright = to_ras(stored)
        volume = resample(Volume(array, self.affine_of(array.shape)), upright.shape, upright.affine)
        turn = ornt_transform(axcodes2ornt("RAS"), io_orientation(self.stored_affine))
        return apply_orientation(volume.array, turn)

    def affine_of(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Say where an array over the grid's field of view lies.

        Args:
            shape: three numbers; the grid's own gives its own affine.

        Returns:
            4 x 4, voxel index -> world in mm; the outer corner of the field of view stays where it is.
        """
        step = np.array(self.shape) / np.array(shape)
        index = np.diag([*step, 1.0])
        index[:3, 3] = (step - 1) / 2  # the outer corner stays where it is
        return self.affine @ index


class Gridded:
    """A subject's contrasts as they were read, where each lies, and the grid; `image` puts one onto it.

    Args:
        subject: whose files are read.
        preset: how they become slices.
        root: where the preset's pattern of a mask file begins.
        whole: for a patient: nothing of the reference is cut off, and its voxels are of the preset's
            `trained_spacing`.

    Raises:
        SubjectError: a fault of the subject's files.
    """

    def __init__(self, subject: Subject, *, preset: Preset, root: Path, whole: bool = False) -> None:
        self.subject, self.preset, self.whole = subject, preset, whole
        as_stored = {contrast: _read(subject, path) for contrast, path in subject.images.items()}
        self.read = {contrast: to_ras(volume) for contrast, volume in as_stored.items()}
        chosen = _reference(subject, preset)
        stored, reference = as_stored[chosen], self.read[chosen]
        self.placed, self.placed_by = _placed(subject, self.read, chosen, preset=preset)
        mask = _mask(subject, self.read, self.placed, chosen, preset=preset, root=root)
        self.points = _some_points(reference, mask)
        shape, affine = _grid(reference, mask, preset=preset, whole=whole)
        self.grid = Grid(chosen, stored.shape, stored.affine, shape, affine)
        solid = Volume(mask.astype(np.float32), reference.affine)
        self.mask = resample(solid, shape, affine, order=1, touching=whole).array > 0.5
        self.mask_kept = float(_millilitres(self.mask, affine) / _millilitres(mask, reference.affine))

    def image(self, contrast: str) -> Scaled:
        """Put one contrast on the grid, its percentile 1 and nothing below 0.

        Args:
            contrast: one that the subject has.

        Returns:
            The image on the grid in [0, 1], with what 1 was and how it was placed; with a brain mask, 0 outside of it.

        Raises:
            SubjectError: it does not show what the reference shows, nothing of it lies inside the mask, or its
                percentile is 0.
        """
        volume, path, to_source = self.read[contrast], self.subject.images[contrast], self.placed[contrast]
        source_points = apply_affine(to_source, self.points)
        share = share_inside(volume, source_points)
        if share < LEAST_SEEN:
            shown = (
                f"{contrast} sees {share:.0%} of what {self.grid.contrast} shows: their fields of view do not overlap"
            )
            raise SubjectError(self.subject.name, path, f"{shown}; if a header is wrong, try --register rigid")
        image = resample(volume, self.grid.shape, self.grid.affine, to_volume=to_source, touching=self.whole).array
        signal = image[self.mask & (image > 0)]
        if not signal.size:
            raise SubjectError(self.subject.name, path, f"{contrast} is nowhere above zero inside the mask")
        top = float(np.percentile(volume.array if self.preset.percentile_of == "volume" else signal, PERCENTILE))
        if top <= 0:
            what = f"{PERCENTILE}th percentile of {contrast}'s whole volume is {top:g}, for the head fills little of it"
            raise SubjectError(self.subject.name, path, f"the {what}: take the foreground's")
        scaled: NDArray[np.float32] = np.clip(
            image / np.float32(top), 0, 1
        )  # interpolation undershoots, and the brightest half percent
        if self.preset.brain_mask:
            scaled[~self.mask] = 0
        moved_mm = float(np.linalg.norm(source_points - self.points, axis=1).mean())
        return Scaled(scaled, top, to_source, moved_mm, share, self.placed_by[contrast])

    def coverage(self, computed: NDArray[np.bool_]) -> float:
        """Estimate the share of the mask that lies in slices that are computed, from about 4000 of its voxels.

        Args:
            computed: (K,), for each slice of the grid.

        Returns:
            0 to 1; what lies outside of the grid counts as not computed.
        """
        index = np.rint(apply_affine(np.linalg.inv(self.grid.affine), self.points)).astype(int)
        inside = np.all((index >= 0) & (index < np.array(self.grid.shape)), axis=-1)
        inside[inside] = computed[index[inside, 2]]
        return float(inside.mean())

    def label(self) -> Volume:
        """Put the label map on the grid, moved like the contrast whose voxels it shares, which it was drawn on.

        Returns:
            The grid's shape and affine, whole numbers by nearest neighbour, 0 outside of the label's field of view.

        Raises:
            SubjectError: its values are no labels.
        """
        subject = self.subject
        assert subject.label is not None
        label = to_ras(_read(subject, subject.label, allow_constant=True))
        if np.any(label.array != np.rint(label.array)) or label.array.min() < 0:
            raise SubjectError(subject.name, subject.label, "a label map holds whole numbers from 0 up")
        if label.array.max() > LARGEST_LABEL:
            most = f"a label map holds numbers up to {LARGEST_LABEL}, got {label.array.max():.0f}"
            raise SubjectError(subject.name, subject.label, f"{most}: renumber its labels")
        drawn_on = [contrast for contrast, volume in self.read.items() if _same_grid(volume, label)]
        to_volume = self.placed[drawn_on[0]] if drawn_on else IDENTITY
        return resample(label, self.grid.shape, self.grid.affine, to_volume=to_volume, order=0)


def mask_file(subject: Subject, *, preset: Preset, root: Path) -> Path | None:
    """Name the brain mask of this subject that the preset's pattern means; None if the preset has no pattern.

    Args:
        subject: whose mask it is.
        preset: whose `brain_mask` may be a pattern.
        root: the folder that the pattern starts from.

    Returns:
        The path, whether there is a file or not; None if the preset has no pattern.

    Raises:
        SubjectError: the pattern has another field than {subject}, {session} and {name}.
    """
    if "{" not in preset.brain_mask:
        return None
    names = {"subject": subject.subject, "session": subject.session, "name": subject.name}
    fields = re.findall(r"{[^{}]*}?", preset.brain_mask)  # not str.format, which would follow {name.__class__} too
    for field in fields:
        if field[1:-1] not in names or not field.endswith("}"):
            allowed = ", ".join(f"{{{name}}}" for name in names)
            raise SubjectError(subject.name, None, f"brain_mask may have {allowed} in it, got {preset.brain_mask!r}")
    return root / re.sub(r"{(\w+)}", lambda field: names[field[1]], preset.brain_mask)


def _read(subject: Subject, path: Path, *, allow_constant: bool = False) -> Volume:
    try:
        return read_volume(path, allow_constant=allow_constant)
    except OSError as error:
        raise SubjectError(subject.name, path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SubjectError(subject.name, path, str(error).removeprefix(str(path)).lstrip(": ")) from error


def _reference(subject: Subject, preset: Preset) -> str:
    for contrast in preset.reference:
        if contrast in subject.images:
            return contrast
    has, wanted = ", ".join(subject.images), " or ".join(preset.reference)
    raise SubjectError(subject.name, None, f"has {has}, but the grid is to come from {wanted}")


def _grid(
    reference: Volume, mask: NDArray[np.bool_], *, preset: Preset, whole: bool
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """As the training data's, but for a patient whole, and of their voxel size if it would be far from that."""
    shape, affine = slice_grid(
        reference, spacing=preset.spacing, crop=preset.crop, size=preset.size, keep=mask, whole=whole
    )
    if not whole or preset.trained_spacing is None:
        return shape, affine
    own = [float(step) for step in np.linalg.norm(affine[:3, :3], axis=0)]
    pairs = zip(own, preset.trained_spacing, strict=True)
    wanted = [trained if trained and not 1 / NEAR < step / trained < NEAR else step for step, trained in pairs]
    if wanted == own:
        return shape, affine
    return slice_grid(reference, spacing=wanted, crop=preset.size or preset.crop, size=None, keep=mask, whole=True)


def _placed(
    subject: Subject, read: Mapping[str, Volume], chosen: str, *, preset: Preset
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """For each contrast, the matrix from the reference's world to its own, and how it was found."""
    placed = dict.fromkeys(read, IDENTITY)
    how = {name: "its grid" if _same_grid(read[chosen], volume) else "its header" for name, volume in read.items()}
    if preset.register not in ("rigid", DIFFERING):
        return placed, how
    # ADC is computed from DWI: on one grid the two are one scan, and lie on each other as they are
    leader, follower = ("ADC", "DWI") if chosen == "ADC" else ("DWI", "ADC")
    together = leader in read and follower in read and _same_grid(read[leader], read[follower])
    for contrast, volume in read.items():
        if contrast == chosen or (together and contrast == follower):
            continue
        if preset.register == DIFFERING and how[contrast] == "its grid":
            continue
        try:
            placed[contrast] = register_rigid(read[chosen], volume)
            how[contrast] = "rigid registration"
        except ValueError as error:
            reason = f"cannot be registered: {error}"
            if preset.register == "rigid":
                raise SubjectError(subject.name, subject.images[contrast], reason) from error
            logger.warning("%s: %s %s; it lies where its header says", subject.name, contrast, reason)
    if together:
        placed[follower], how[follower] = placed[leader], how[leader]
    return placed, how


def _same_grid(first: Volume, second: Volume) -> bool:
    return first.shape == second.shape and np.allclose(first.affine, second.affine, atol=0.01)


def _mask(
    subject: Subject,
    read: Mapping[str, Volume],
    placed: Mapping[str, NDArray[np.float64]],
    chosen: str,
    *,
    preset: Preset,
    root: Path,
) -> NDArray[np.bool_]:
    """On the reference's voxels: the brain, if it is to be cut out, else the foreground."""
    reference = read[chosen]
    mask_path = mask_file(subject, preset=preset, root=root)
    if mask_path is not None:
        volume = _read(subject, mask_path, allow_constant=True)
        mask = resample(volume, reference.shape, reference.affine, order=0).array > 0
        if not mask.any():
            raise SubjectError(subject.name, mask_path, "the mask marks nothing in the reference's field of view")
        return mask
    method = {"zero": zero_background, "otsu": otsu_brain, "": foreground}[preset.brain_mask]
    try:
        mask = method(reference)
    except ValueError as error:
        raise SubjectError(subject.name, subject.images[chosen], str(error)) from error
    if preset.brain_mask == "otsu":
        # What is dark on one contrast, a tumour's core on T1 say, is bright on another: no brain may be lost.
        for contrast in (name for name in ANATOMICAL if name in read and name != chosen):
            with suppress(ValueError):  # one in which no brain is found adds none
                brain = Volume(otsu_brain(read[contrast]).astype(np.float32), read[contrast].affine)
                resampled = resample(brain, reference.shape, reference.affine, to_volume=placed[contrast], order=1)
                mask |= resampled.array > 0.5
    return mask


def _some_points(volume: Volume, mask: NDArray[np.bool_], *, about: int = 4000) -> NDArray[np.float64]:
    """World positions of voxels spread evenly over the mask."""
    voxels = np.flatnonzero(mask)
    voxels = voxels[:: max(1, len(voxels) // about)]
    return apply_affine(volume.affine, np.stack(np.unravel_index(voxels, mask.shape), axis=-1))


def _millilitres(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> float:
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
