"""monai-ext synthesise SCANS --target CONTRAST -o OUT: from a patient's scans to the missing contrast."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_ext.inference.subjects import Cases
    from monai_ext.synthesis.synthesiser import Synthesiser

MISSING = "missing"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `synthesise`.

    Args:
        parser: of the command.
    """
    add = parser.add_argument
    add("scans", nargs="+", metavar="SCANS", help="image files (their contrast by name, or as T1=FILE); or one folder "
        "of subject folders, BIDS tree, datalist, or DICOM study")  # fmt: skip
    add("--target", required=True, metavar="CONTRAST", help="FLAIR, or several as FLAIR,T1C; missing: all that can be")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="each subject's results become a folder here")
    add("--method", metavar="NAME", help="which of those that `monai-ext models` lists; without it, what suits best")
    add("--weights", type=Path, metavar="FILE", help="in place of the installed ones")
    add("--site", metavar="NAME", help="whose scanners the images are of, where the weights tell sites apart")
    add("--register", choices=("none", "rigid"), help="scans are registered where their grids differ, unless said here")
    add("--brain-mask", choices=("none", "zero", "otsu"), help="how the brain is cut out; as the weights were trained")
    add("--series", nargs="+", default=[], metavar="CONTRAST=SERIES", help="of a DICOM study: T1=5, by number or name")
    add("--trust-names", action="store_true", help="go on where a scan does not look like what its name says")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1; a GPU where there is one")
    add("--threads", type=int, metavar="N", help="how many the CPU uses; all unless said here")
    add("--overwrite", action="store_true", help="make anew what is there already")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Recognise the scans, choose the methods, synthesise; the exit status is 1 if some subject could not be done.

    Args:
        args: of the parser that `configure` filled.

    Raises:
        ValueError: an option or the scans cannot be as they are; the message says what to type.
    """
    from monai_ext.files import absolute
    from monai_ext.synthesis.inputs import Study, recognised

    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    targets = _targets(args.target)
    scans = recognised(args.scans)
    if args.series and not isinstance(scans, Study):
        raise ValueError("--series is for a DICOM study; say which file is what as T1=FILE")
    if isinstance(scans, Study) and importlib.util.find_spec("pydicom") is None:
        raise ValueError("DICOM is read with pydicom, which is not here: pip install 'monai-ext[dicom]'")

    import torch

    from monai_ext.synthesis.synthesiser import Synthesiser

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    synthesiser = Synthesiser(
        method=args.method,
        weights=args.weights,
        site=args.site,
        register=args.register,
        brain_mask=args.brain_mask,
        device=args.device,
        overwrite=args.overwrite,
        quick_look=True,
        trust_names=args.trust_names,
    )
    out = absolute(args.out)
    if not isinstance(scans, Study):
        return _subjects(synthesiser, scans, targets, out)

    from monai_ext.synthesis.study import named_series, synthesise_study

    series = named_series(args.series)
    for path in synthesise_study(synthesiser, scans.folder, targets, out, series=series, register=args.register):
        print(path)
    return 0


def _targets(text: str) -> list[str] | None:
    from monai_ext.modalities import canonical

    if text == MISSING:
        return None
    targets = [canonical(name) for name in text.split(",")]
    twice = [name for name in targets if targets.count(name) > 1]
    if twice:
        raise ValueError(f"--target names {twice[0]} twice: {text}")
    return targets


def _subjects(synthesiser: "Synthesiser", cases: "Cases", targets: Sequence[str] | None, out: Path) -> int:
    """One subject after another; a fault is one subject's, and the others are done."""
    from tqdm import tqdm

    from monai_ext.data.datalist import SubjectError, report_failures
    from monai_ext.inference.subjects import subject_fault

    failures = list(cases.failures)
    total = len(cases.subjects) + len(failures)
    with tqdm(cases.subjects, desc="subjects", unit="subject", disable=total == 1) as bar:
        for subject in bar:
            there = [name for name in targets or () if name in subject.images]
            if total > 1 and there and len(there) == len(targets or ()):
                bar.write(f"{subject.name}: has {' and '.join(there)}, so there is nothing to make")
                continue
            try:
                before = {path: path.stat().st_mtime_ns for path in (out / subject.name).glob("*.nii.gz")}
                made = synthesiser.write(subject.images, targets, out, subject=subject.name)
            except (ValueError, OSError, RuntimeError) as error:
                if total == 1:
                    raise
                own = type(error) is ValueError  # its message says all
                fault = SubjectError(subject.name, None, str(error)) if own else subject_fault(error, subject)
                failures.append(fault)
                continue
            for path in made.values():
                kept = before.get(path) == path.stat().st_mtime_ns
                bar.write(said(path) + (" (was there, kept)" if kept else ""))
            if not made:
                bar.write(f"{subject.name}: has every contrast that can be made")
    sys.stdout.flush()
    return report_failures(failures, total=total, what="synthesised")


def said(path: Path) -> str:
    """Say in a line what was made, by whom, of what and where it is; from the JSON beside it.

    Args:
        path: of the NIfTI.
    """
    from monai_ext.files import read_json
    from monai_ext.synthesis.bundle import sidecar

    record = read_json(sidecar(path))
    sources = record["sources"].items()
    moved = [f"{name} {source['moved_mm']:.1f} mm" for name, source in sources if "registration" in source["placed_by"]]
    how = f", registered to {record['reference']}: {', '.join(moved)}" if moved else ""
    return (
        f"{record['subject']}: {record['target']} by {record['bundle']} {record['version']} "
        f"from {' and '.join(record['sources'])}{how}: {path}"
    )
