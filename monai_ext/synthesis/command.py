"""monai-ext synthesise SCANS --target CONTRAST -o OUT: from a patient's scans to the missing contrast."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

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
    add("--register", choices=("none", "rigid"), help="registered is what differs in grid or frame, unless said here")
    add("--brain-mask", choices=("none", "zero", "otsu"), help="how the brain is cut out; as the weights were trained")
    add("--series", nargs="+", default=[], metavar="CONTRAST=SERIES", help="of a DICOM study: T1=5, by number or name")
    add("--trust-names", action="store_true", help="go on where a scan does not look like what its name says")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1; a GPU where there is one")
    add(
        "--engine", metavar="NAME", help="torch, openvino or onnxruntime, on a CPU; auto, unless said here: the fastest"
    )
    add("--threads", type=int, metavar="N", help="how many the CPU uses; all unless said here")
    add("--jobs", type=int, default=1, metavar="N", help="how many subjects at once, which share the threads")
    add("--overwrite", action="store_true", help="make anew what is there already")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Recognise the scans, choose the methods, synthesise; the exit status is 1 if some subject could not be done.

    Args:
        args: of the parser that `configure` filled.

    Returns:
        The exit status: 0, or 1 if some subject could not be done.

    Raises:
        ValueError: an option or the scans cannot be as they are; the message says what to type.
    """
    from monai_ext.files import absolute
    from monai_ext.synthesis.inputs import Study, recognised

    for option, count in (("--threads", args.threads), ("--jobs", args.jobs)):
        if count is not None and count < 1:
            raise ValueError(f"{option} must be at least 1, got {count}")
    targets = _targets(args.target)
    scans = recognised(args.scans)
    if args.series and not isinstance(scans, Study):
        raise ValueError("--series is for a DICOM study; say which file is what as T1=FILE")
    if isinstance(scans, Study) and importlib.util.find_spec("pydicom") is None:
        raise ValueError("DICOM is read with pydicom, which is not here: pip install 'monai-ext[dicom]'")

    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    options: dict[str, Any] = {
        "method": args.method,
        "weights": args.weights,
        "site": args.site,
        "register": args.register,
        "brain_mask": args.brain_mask,
        "device": args.device,
        "engine": args.engine,
        "overwrite": args.overwrite,
        "quick_look": True,
        "trust_names": args.trust_names,
    }
    out = absolute(args.out)
    if not isinstance(scans, Study):
        from monai_ext.synthesis.batch import synthesise_all

        return synthesise_all(options, scans, targets, out, jobs=args.jobs)

    from monai_ext.synthesis.study import named_series, synthesise_study
    from monai_ext.synthesis.synthesiser import Synthesiser

    synthesiser, series = Synthesiser(**options), named_series(args.series)
    for path in synthesise_study(synthesiser, scans.folder, targets, out, series=series):
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
