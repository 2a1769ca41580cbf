"""Prepared subjects as whole volumes, for evaluation, with the slices that training's rule would choose."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from monai_ext.data.datalist import Subject, SubjectError, report_failures
from monai_ext.data.prepared import SIDECAR
from monai_ext.data.slice_files import read_slices
from monai_ext.data.slices import SliceDataset, faults_of
from monai_ext.files import read_json


class PreparedVolumes(SliceDataset):
    """Prepared subjects as whole volumes, one item a subject, read when asked for.

    An item has "image" (M, I, J, K) and "target" (N, I, J, K), float32 in [0, 1]; "mask" (1, I, J, K), boolean;
    "affine"; "slices", the numbers of those to evaluate; "available", as of `SliceDataset`, whose rules hold;
    "subject", a person at a visit; "person"; and "dataset". Subjects that cannot serve are in `failures`.

    Args:
        data: prepared subjects, each with its mask.
        sources, target: contrasts, the channels of "image" and of "target".
        slices: which are evaluated, a rule as of `SliceDataset`.
        allow_missing: zeros for a contrast that a subject lacks.

    Raises:
        ValueError: no subject can serve, or what `SliceDataset` refuses.
    """

    def __init__(
        self,
        data: Sequence[Subject],
        *,
        sources: Sequence[str],
        target: Sequence[str],
        slices: str | Sequence[Any] = "nonempty",
        allow_missing: bool = False,
    ) -> None:
        self.failures: list[SubjectError] = []
        options: dict[str, Any] = {"slices": slices, "allow_missing": allow_missing, "failures": self.failures}
        try:
            super().__init__(data, sources=sources, target=target, **options)
        except ValueError:
            report_failures(self.failures, total=len(data), what="used")
            raise

    @property
    def protocol(self) -> dict[str, Any]:
        """What a run's protocol says of the data: slices, and how brains were cut out, "none" of what is as scanned."""
        masks = sorted({_brain_mask(row.sources, row.targets) for row in self._rows})
        return {"slices": self.rule if self.count is None else [self.rule, self.count], "brain_mask": masks}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no draw takes a whole subject
        row = self._rows[index]
        first = Path(next(path for path in (*row.sources, *row.targets) if path is not None))
        mask = first.parent / "mask.nii"
        if not mask.exists():
            raise SubjectError(row.name, mask.parent, "has no mask.nii, and figures of the brain need one; prepare it")

        def stacked(paths: Sequence[str | None]) -> Tensor:
            # slices lie apart in memory, since slices are what networks take
            images = np.zeros((len(paths), row.depth, *row.kind.size), dtype=np.float32)
            for image, path in zip(images, paths, strict=True):
                if path is not None:
                    image[...] = _whole(row.name, Path(path), row.depth)
            return torch.from_numpy(images).permute(0, 2, 3, 1)

        with faults_of(row.name, first):
            affine = np.asarray(nib.Nifti1Image.from_filename(first).affine, dtype=np.float64)
        return {
            "image": stacked(row.sources),
            "target": stacked(row.targets),
            "mask": torch.from_numpy(_whole(row.name, mask, row.depth) > 0).permute(1, 2, 0)[None],
            "affine": affine,
            "slices": self._slice_of[self._row_of == index],
            "available": torch.tensor(row.kind.available),
            "subject": row.name,
            "person": row.person,
            "dataset": row.kind.dataset,
        }


def _brain_mask(*files: Sequence[str | None]) -> str:
    """How the brain was cut out of a prepared subject, by the sidecar beside its files."""
    first = next(path for paths in files for path in paths if path is not None)
    try:
        return str(read_json(Path(first).parent / SIDECAR)["parameters"]["brain_mask"]) or "none"
    except (OSError, ValueError, KeyError, TypeError):
        return "not known"


def _whole(subject: str, path: Path, depth: int) -> np.ndarray:
    """All slices (K, I, J)"""
    with faults_of(subject, path):
        return read_slices(path, 0, depth)
