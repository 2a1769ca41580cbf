"""A run folder: what one evaluation leaves behind, for the report and for any spreadsheet; whole or not at all.

run.json      what was evaluated on what, and by which protocol
subjects.csv  a row a subject, perturbation, level, target and region
slices.csv    a row an evaluated slice
volumes/<subject>/<CONTRAST>.nii.gz, <TARGET>_truth.nii.gz, <TARGET>_synthetic.nii.gz and its .json
"""

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.prepared import SLOPE
from monai_ext.data.volumes import Volume, write_volume
from monai_ext.evaluation.metrics import FIGURES
from monai_ext.evaluation.protocol import REGIONS

KEY = ("subject", "dataset", "perturbation", "contrast", "level", "target")
SUBJECT_COLUMNS = (*KEY, "region", *FIGURES, "stripes")
SLICE_COLUMNS = (*KEY, "slice", *FIGURES)
MATRIX = "matrix.csv"  # of a method that takes any contrasts: a row a dataset, sources, target and region
MATRIX_COLUMNS = ("dataset", "sources", "target", "region", "subjects", "psnr", "psnr_sd", "ssim", "ssim_sd")
CASES = "matrix_cases.csv"  # what its means are of: a row a subject, sources, target and region
MEASURED = ("psnr", "ssim")
CASE_COLUMNS = ("subject", "dataset", "sources", "target", "region", *MEASURED)
RESULTS = ("volumes", "slices.csv", "subjects.csv", "run.json")  # the last one says that the run is whole

Row = dict[str, Any]


@contextmanager
def whole_run(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a place to write to: what is there becomes the folder's results if all goes well, and is removed if not.

    Nothing else in the folder is touched but the matrix, which was of the results before.

    Args:
        folder: the run folder.
        overwrite: whether results that are there already may be replaced.

    Yields:
        An empty folder; the block must put all of RESULTS into it.

    Raises:
        ValueError: there are some, and they may not.
        FileNotFoundError: the block left one out; what was there stays.
    """
    existing = [name for name in RESULTS if (folder / name).exists()]
    if existing and not overwrite:
        raise ValueError(f"{folder} holds results already ({', '.join(existing)}): choose another, or set overwrite")
    partial, existed = folder / ".evaluating", folder.exists()
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill
    partial.mkdir(parents=True)
    try:
        yield partial
        for name in RESULTS:
            (partial / name).stat()
        for name in reversed(RESULTS):  # run.json first: without it no reader takes the rest for a run
            old = folder / name
            if old.is_dir():
                shutil.rmtree(old)
            old.unlink(missing_ok=True)
        for name in (MATRIX, CASES):  # which were of what is replaced
            (folder / name).unlink(missing_ok=True)
        for name in RESULTS:
            (partial / name).rename(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write rows as CSV; a figure without meaning, or one that a region does not have, is an empty cell.

    Args:
        path: of the CSV.
        columns: which, in this order.
        rows: by the columns' names.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.7g}"
    return "" if value is None else str(value)


def pack(image: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Store [0, 1] in the 16 bits that prepared images have.

    Args:
        image: of any shape; what is below 0 or above 1 is clipped.

    Returns:
        The same shape, in steps of 1 / 65535.
    """
    return np.rint(np.clip(image, 0, 1) / SLOPE).astype(np.uint16)


def write_image(path: Path, stored: NDArray[np.uint16], affine: NDArray[np.float64], *, description: str = "") -> None:
    """Write packed voxels as a NIfTI that viewers show as [0, 1].

    Args:
        path: of the NIfTI.
        stored: (I, J, K), of `pack`.
        affine: 4 x 4, voxel index -> world in mm.
        description: for the header.
    """
    volume = Volume(stored * np.float32(SLOPE), affine)
    write_volume(path, volume, dtype=np.uint16, slope=SLOPE, description=description)


def summary(rows: Sequence[Row], perturbations: Sequence[Mapping[str, Any]], *, region: str = "brain") -> str:
    """Say the mean and standard deviation over the subjects by region, and what each perturbation does to the PSNR.

    Args:
        rows: of subjects.csv.
        perturbations: as the protocol describes them.
        region: whose PSNR that is.

    Returns:
        Lines to print.
    """
    lines = []
    targets = list(dict.fromkeys(row["target"] for row in rows))
    for target in targets:
        ours = [row for row in rows if row["target"] == target]
        plain = [row for row in ours if row["perturbation"] == "none"]
        subjects = len({row["subject"] for row in plain})
        lines.append(f"{target}, {subjects} subject{'s' * (subjects != 1)}, mean ± standard deviation")
        lines.append("  region" + "".join(f"{name:>18}" for name in (*FIGURES, "stripes")))
        for each in REGIONS:
            in_region = [row for row in plain if row["region"] == each]
            cells = (_mean_sd([row.get(name, np.nan) for row in in_region], name) for name in (*FIGURES, "stripes"))
            lines.append(f"  {each:6}" + "".join(f"{cell:>18}" for cell in cells))
        measured = [row for row in ours if row["region"] == region]
        for entry in perturbations:
            if entry["kind"] == "none":
                continue
            curve = []
            for level in entry["levels"]:
                key = (entry["kind"], entry["contrast"], level)
                psnrs = [row["psnr"] for row in measured if (row["perturbation"], row["contrast"], row["level"]) == key]
                if psnrs:
                    curve.append(f"{level:g}: {np.mean(psnrs):.2f}")
            lines.append(f"  {region} psnr, {entry['contrast']} {entry['kind']} [{entry['unit']}]  {'  '.join(curve)}")
    return "\n".join(lines)


def _mean_sd(values: Sequence[float], name: str) -> str:
    measured = [value for value in values if not np.isnan(value)]
    if not measured:
        return "-"
    digits = 2 if name == "psnr" else 4
    spread = f" ± {np.std(measured, ddof=1):.{digits}f}" if len(measured) > 1 else ""
    return f"{np.mean(measured):.{digits}f}{spread}"
