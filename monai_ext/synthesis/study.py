"""A DICOM study in: each missing contrast as a new series of it, and as the NIfTI that the series was made of."""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_ext.data.dicom import Series, choose, contrast_of, read_series, read_study, sorted_slices
from monai_ext.data.volumes import write_volume
from monai_ext.files import read_json
from monai_ext.inference.checks import Findings
from monai_ext.inference.sidecar import sidecar
from monai_ext.inference.subjects import SYNTHETIC
from monai_ext.modalities import canonical
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.synthesis.dicom_writer import write_series
from monai_ext.synthesis.looking import looked_at
from monai_ext.synthesis.synthesiser import Synthesiser

logger = logging.getLogger(__name__)


def synthesise_study(
    synthesiser: Synthesiser, study: Path, targets: Sequence[str] | None, out: Path, *, series: Mapping[str, str]
) -> list[Path]:
    """Write out/SYNTHETIC_<TARGET>, a series, and out/<TARGET>_synthetic.nii.gz with its JSON and its picture.

    Args:
        synthesiser: what makes them.
        study: a folder of one patient's one study.
        targets: contrasts; None is each that is missing and can be made.
        out: the folder for the results.
        series: contrast -> number, description or UID, where the headers do not tell.

    Returns:
        The folders of the series and the files, target by target.

    Raises:
        ValueError: the study is of two patients, a target is there already or cannot be made, or results are there.
    """
    scans = read_study(study)
    shown = shown_in(scans, series)
    plan = synthesiser.plan(shown, targets)
    if not plan:
        raise ValueError(f"{study} has every contrast that can be made")
    if not synthesiser.overwrite:
        images = [out / f"{target}{SYNTHETIC}.nii.gz" for target in plan]
        check_free([*(out / f"SYNTHETIC_{target}" for target in plan), *images], option="-o")
    inputs = [name for name in shown if any(name in method.task.inputs for method in plan.values())]
    findings = seen_in(scans, inputs, series, trust_names=synthesiser.trust_names)
    plan = synthesiser.plan(shown, targets, skull=findings.skull)
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for count, (target, method) in enumerate(plan.items()):
        inference = synthesiser.built(method)
        options = {} if method.task.every_source else {"target": target}
        wanted = {name: what for name, what in series.items() if canonical(name) in method.task.inputs}
        sources, number = sources_in(study, inference, target=target, series=wanted)
        trust_names = synthesiser.trust_names
        with synthesised(inference, sources, trust_names=trust_names, findings=findings, **options) as results:
            result = {target: results[target]}
            written += write_all(result, sources, out, number=number + count, overwrite=synthesiser.overwrite)
            written.append(_kept(results[target], out))
    return written


def check_free(results: Iterable[Path], *, option: str) -> None:
    """Refuse, before anything is computed, to write where results are.

    Args:
        results: the files and folders that are to be written.
        option: of the command, that names their folder.

    Raises:
        ValueError: one is there.
    """
    for there in results:
        if there.exists():
            raise ValueError(f"{there} is there already and is kept: give another {option}, or remove it")


def named_series(pairs: Sequence[str]) -> dict[str, str]:
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


def shown_in(scans: Sequence[Series], series: Mapping[str, str]) -> tuple[str, ...]:
    """Which contrasts a study shows.

    Args:
        scans: its series.
        series: contrast -> number, description or UID, where a person says so.

    Returns:
        Those that were named, then those that headers tell, each once.
    """
    by_header = (contrast_of(scan.headers[0]) for scan in scans)
    return tuple(dict.fromkeys([*map(canonical, series), *filter(None, by_header)]))


def seen_in(
    scans: Sequence[Series], contrasts: Sequence[str], series: Mapping[str, str], *, trust_names: bool = False
) -> Findings:
    """Look at the series of these contrasts before it is chosen what synthesises from them.

    Args:
        scans: the study's series.
        contrasts: whose series are looked at.
        series: contrast -> number, description or UID, where a person says so.
        trust_names: as of `synthesised`.

    Returns:
        What was seen, of which nothing refuses.

    Raises:
        ValueError: a contrast is not there or cannot be told, or a series is not what it is taken for.
    """
    named = {name: which for name, which in series.items() if canonical(name) in contrasts}
    volumes = {name: read_series(sorted_slices(scan)) for name, scan in choose(scans, contrasts, named).items()}
    return looked_at(volumes, subject="study", trust_names=trust_names)


def sources_in(
    study: Path, synthesiser: BundleSynthesiser, *, target: str | None = None, series: Mapping[str, str] | None = None
) -> tuple[dict[str, Series], int]:
    """Find the series of each contrast that the bundle starts from, its slices in order.

    Args:
        study: a folder with the DICOM files.
        synthesiser: whose sources are looked for.
        target: what to synthesise.
        series: contrast -> number, description or UID.

    Returns:
        contrast -> series, and the study's highest series number.

    Raises:
        ValueError: a contrast is not there or cannot be told, or a series makes no volume.
    """
    scans = read_study(study)
    wanted = synthesiser.contrasts
    if synthesiser.takes_any:
        shown = shown_in(scans, series or {})
        wanted = tuple(name for name in wanted if name in shown and (target is None or name != canonical(target)))
    sources = {name: sorted_slices(scan) for name, scan in choose(scans, wanted, series or {}).items()}
    return sources, max((int(scan.number) for scan in scans if scan.number.isdigit()), default=0)


@contextmanager
def synthesised(
    synthesiser: BundleSynthesiser,
    sources: Mapping[str, Series],
    *,
    trust_names: bool = False,
    findings: Findings | None = None,
    **options: str | None,
) -> Iterator[dict[str, Path]]:
    """Give the NIfTI that the bundle makes of these series for each contrast, for as long as the block lasts.

    Series that have no frame of reference in common are registered, which is said.

    Args:
        synthesiser: what synthesises.
        sources: contrast -> series.
        trust_names: go on where a series does not look like the contrast that it is taken for.
        findings: what was seen of them, by `seen_in`; where it lacks one of them, all are looked at.
        options: of the inference, None for the bundle's own.

    Yields:
        contrast -> NIfTI, in a folder that is removed with the block.

    Raises:
        ValueError: the series are not what they are taken for, or cannot be used; or it is not known where they lie on
            each other, and they are not to be registered.
    """
    options["register"] = _registration(sources, options.get("register") or synthesiser.get("register"))
    volumes = {contrast: read_series(scan) for contrast, scan in sources.items()}
    with tempfile.TemporaryDirectory() as work:
        files = {contrast: Path(work) / f"{contrast}.nii.gz" for contrast in sources}
        for contrast, path in files.items():
            write_volume(path, volumes[contrast])
        chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        chosen |= {"trust_names": trust_names, "findings": findings}
        yield synthesiser(files, Path(work) / "synthetic", subject="study", **chosen)


def write_all(
    results: Mapping[str, Path],
    sources: Mapping[str, Series],
    out: Path,
    *,
    number: int,
    uid_root: str | None = None,
    reproducible: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write each result as a series in a folder of `out`, whole or not at all.

    Args:
        results: contrast -> NIfTI, its sidecar beside it.
        sources: contrast -> series that they were made from.
        out: where the folders go.
        number: the new series' numbers follow it.
        uid_root: of the new UIDs; None makes them UUIDs.
        reproducible: the same study and weights give the same files.
        overwrite: take the place of a folder that is there.

    Returns:
        The folders.

    Raises:
        ValueError: a folder is there already.
    """
    folders = []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as work:
        for count, (contrast, path) in enumerate(results.items(), 1):
            folder = out / f"SYNTHETIC_{contrast}"
            if folder.exists() and not overwrite:
                raise ValueError(f"{folder} is there already and is kept: give another --out, or remove it")
            record = read_json(sidecar(path))
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
            if folder.exists():
                folder.rename(Path(work) / f"before_{contrast}")
            partial.rename(folder)
            folders.append(folder)
    return folders


def _kept(image: Path, out: Path) -> Path:
    """The NIfTI, and what lies beside it, moved to `out`; the image comes last."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as work:
        for path in (sidecar(image), sidecar(image).with_suffix(".png"), image):
            if path.exists():
                (Path(shutil.copy(path, work))).replace(out / path.name)
    return out / image.name


def _registration(sources: Mapping[str, Series], register: str | None) -> str | None:
    """As asked for; rigid where positions cannot be compared, since the patient may have moved in between."""
    frames = {contrast: str(scan.headers[0].get("FrameOfReferenceUID") or "") for contrast, scan in sources.items()}
    lost = [contrast for contrast, frame in frames.items() if not frame]
    if len(frames) < 2 or (not lost and len(set(frames.values())) == 1):
        return register
    why = (
        f"{' and '.join(lost)} has no FrameOfReferenceUID, so where it lies on the others is not known"
        if lost
        else f"{' and '.join(frames)} have different frames of reference, so where they lie on each other is not known"
    )
    if register == "none":
        raise ValueError(f"{why}: leave --register none out, and they are registered")
    if register is None:
        logger.warning("%s: they are registered", why)
    return "rigid"
