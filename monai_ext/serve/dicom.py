"""python -m monai_ext dicom: a DICOM study in, the contrast that it lacks out, as a new series of the same study."""

import argparse
import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ext.files import absolute
from monai_ext.modalities import canonical

if TYPE_CHECKING:
    from monai_ext.data.dicom import Series
    from monai_ext.serve.synthesis import BundleSynthesiser

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
    add("--register", choices=("none", "rigid"), help="whether the sources are moved onto each other first")
    add("--uid-root", metavar="ROOT", help="of your organisation, for the new UIDs; without it they are UUIDs")
    add("--reproducible", action="store_true", help="the same study and weights give the same files, UIDs and all")
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
    study, bundle, weights = absolute(args.study), args.bundle, args.weights
    if bundle is None:
        bundle, weights = suitable(
            study, args.target, weights=weights, site=args.site, series=named_series(args.series)
        )
    for folder in synthesise_study(
        study,
        bundle,
        absolute(args.out),
        weights=weights,
        target=args.target,
        site=args.site,
        series=named_series(args.series),
        register=args.register,
        reference=args.reference,
        uid_root=args.uid_root,
        reproducible=args.reproducible,
    ):
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


def named_series(pairs: list[str]) -> dict[str, str]:
    """Read the command's pairs: ["T1=5"] -> {"T1": "5"}.

    Args:
        pairs: CONTRAST=SERIES each.

    Returns:
        contrast -> series, as it was typed.

    Raises:
        ValueError: a word is no pair, its contrast is not known or named twice.
    """
    wrong = [pair for pair in pairs if not all(pair.partition("="))]
    if wrong:
        raise ValueError(f"--series takes CONTRAST=SERIES such as T1=5, got {wrong[0]!r}")
    named: dict[str, str] = {}
    for given_as, _, series in (pair.partition("=") for pair in pairs):
        contrast = canonical(given_as)
        if contrast in named:
            raise ValueError(f"--series names {contrast} twice: {named[contrast]} and {series}; give one")
        named[contrast] = series
    return named


def suitable(
    study: Path, target: str | None, *, weights: Path | None, site: str | None, series: Mapping[str, str]
) -> tuple[Path, Path]:
    """Choose, of what is installed, what makes a contrast of those that a study shows.

    Args:
        study: a folder with the DICOM files.
        target: the contrast, by any of its names.
        weights: their file, whose JSON names the bundle; None to choose of all that are installed.
        site: one that the weights must know; None for any.
        series: of `named_series`; its contrasts count as shown.

    Returns:
        The bundle's folder and the weights' file.

    Raises:
        ValueError: no target is named, or none of them can.
    """
    from monai_ext.data.dicom import contrast_of, read_study
    from monai_ext.installed import choose_method, methods_to_choose_from

    if target is None:
        raise ValueError("say with --target what is missing, or with --bundle what is to make it")
    methods = methods_to_choose_from(weights=weights, site=site)
    shown = {*map(canonical, series), *filter(None, (contrast_of(one.headers[0]) for one in read_study(study)))}
    method = choose_method(methods, canonical(target), sorted(shown - {canonical(target)}))
    return method.bundle, method.weights


def synthesise_study(
    study: Path,
    bundle: Path,
    out: Path,
    *,
    weights: Path | None = None,
    target: str | None = None,
    site: str | None = None,
    series: Mapping[str, str] | None = None,
    register: str | None = None,
    reference: str | None = None,
    uid_root: str | None = None,
    reproducible: bool = False,
) -> list[Path]:
    """Make the contrast that a DICOM study lacks, as a new series of it, whole or not at all.

    Args:
        study: a folder with the DICOM files.
        bundle: a bundle's folder or archive.
        out: where each new series becomes a folder.
        weights: their file; the bundle's own unless given.
        target: what to synthesise; what the weights make unless given.
        site: whose scanner it was, where the weights tell sites apart; None for none of them.
        series: contrast -> number, description or UID, where the headers do not tell.
        register: "none" or "rigid": whether the sources are moved onto each other first.
        reference: the source whose slices the new series has.
        uid_root: of the new UIDs; None makes them UUIDs.
        reproducible: the same study and weights give the same files.

    Returns:
        The folders of the new series.

    Raises:
        ValueError: the study, the bundle or an option cannot serve; a folder that is there already is kept.
    """
    synthesiser = ready(bundle, weights=weights, target=target)
    sources, number = sources_in(study, synthesiser, target=target, series=series, register=register)
    with synthesised(synthesiser, sources, register=register, reference=reference, site=site) as results:
        return write_all(results, sources, out, number=number, uid_root=uid_root, reproducible=reproducible)


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
    from monai_ext.serve.synthesis import BundleSynthesiser

    synthesiser = BundleSynthesiser(bundle, weights=weights)
    if target is not None and (canonical(target),) != synthesiser.targets:
        synthesiser = BundleSynthesiser(bundle, weights=weights, target=canonical(target))
    return synthesiser


def sources_in(
    study: Path,
    synthesiser: "BundleSynthesiser",
    *,
    target: str | None = None,
    series: Mapping[str, str] | None = None,
    register: str | None = None,
) -> "tuple[dict[str, Series], int]":
    """Find the series of each contrast that the bundle starts from, its slices in order.

    Args:
        study: a folder with the DICOM files.
        synthesiser: whose sources are looked for.
        target: what to synthesise.
        series: contrast -> number, description or UID.
        register: whether the sources are moved onto each other.

    Returns:
        contrast -> series, and the study's highest series number.

    Raises:
        ValueError: a contrast is not there or cannot be told, or a series makes no volume.
    """
    from monai_ext.data.dicom import choose, contrast_of, read_study, sorted_slices

    there = read_study(study)
    wanted = synthesiser.contrasts
    if synthesiser.takes_any:
        shown = {*map(canonical, series or ()), *(contrast_of(one.headers[0]) for one in there)}
        wanted = tuple(name for name in wanted if name in shown and (target is None or name != canonical(target)))
    sources = {name: sorted_slices(one) for name, one in choose(there, wanted, series or {}).items()}
    _same_frame(sources, register)
    return sources, max((int(one.number) for one in there if one.number.isdigit()), default=0)


@contextmanager
def synthesised(
    synthesiser: "BundleSynthesiser", sources: "Mapping[str, Series]", **options: str | None
) -> "Iterator[dict[str, Path]]":
    """Give the NIfTI that the bundle makes of these series for each contrast, for as long as the block lasts.

    Args:
        synthesiser: what synthesises.
        sources: contrast -> series.
        options: of the inference, None for the bundle's own.

    Yields:
        contrast -> NIfTI, in a folder that is removed with the block.

    Raises:
        ValueError: a series cannot be read, or what the synthesiser refuses.
    """
    from monai_ext.data.dicom import read_series
    from monai_ext.data.volumes import write_volume

    with tempfile.TemporaryDirectory() as work:
        files = {contrast: Path(work) / f"{contrast}.nii.gz" for contrast in sources}
        for contrast, path in files.items():
            write_volume(path, read_series(sources[contrast]))
        ids = {name: value for name, value in options.items() if value is not None}
        yield synthesiser(files, Path(work) / "synthetic", subject="study", **ids)


def write_all(
    results: Mapping[str, Path],
    sources: "Mapping[str, Series]",
    out: Path,
    *,
    number: int,
    uid_root: str | None = None,
    reproducible: bool = False,
) -> list[Path]:
    """Write each result as a series in a folder of `out`, whole or not at all.

    Args:
        results: contrast -> NIfTI, its sidecar beside it.
        sources: contrast -> series that they were made from.
        out: where the folders go.
        number: the new series' numbers follow it.
        uid_root, reproducible: as of `synthesise`.

    Returns:
        The folders.

    Raises:
        ValueError: a folder is there already.
    """
    import nibabel as nib
    import numpy as np

    from monai_ext.serve.dicom_writer import write_series

    folders = []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as work:
        for count, (contrast, path) in enumerate(results.items(), 1):
            folder = out / f"SYNTHETIC_{contrast}"
            if folder.exists():
                raise ValueError(f"{folder} is there already and is kept: give another --out, or remove it")
            record = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text(encoding="utf-8"))
            partial = Path(work) / folder.name
            partial.mkdir()
            image: Any = nib.load(path)
            write_series(
                partial,
                np.asarray(image.dataobj, dtype=np.float32),
                record=record,
                reference=sources[record["reference"]],
                sources=sources,
                number=number + count,
                uid_root=uid_root,
                reproducible=reproducible,
            )
            partial.rename(folder)
            folders.append(folder)
    return folders


def _same_frame(sources: "Mapping[str, Series]", register: str | None) -> None:
    """Positions of two frames of reference cannot be compared: the patient may have moved in between."""
    frames = {contrast: str(one.headers[0].get("FrameOfReferenceUID") or "") for contrast, one in sources.items()}
    lost = [contrast for contrast, frame in frames.items() if not frame]
    if lost and len(frames) > 1 and register != "rigid":
        raise ValueError(
            f"{' and '.join(lost)} has no FrameOfReferenceUID, so where it lies on the others is not known: "
            "give --register rigid"
        )
    if len(set(frames.values())) > 1 and register != "rigid":
        raise ValueError(
            f"{' and '.join(frames)} have different frames of reference, so where they lie on each other is not known: "
            "give --register rigid"
        )
