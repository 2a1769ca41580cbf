"""The heat map of every task: a row a dataset and its sources, a column a target, for runs that have a matrix.csv."""

import csv
from collections.abc import Sequence
from html import escape

from monai_ext.evaluation.run_folder import MATRIX, MATRIX_COLUMNS, MEASURED
from monai_ext.report.runs import Run
from monai_ext.report.tables import LOOKS, number, shades

REGION_WORDS = {"slice": "slices' mean", "volume": "volume", "brain": "brain"}


def task_maps(runs: Sequence[Run]) -> str:
    """PSNR and SSIM of each run's tasks; nothing where no run has any."""
    parts = []
    for run in runs:
        rows = matrix_of(run)
        if rows:
            parts += [f"<h3>{escape(run.label)}</h3>" if len(runs) > 1 else ""]
            parts += [_map(rows, metric) for metric in MEASURED]
    return "".join(parts)


def matrix_of(run: Run) -> list[dict[str, str]]:
    """Read a run's matrix of tasks.

    Args:
        run: that may have one.

    Returns:
        Its rows of the region that the run's protocol measures; none where there is no matrix.

    Raises:
        ValueError: it has other columns.
    """
    path = run.folder / MATRIX
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != MATRIX_COLUMNS:
            raise ValueError(f"{path} must have the columns {', '.join(MATRIX_COLUMNS)}: evaluate again")
        region = region_of(run)
        return [row for row in reader if row["region"] == region]


def region_of(run: Run) -> str:
    """Tell what a run's protocol measures.

    Args:
        run: any.

    Returns:
        One of REGIONS.
    """
    return str(run.about.get("protocol", {}).get("region", "brain"))


def _map(rows: Sequence[dict[str, str]], metric: str) -> str:
    """The deeper the colour, the better among the ways to make this target in this dataset."""
    look = LOOKS[metric]
    where = REGION_WORDS[rows[0]["region"]]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    share: dict[tuple[str, str, str], tuple[float, float]] = {}
    for dataset, target in dict.fromkeys((row["dataset"], row["target"]) for row in rows):
        ours = [row for row in rows if (row["dataset"], row["target"]) == (dataset, target)]
        means = [float(row[metric] or "nan") for row in ours]
        for row, mean, deep in zip(ours, means, shades(means, higher=look.higher), strict=True):
            share[dataset, row["sources"], target] = mean, deep
    lines = []
    for dataset, sources in dict.fromkeys((row["dataset"], row["sources"]) for row in rows):
        cells = []
        for target in targets:
            mean, deep = share.get((dataset, sources, target), (float("nan"), 0.0))
            measured = (dataset, sources, target) in share
            cells.append(f'<td style="--share:{deep:.0f}%">{number(mean, look.digits) if measured else ""}</td>')
        name = f"{escape(dataset)}<span class=ci>{escape(sources.replace('+', ', '))}</span>"
        lines.append(f"<tr><th scope=row>{name}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th scope=col>{escape(target)}</th>" for target in targets)
    caption = (
        f"{look.heading} in the {where}, by dataset and sources (rows) and target (columns); the deeper the colour, "
        "the better among a dataset's ways to make that target"
    )
    return (
        f'<div class=scroll><table class="heat"><caption>{caption}</caption><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
