"""MONAI transforms from a patient's scans to a network's input, and from its output to files on the patient's own grid.

{"subject": Subject} -> KeepResultsd -> PrepareSubjectd -> {"image", "subject", "prepared"} -> network
-> {..., "pred"} -> RestoreSubjectd -> SaveSyntheticd
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray

from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.data.gridded import Grid, Gridded
from monai_ext.data.montage import montage
from monai_ext.data.resampling import isotropic, resample
from monai_ext.data.volumes import NIFTI_SUFFIXES, Volume
from monai_ext.files import absolute, whole_file
from monai_ext.inference.engines import engine_of
from monai_ext.inference.maker import Maker
from monai_ext.inference.sidecar import (
    PreparedSubject,
    beside,
    says_the_same_now,
    sidecar,
    synthetic_file,
    write_sidecar,
)
from monai_ext.inference.subjects import AlreadyDone

logger = logging.getLogger(__name__)
VIEW_MM = 1.0  # the pixel of the quick look
LEAST_COVERAGE = 0.99  # of the head; a patient is told where less of it is made
GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "sform_code", "srow_x", "srow_y", "srow_z"),
)  # of a NIfTI header


class KeepResultsd(Transform):
    """Nothing that is there is written over unless `overwrite`: such a subject goes no further.

    Results that the same weights made of the same files are what would be made now: a run that was stopped is taken
    up where it was. Others are a SubjectError.

    Args:
        maker: who would synthesise.
        output_dir: where results go.
        overwrite: whether those that are there may be replaced.

    Raises:
        AlreadyDone: the result is there.
        SubjectError: other files are there.
    """

    def __init__(self, maker: Maker, *, output_dir: Path | str, overwrite: bool = False) -> None:
        self.maker, self.output_dir, self.overwrite = maker, absolute(Path(output_dir)), overwrite

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        subject: Subject = data["subject"]
        maker = self.maker.of(subject)
        files = [synthetic_file(self.output_dir, subject.name, target) for target in maker.target]
        existing = [] if self.overwrite else [path for path in files if path.exists()]
        for path in existing:
            if not says_the_same_now(path, subject, maker):
                reason = "is there already, of other weights, options or scans, and is kept"
                raise SubjectError(subject.name, path, f"{reason}: give another output_dir, or overwrite true")
        if existing == files:
            raise AlreadyDone(subject.name, files[0], "is there already, of the same weights and scans")
        return dict(data)


class PrepareSubjectd(Transform):
    """{"subject": Subject, "root": Path} -> {"image": (M, I, J, K) float32 in [0, 1], "subject": name, "prepared":
    PreparedSubject}.

    As `python -m monai_ext prepare` did to the training data with the maker's preset: read by contrast name, moved
    onto the reference if so asked, put on one RAS grid, scaled. But nothing is cut off: the grid holds all of the
    reference, and its voxels are of the size that the weights know. Only the sources are opened, and a contrast that
    the network takes but the subject lacks is zeros. Slices that a source does not reach are zeros where the network
    takes all of its sources, as training passes them over. `root` is where a preset's pattern of mask files begins.
    Where the maker's resolution is not the reference's own, the "prepared" one's grid is the finer one, and
    "output_size" is what the network is to write.

    Args:
        maker: whose network gets the image.

    Raises:
        SubjectError: a source that is lacking or cannot be read or placed.
    """

    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        subject: Subject = data["subject"]
        maker = self.maker.of(subject)
        lacking = [contrast for contrast in maker.sources if contrast not in subject.images]
        if lacking:
            has = ", ".join(subject.images)
            raise SubjectError(subject.name, None, f"lacks {' and '.join(lacking)}, has {has}")
        files = {contrast: subject.images[contrast] for contrast in maker.sources}
        subject = replace(subject, images=files, label=None)
        gridded = Gridded(subject, preset=maker.preset, root=data.get("root", Path()), whole=True)
        inputs, _ = maker.channels
        image = torch.zeros((len(inputs), *gridded.grid.shape))
        records = {}
        for contrast in files:
            scaled = gridded.image(contrast)
            image[inputs.index(contrast)] = torch.from_numpy(scaled.array)
            records[contrast] = scaled.record
        shown = torch.stack([image[inputs.index(contrast)].amax(dim=(0, 1)) > 0 for contrast in files])  # (sources, K)
        assert maker.task is not None
        computed = shown.all(0) if maker.task.every_source else shown.any(0)
        image[..., ~computed] = 0
        coverage = gridded.coverage(computed.numpy())
        if coverage < LEAST_COVERAGE:
            share = f"{coverage:.0%} of what {gridded.grid.contrast} shows"
            short = [name for name, seen in zip(files, shown, strict=True) if bool((shown.any(0) & ~seen).any())]
            why = f"what {' or '.join(short)} does not show" if short else "what no source shows"
            logger.warning("%s: the synthesis covers %s; %s is left black", subject.name, share, why)
        prepared = PreparedSubject(subject, gridded.grid, records, coverage, maker)
        item = {**data, "image": image, "subject": subject.name, "prepared": prepared}
        if self.maker.resolution.own:
            return item
        try:
            grid, item["output_size"] = self.maker.resolution.of(gridded.grid)
        except ValueError as error:
            raise SubjectError(subject.name, subject.images[gridded.grid.contrast], str(error)) from error
        return {**item, "prepared": replace(prepared, grid=grid)}


class RestoreSubjectd(Transform):
    """ "pred" (K, I, J, K) on the prepared grid -> a float32 MetaTensor on the reference image's own grid.

    Padding, size, spacing and orientation are undone. "prepared_pred" keeps the former.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        grid: Grid = data["prepared"].grid
        pred = data["pred"].detach().cpu().float()
        volumes = np.zeros((len(pred), *grid.stored_shape), np.float32)
        for volume, channel in zip(volumes, pred, strict=True):
            if channel.any():  # nobody asked for the others, and zeros that are not written take no memory
                volume[:] = grid.back(channel.numpy()).clip(0, 1)
        restored = MetaTensor(torch.from_numpy(volumes), affine=torch.from_numpy(grid.stored_affine))
        return {**data, "pred": restored, "prepared_pred": pred}


class SaveSyntheticd(Transform):
    """Write the restored "pred" as <output_dir>/<subject>/<TARGET>_synthetic.nii.gz and what it is as .json beside
    it.

    The NIfTI has float32 voxels and the reference's own geometry, bit for bit. A subject's files appear together once
    all are written.

    Args:
        output_dir: where results go.
        quick_look: whether a .png shows sources and synthesis in three planes.
        inferer: what the image went through, whose engine the .json names.
    """

    def __init__(self, *, output_dir: Path | str, quick_look: bool = False, inferer: object = None) -> None:
        self.output_dir, self.quick_look, self.inferer = absolute(Path(output_dir)), quick_look, inferer

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        prepared: PreparedSubject = data["prepared"]
        inputs, outputs = prepared.maker.channels
        shown = data["image"][[inputs.index(contrast) for contrast in prepared.maker.sources]]
        for target in prepared.maker.target:
            channel = outputs.index(target)
            array = np.asarray(data["pred"][channel])
            path = synthetic_file(self.output_dir, prepared.subject.name, target)
            path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as together:  # the last to enter is the first to get its name: the volume comes last
                volume, record = (together.enter_context(whole_file(file)) for file in (path, sidecar(path)))
                if self.quick_look:
                    picture = together.enter_context(whole_file(beside(path, ".png")))
                    self._picture(picture, shown, data["prepared_pred"][channel], prepared, target)
                write_sidecar(record, prepared, target, engine=engine_of(self.inferer))
                nib.save(_like(prepared, array, descrip=prepared.maker.descrip(target)), volume)
        return dict(data)

    def _picture(
        self, path: Path, image: torch.Tensor, pred: torch.Tensor, prepared: PreparedSubject, target: str
    ) -> None:
        """A row an image, axial, sagittal and coronal through the middle of what the sources show."""
        grid = prepared.grid
        names = [*prepared.maker.sources, f"SYNTHETIC {target}, not acquired"]
        synthesis = resample(Volume(pred.numpy(), grid.affine_of(pred.shape)), grid.shape, grid.affine).array
        arrays = [*(channel.cpu().numpy() for channel in image), synthesis]
        volumes = [isotropic(Volume(array, grid.affine), VIEW_MM).array for array in arrays]
        filled = np.maximum.reduce(volumes[:-1]) > 0
        i, j, k = (round(float(np.flatnonzero(filled.any(axis=tuple({0, 1, 2} - {n}))).mean())) for n in range(3))
        rows = [[volume[:, :, k].T[::-1], volume[i].T[::-1], volume[:, j].T[::-1]] for volume in volumes]
        montage(rows, titles=[[name, "", ""] for name in names], path=path, white=1.0)


def _like(prepared: PreparedSubject, array: NDArray[np.float32], *, descrip: str) -> nib.Nifti1Image:
    """`array` in the place of the reference image; on the grid of a NIfTI, with the very numbers of its header."""
    path = prepared.subject.images[prepared.grid.contrast]
    reference: Any = nib.load(path) if path.name.lower().endswith(NIFTI_SUFFIXES) else None
    if reference is not None and reference.shape[:3] == array.shape:
        kind = nib.Nifti2Image if isinstance(reference, nib.Nifti2Image) else nib.Nifti1Image
        image = kind(array, None, dtype=np.float32)  # an affine would be written over what follows
        for key in GEOMETRY:
            image.header[key] = reference.header[key]
    else:  # not a NIfTI, or not of its resolution
        image = nib.Nifti1Image(array, prepared.grid.stored_affine, dtype=np.float32)
        image.set_qform(prepared.grid.stored_affine, code="scanner")
        image.set_sform(prepared.grid.stored_affine, code="scanner")
        image.header.set_xyzt_units("mm")
    image.header["descrip"] = descrip.encode()
    image.header["cal_min"], image.header["cal_max"] = 0, 1  # what viewers show as black and white
    return image
