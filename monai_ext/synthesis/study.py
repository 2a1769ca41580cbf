"""A DICOM study in: each missing contrast as a new series of it, and as the NIfTI that the series was made of."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_ext.data.dicom import contrast_of, read_series, read_study
from monai_ext.modalities import canonical
from monai_ext.serve.dicom import sources_in, synthesised, write_all
from monai_ext.synthesis.looking import looked_at
from monai_ext.synthesis.synthesiser import Synthesiser, sidecar


def synthesise_study(
    synthesiser: Synthesiser,
    study: Path,
    targets: Sequence[str] | None,
    out: Path,
    *,
    series: Mapping[str, str],
    register: str | None = None,
) -> list[Path]:
    """Write out/SYNTHETIC_<TARGET>, a series, and out/<TARGET>_synthetic.nii.gz with its JSON and its picture.

    Args:
        synthesiser: what makes them.
        study: a folder of one patient's one study.
        targets: contrasts; None is each that is missing and can be made.
        out: the folder for the results.
        series: contrast -> number, description or UID, where the headers do not tell.
        register: "none" or "rigid".

    Raises:
        ValueError: the study is of two patients, a target is there already or cannot be made, or results are there.
    """
    there = read_study(study)
    shown = dict.fromkeys([*map(canonical, series), *filter(None, (contrast_of(one.headers[0]) for one in there))])
    plan = synthesiser.plan(tuple(shown), targets)
    if not plan:
        raise ValueError(f"{study} has every contrast that can be made")
    for target in plan:
        if (out / f"SYNTHETIC_{target}").exists():
            raise ValueError(
                f"{out / f'SYNTHETIC_{target}'} is there already and is kept: give another -o, or remove it"
            )
    out.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for count, (target, method) in enumerate(plan.items()):
        inference = synthesiser.built(method)
        asked = {} if method.task.every_source else {"target": target}
        wanted = {name: what for name, what in series.items() if canonical(name) in method.task.inputs}
        sources, number = sources_in(study, inference, target=target, series=wanted, register=register)
        volumes = {name: read_series(one) for name, one in sources.items()}
        looked_at(volumes, subject="study", trust_names=synthesiser.trust_names)
        with synthesised(inference, sources, **asked) as results:
            one = {target: results[target]}
            made += write_all(one, sources, out, number=number + count)
            made.append(_kept(results[target], out))
    return made


def _kept(image: Path, out: Path) -> Path:
    """The NIfTI, and what lies beside it, moved to `out`; the image comes last."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as work:
        for path in (sidecar(image), sidecar(image).with_suffix(".png"), image):
            if path.exists():
                (Path(shutil.copy(path, work))).replace(out / path.name)
    return out / image.name
