"""What the scripts share that measure something of each real case in a folder."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from likeness import Case
from real import read_case

from monai_ext.data.datalist import SubjectError, report_failures
from monai_ext.data.layouts import index
from monai_ext.files import absolute


def parser_of(description: str) -> argparse.ArgumentParser:
    """Where the cases are, and which files of them are left out."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="the folder with a folder a person")
    parser.add_argument("--out", type=Path, required=True, help="where prepared cases are kept")
    parser.add_argument("--spacing", type=float, default=2.0, help="of the cases' voxels, in mm (default: 2)")
    parser.add_argument("--exclude", nargs="+", action="extend", default=[], metavar="PATTERN", help="as of index")
    return parser


def tell_each(
    args: argparse.Namespace, told: Callable[[Case], str], *, wanted: Callable[[Collection[str]], bool]
) -> int:
    """Print a line a case whose contrasts are `wanted`; those that cannot be read are named, and make the status 1."""
    found = index(args.root, exclude=args.exclude)
    failures = list(found.failures)
    for subject in found.subjects:
        try:
            if wanted(set(subject.images)):
                case = read_case(subject, absolute(args.out), root=args.root, spacing=args.spacing)
                print(f"{case.name}: {told(case)}", flush=True)
        except SubjectError as fault:
            failures.append(fault)
    return report_failures(failures, total=len(found.subjects) + len(found.failures), what="looked at")
