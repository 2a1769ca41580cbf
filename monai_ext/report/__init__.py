"""python -m monai_ext report: one HTML page of one or more evaluations, which opens anywhere and needs nothing else."""

import argparse
from pathlib import Path

from monai_ext.files import absolute, whole_file
from monai_ext.report.page import make_page
from monai_ext.report.runs import compare, read_run


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="run folders that evaluations wrote")
    add("--out", type=Path, required=True, metavar="DIR", help="where to write index.html; an older one is replaced")
    add("--subjects", nargs="+", metavar="NAME", help="show these, instead of each method's worst, median and best")
    add(
        "--allow-differences", action="store_true",
        help="compare runs on different data or by different protocols; the page says what differs",
    )  # fmt: skip
    add("--no-viewer", action="store_true", help="leave out the 3D viewer: a small page")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, compare, draw and write; every fault is found before anything is written."""
    runs = [read_run(absolute(folder)) for folder in args.runs]
    comparison = compare(runs, allow_differences=args.allow_differences)
    for line in comparison.remarks:
        print(line)
    page = make_page(comparison, chosen=args.subjects, viewer=not args.no_viewer)
    path = absolute(args.out) / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
    print(f"the report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
