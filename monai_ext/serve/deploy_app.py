"""A MONAI Deploy application: a DICOM study in, the contrast that it lacks out, as a new series of the same study.

    python -m monai_ext.serve.deploy_app --input STUDY --output OUT --target CONTRAST [--model BUNDLE]

The model is a bundle's folder with its weights, the archive that `ckpt_export` writes of one, or a folder that holds
one of these; where there is none, the installed weights that suit the study make the target. The other choices of
`python -m monai_ext dicom` stand under `synthesis` in the YAML file that HOLOSCAN_CONFIG_PATH names, as Holoscan has
it: target, site, series, register, reference, engine, uid_root, reproducible, trust_names.

The study is read by an operator of our own, since the SDK's keeps one image a position: of a series with two echoes or
two b-values it would drop one.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Fragment, Operator, OperatorSpec

from monai_ext.inference.checks import TRUST
from monai_ext.serve.dicom import check_uid_root, ready, suitable
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.synthesis.options import INFERENCE, asked, yes_or_no
from monai_ext.synthesis.study import named_series, sources_in, synthesised, write_all
from monai_ext.weights import ARCHIVE

logger = logging.getLogger(__name__)
NAMED = ("target", "site", "register", "reference", "engine")  # those of the bundle's inference
CHOICES = (*NAMED, "series", "uid_root", "reproducible", "trust_names")


class StudyReader(Operator):
    """A folder of DICOM files -> the series of each contrast that the bundle starts from.

    Args:
        fragment: the application.
        folder: with the study.
        synthesiser: whose sources are looked for.
        choices: of `monai_ext.synthesis.study.sources_in`.
    """

    def __init__(self, fragment: Fragment, *, folder: Path, synthesiser: BundleSynthesiser, **choices: Any) -> None:
        self.folder, self.synthesiser, self.choices = folder, synthesiser, choices
        super().__init__(fragment, CountCondition(fragment, 1), name="study_reader")  # one study a run

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the output "study".

        Args:
            spec: Holoscan's, of this operator.
        """
        spec.output("study")

    def compute(self, _: Any, output: Any, _context: Any) -> None:
        """Read the study and send its series on.

        Args:
            _: no input.
            output: takes the series by contrast and the study's highest series number, as `sources_in` gives them.
            _context: Holoscan's; not used.

        Raises:
            ValueError: a contrast is not there or cannot be told, or a series makes no volume.
        """
        output.emit(sources_in(self.folder, self.synthesiser, **self.choices), "study")


class SeriesSynthesis(Operator):
    """The series of each contrast -> new series in a folder, each written whole or not at all.

    Args:
        fragment: the application.
        synthesiser: what synthesises.
        folder: where the new series go.
        options: of `monai_ext.synthesis.study.synthesised`.
        choices: of `monai_ext.synthesis.study.write_all`.
    """

    def __init__(
        self,
        fragment: Fragment,
        *,
        synthesiser: BundleSynthesiser,
        folder: Path,
        options: dict[str, Any],
        **choices: Any,
    ) -> None:
        self.synthesiser, self.folder, self.options, self.choices = synthesiser, folder, options, choices
        super().__init__(fragment, name="series_synthesis")

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the input "study" and the output "folders".

        Args:
            spec: Holoscan's, of this operator.
        """
        spec.input("study")
        spec.output("folders")

    def compute(self, received: Any, output: Any, _context: Any) -> None:
        """Synthesise, write the new series, and send their folders on.

        Args:
            received: gives what `StudyReader` sent.
            output: takes the new series' folders.
            _context: Holoscan's; not used.

        Raises:
            ValueError: the study or an option cannot serve; a folder that is there already is kept.
        """
        sources, number = received.receive("study")
        with synthesised(self.synthesiser, sources, **self.options) as results:
            folders = write_all(results, sources, self.folder, number=number, **self.choices)
        output.emit(folders, "folders")


class Report(Operator):
    """Says where the new series are.

    Args:
        fragment: the application.
    """

    def __init__(self, fragment: Fragment) -> None:
        super().__init__(fragment, name="report")

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the input "folders".

        Args:
            spec: Holoscan's, of this operator.
        """
        spec.input("folders")

    def compute(self, received: Any, _: Any, _context: Any) -> None:
        """Print the folders, a line each.

        Args:
            received: gives what `SeriesSynthesis` sent.
            _: no output.
            _context: Holoscan's; not used.
        """
        for folder in received.receive("folders"):
            print(folder, flush=True)


class SynthesisApp(Application):
    """study_reader -> series_synthesis -> report"""

    def compose(self) -> None:
        """Build the application from the command line and the YAML file's choices.

        Raises:
            ValueError: a choice, the model or its weights cannot be what they are.
        """
        typed = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        typed.add_argument("--target")
        own, others = typed.parse_known_args(self.argv[1:])
        context = Application.init_app_context([self.argv[0], *others])
        chosen = self._choices(**({} if own.target is None else {"target": own.target}))
        target, series = chosen.get("target"), named_series(chosen.get("series", []))
        trust_names = yes_or_no("trust_names", chosen.get("trust_names", False))
        model, weights, findings = Path(context.model_path), None, None
        if target is None or models_in(model):
            bundle = model_in(model)
        else:
            study, site = Path(context.input_path), chosen.get("site")
            bundle, weights, findings = suitable(
                study, target, weights=None, site=site, series=series, trust_names=trust_names
            )
            logger.warning("%s holds no bundle: of those that are installed, %s is taken", model, bundle.name)
        synthesiser = ready(bundle, weights=weights, target=target)
        reader = StudyReader(
            self, folder=Path(context.input_path), synthesiser=synthesiser, target=target, series=series
        )
        synthesis = SeriesSynthesis(
            self,
            synthesiser=synthesiser,
            folder=Path(context.output_path),
            options={
                **{name: chosen.get(name) for name in ("register", "reference", "site", "engine")},
                "trust_names": trust_names,
                "findings": findings,
            },
            uid_root=chosen.get("uid_root"),
            reproducible=bool(chosen.get("reproducible", False)),
        )
        self.add_flow(reader, synthesis, {("study", "study")})
        self.add_flow(synthesis, Report(self), {("folders", "folders")})

    def _choices(self, **typed: str) -> dict[str, Any]:
        """What the YAML file chooses, and over it what was typed."""
        chosen: dict[str, Any] = self.kwargs("synthesis") if os.environ.get("HOLOSCAN_CONFIG_PATH") else {}
        chosen = {**chosen, **typed}
        for name in chosen:
            if name not in CHOICES:
                raise ValueError(f"synthesis: {name} cannot be chosen; what can is {', '.join(CHOICES)}")
        check_uid_root(chosen.get("uid_root"))
        named = {name: chosen[name] for name in NAMED if chosen.get(name) is not None}
        return {**chosen, **asked(named, INFERENCE)}


def model_in(path: Path) -> Path:
    """Find the bundle's folder or the archive at `path`, or the only one that it holds.

    Args:
        path: a bundle's folder, an archive, or a folder of which one member is either.

    Returns:
        The bundle's folder or the archive.

    Raises:
        ValueError: there is none, or there are several.
    """
    models = models_in(path)
    if len(models) != 1:
        names = ", ".join(model.name for model in models) or "none: give --target, for the installed one that suits"
        raise ValueError(f"{path} must be or hold one bundle, a folder or its archive {ARCHIVE}; found {names}")
    return models[0]


def models_in(path: Path) -> list[Path]:
    """Find the bundles' folders and archives at `path` or in it.

    Args:
        path: a bundle's folder, an archive, a folder that may hold either, or none of these.

    Returns:
        They, by name.
    """
    return [path] if _is_model(path) else sorted(filter(_is_model, path.glob("*")))


def _is_model(path: Path) -> bool:
    return path.suffix == ARCHIVE or (path / "configs" / "inference.json").is_file()


def main() -> int:
    """Run the application, as the command line and Holoscan's environment say.

    Returns:
        The exit status: 1 with the reason on stderr where it cannot be done.
    """
    try:
        SynthesisApp().run()
    except (ValueError, OSError) as error:
        print(f"error: {str(error).replace(TRUST, 'trust_names: true')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
