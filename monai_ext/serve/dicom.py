"""python -m monai_ext dicom: a DICOM study in, the contrast that it lacks out, as a new series of the same study."""

import argparse
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from monai_ext.files import absolute

if TYPE_CHECKING:
    from monai_ext.inference.checks import Findings
    from monai_ext.synthesis.bundle import BundleSynthesiser

UID_ROOT = re.compile(r"[0-2](\.(0|[1-9]\d*))+")
LONGEST_ROOT = 40  # of the 64 characters of a UID: the rest tells one from another


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `dicom` to a parser.

    Args:
        parser: of the command; it is told to call `run`.
    """
    add = parser.add_argument
    add("--study", type=Path, required=True, metavar="DIR", help="a folder with the DICOM files of one study")
    add("--bundle", type=Path, metavar="DIR", help="a bundle's folder, or its archive .ts; else what suits the target")
    add("--weights", type=Path, metavar="FILE", help="its weights, models/model.pt of the bundle unless given")
    add("--target", metavar="CONTRAST", help="what to synthesise; without it, what the weights make")
    add("--site", metavar="NAME", help="whose scanner it was, where the weights tell sites apart")
    add("--out", type=Path, required=True, metavar="DIR", help="each new series becomes a folder here")
    add("--series", nargs="+", default=[], metavar="CONTRAST=SERIES", help="which: a number, a description or a UID")
    add("--reference", metavar="CONTRAST", help="the source whose slices the new series has")
    add("--register", choices=("none", "rigid"), help="registered is what differs in grid or frame, unless said here")
    add(
        "--engine", metavar="NAME", help="torch, openvino or onnxruntime, on a CPU; auto, unless said here: the fastest"
    )
    add("--uid-root", metavar="ROOT", help="of your organisation, for the new UIDs; without it they are UUIDs")
    add("--reproducible", action="store_true", help="the same study and weights give the same files, UIDs and all")
    add("--trust-names", action="store_true", help="go on where a series does not look like what it is taken for")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Synthesise as the options say, and print the new series' folders.

    Args:
        args: what `configure`'s parser read.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: an option that may not be, or what `synthesise` refuses.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise ValueError("DICOM is read with pydicom, which is not here: pip install 'monai-ext[dicom]'")
    check_uid_root(args.uid_root)

    from monai_ext.runtime import checked_engine
    from monai_ext.synthesis.study import check_free, named_series, sources_in, synthesised, write_all

    study, bundle, weights = absolute(args.study), args.bundle, args.weights
    series, target, trust = named_series(args.series), args.target, args.trust_names
    findings = None
    engine = None if args.engine is None else checked_engine(args.engine)
    if bundle is None:
        bundle, weights, findings = suitable(
            study, target, weights=weights, site=args.site, series=series, trust_names=trust
        )
    synthesiser = ready(bundle, weights=weights, target=target)
    check_free((absolute(args.out) / f"SYNTHETIC_{name}" for name in synthesiser.targets), option="--out")
    sources, number = sources_in(study, synthesiser, target=target, series=series)
    options = {"register": args.register, "reference": args.reference, "site": args.site, "engine": engine}
    naming = {"uid_root": args.uid_root, "reproducible": args.reproducible}
    with synthesised(synthesiser, sources, trust_names=trust, findings=findings, **options) as results:
        for folder in write_all(results, sources, absolute(args.out), number=number, **naming):
            print(folder)
    return 0


def check_uid_root(root: str | None) -> None:
    """Refuse what no organisation has, or what leaves no room for telling UIDs apart.

    Args:
        root: numbers with dots, or None.

    Raises:
        ValueError: it is not of this form, or is too long.
    """
    if root and (not isinstance(root, str) or not UID_ROOT.fullmatch(root) or len(root) > LONGEST_ROOT):
        raise ValueError(f"the UID root must be numbers with dots, at most {LONGEST_ROOT} long, got {root!r}")


def suitable(
    study: Path,
    target: str | None,
    *,
    weights: Path | None,
    site: str | None,
    series: Mapping[str, str],
    trust_names: bool = False,
) -> tuple[Path, Path, "Findings"]:
    """Choose, of what is installed, what makes a contrast of those that a study shows, with their skull or without.

    Args:
        study: a folder with the DICOM files.
        target: the contrast, by any of its names.
        weights: their file, whose JSON names the bundle; None to choose of all that are installed.
        site: one that the weights must know; None for any.
        series: of `named_series`; its contrasts count as shown.
        trust_names: go on where a series does not look like what it is taken for.

    Returns:
        The bundle's folder, the weights' file, and what was seen of the series.

    Raises:
        ValueError: no target is named, none of them can, or a series is not what it is taken for.
    """
    from monai_ext.data.dicom import read_study
    from monai_ext.modalities import canonical
    from monai_ext.synthesis.installed import choose_method, methods_to_choose_from
    from monai_ext.synthesis.study import seen_in, shown_in

    if target is None:
        raise ValueError("say with --target what is missing, or with --bundle what is to make it")
    methods = methods_to_choose_from(weights=weights, site=site)
    scans, target = read_study(study), canonical(target)
    available = sorted({*shown_in(scans, series)} - {target})
    sources = choose_method(methods, target, available).uses(target, available)
    findings = seen_in(scans, sources, series, trust_names=trust_names)
    method = choose_method(methods, target, available, skull=findings.skull)
    return method.bundle, method.weights, findings


def ready(bundle: Path, *, weights: Path | None = None, target: str | None = None) -> "BundleSynthesiser":
    """Build a bundle's folder or archive for `target`, or for what its weights make.

    Args:
        bundle: the folder or archive.
        weights: their file; the bundle's own unless given.
        target: what to synthesise.

    Returns:
        What synthesises, its network built.

    Raises:
        ValueError: there are no weights, or they do not make it.
    """
    from monai_ext.modalities import canonical
    from monai_ext.synthesis.bundle import BundleSynthesiser

    synthesiser = BundleSynthesiser(bundle, weights=weights)
    if target is not None and (canonical(target),) != synthesiser.targets:
        synthesiser = BundleSynthesiser(bundle, weights=weights, target=canonical(target))
    return synthesiser
