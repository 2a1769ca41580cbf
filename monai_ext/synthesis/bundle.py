"""A bundle's inference for one subject after another, with its network built once: for every command and host."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_ext.catalogue import bundle_names, find_bundle
from monai_ext.files import absolute
from monai_ext.inference.checks import Findings
from monai_ext.inference.sidecar import add_to_sidecar, synthetic_file
from monai_ext.modalities import canonical
from monai_ext.synthesis.looking import looked_at
from monai_ext.synthesis.options import INFERENCE, asked
from monai_ext.weights import ARCHIVE, RoomFor, about_weights, archived
from monai_ext.workflow import fitted, opened, refuse_unknown_ids, unwrapped


class BundleSynthesiser:
    """`configs/inference.json` of a bundle, run as `monai.bundle run` would, call by call, its network built once.

    An archive that `ckpt_export` wrote can stand for the folder: its weights are within, and say with which values to
    run the config of the installed bundle of its name; a config of its own is never run. Weights say which network they
    are for and from which contrasts it makes which. They are read again for each subject: those of a training that
    ended meanwhile are the next's. Several threads may call; one at a time is served.

    Args:
        bundle_root: the bundle's folder, or an archive.
        weights: their file, `models/model.pt` of the bundle unless given.
        ids: changes of the config, by id.

    Raises:
        ValueError: there are no weights, they do not fit, or an id is not of the config.

    Example:
        >>> import tempfile
        >>> from monai_ext.catalogue import find_bundle
        >>> from monai_ext.networks import AGINet
        >>> from monai_ext.weights import save_weights
        >>> weights = Path(tempfile.mkdtemp()) / "model.pt"
        >>> about = {"sources": ["T1", "T2"], "target": ["FLAIR"], "network_def": {"width": 8}}
        >>> save_weights(weights, AGINet(in_channels=2, width=8), about)  # not trained: for the look of it alone
        >>> synthesiser = BundleSynthesiser(find_bundle("agi_net"), weights=weights)
        >>> synthesiser.contrasts, synthesiser.targets
        (('T1', 'T2'), ('FLAIR',))
    """

    def __init__(self, bundle_root: Path | str, *, weights: Path | str | None = None, **ids: Any) -> None:
        self.bundle_root = absolute(Path(bundle_root))
        alone = self.bundle_root.suffix == ARCHIVE
        own = self.bundle_root if alone else self.bundle_root / "models" / "model.pt"
        self.weights = absolute(Path(weights)) if weights else own
        if not self.weights.is_file():
            raise ValueError(f"there are no weights at {self.weights}: train the bundle first, or name others")
        about = about_weights(self.weights)
        if alone:
            config = trusted_config(self.bundle_root)
        else:
            config = ConfigParser.load_config_file(self.bundle_root / "configs" / "inference.json")
        self.config = fitted(config, about)
        self.ids = {"bundle_root": str(self.bundle_root), "weights": str(self.weights), **ids}
        refuse_unknown_ids(self.ids, [self.config])
        self._turn = threading.Lock()
        parser = opened(self.config, self.ids)
        with unwrapped(), RoomFor(self.weights):
            parser.get_parsed_content("maker")  # whether the weights fit is known now, not at the first patient
        self.network = parser.get_parsed_content("network")

    @property
    def takes_any(self) -> bool:
        """Whether sources are whichever of `contrasts` a subject has; else it needs all of them."""
        return self.get("sources") is None

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The contrasts that it synthesises from."""
        return tuple(canonical(name) for name in self.get("modalities" if self.takes_any else "sources"))

    @property
    def targets(self) -> tuple[str, ...]:
        """The contrasts that a person may choose from."""
        target = self.get("target")
        if target is None:
            return self.contrasts
        return tuple(canonical(name) for name in ([target] if isinstance(target, str) else target))

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that the weights know apart, none where they know but one kind of data."""
        return tuple(self.get("network_def").get("sites", ()))

    @property
    def choices(self) -> tuple[str, ...]:
        """The options that a request may choose; an id that is a component here is none."""
        return tuple(name for name in INFERENCE if not isinstance(self.config.get(name, {}), dict))

    def get(self, name: str) -> Any:
        """Give what an id of the config is, in words and numbers: unevaluated.

        Args:
            name: of an id at the config's top, or of one that was given when this was made.

        Returns:
            A plain value, or the text of an expression; None of an id that the config has not.
        """
        return self.ids.get(name, self.config.get(name))

    def __call__(
        self,
        images: Mapping[str, Path | str],
        output_dir: Path | str,
        *,
        subject: str | None = None,
        trust_names: bool = False,
        findings: Findings | None = None,
        **ids: Any,
    ) -> dict[str, Path]:
        """Synthesise from one subject's images, which are looked at first: what was seen stands in the sidecar.

        Images that are seen to lie apart are registered, unless `register` says otherwise.

        Args:
            images: contrast -> file.
            output_dir: for the results. What is there is written over, unless `overwrite` was made false.
            subject: the name; the images' folder's unless given.
            trust_names: go on where an image does not look like what it is called.
            findings: what was seen of the images; where it lacks one of them, all are looked at here.
            ids: a request's options: data, checked by `options.asked` and never evaluated, as paths are not.

        Returns:
            contrast -> the NIfTI written there.

        Raises:
            ValueError: what is wrong with the options or with the subject, which is not printed.
        """
        if "site" in ids and "site" not in self.config:
            raise ValueError(f"{self.bundle_root.name} tells no sites apart: leave the site out")
        refuse_unknown_ids(ids, [self.config])
        options = asked(ids, self.choices)
        files = {contrast: absolute(Path(path)) for contrast, path in images.items()}
        by_name = {canonical(contrast): path for contrast, path in files.items()}
        if findings is None or not by_name.keys() <= findings.images.keys():
            findings = looked_at(by_name, subject=subject or "subject", trust_names=trust_names)
        if findings.registration and "register" not in options and self.get("register") is None:
            options["register"] = "rigid"
        request = {
            "images": {contrast: str(path) for contrast, path in files.items()},
            "subject": subject,
            "output_dir": str(output_dir),
            "overwrite": self.ids.get("overwrite", True),
            **options,
        }
        with self._turn:
            parser = opened(self.config, {**self.ids, **request, "network": self.network})
            with unwrapped():
                dataset = parser.get_parsed_content("dataset")
                parser.get_parsed_content("evaluator").run()
            if dataset.failures:
                raise dataset.failures[0]
            if not (dataset.done or dataset.kept):
                raise ValueError(
                    f"there is nothing to make: {', '.join(files)} are there, name the target that you want"
                )
            (who,) = dataset.cases.subjects
            targets = parser.get_parsed_content("maker").of(who).target
        results = {target: synthetic_file(absolute(Path(output_dir)), who.name, target) for target in targets}
        for path in results.values():
            add_to_sidecar(path, checks=findings.record())
        return results


def trusted_config(archive: Path) -> dict[str, Any]:
    """Take the installed bundle's own config for an archive, whose config is refused where it would run anything
    else.

    Args:
        archive: that `ckpt_export` wrote.

    Returns:
        The content of the installed bundle's inference.json.

    Raises:
        ValueError: no bundle of the archive's name is installed, or its config has another expression or component.
    """
    name = archived(archive, "metadata.json").get("name")
    named = ((ConfigParser.load_config_file(root / "configs" / "metadata.json")["name"], root) for root in _installed())
    installed = dict(named)
    if not isinstance(name, str) or name not in installed:
        raise ValueError(f"{archive} is of a bundle {name!r}, which is not installed: there are {', '.join(installed)}")
    own: dict[str, Any] = ConfigParser.load_config_file(installed[name] / "configs" / "inference.json")
    for where, value in _runs(archived(archive, "inference.json")):
        if (where, value) not in set(_runs(own)):
            raise ValueError(
                f"{archive} is refused: its inference.json would run {value!r} at {where or 'its top'}, which the "
                f"installed {name} does not; if it is yours, export it again with this version"
            )
    return own


def _installed() -> list[Path]:
    """The bundles of this package, or the packed one that it came in."""
    packed = Path(__file__).resolve().parents[2]
    return [find_bundle(name) for name in bundle_names()] + ([packed] if (packed / "configs").is_dir() else [])


def _runs(config: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Each text that a parser would run, follow or build, with its id; an id that names one counts too."""
    pairs = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        name = f"{where}#{key}" if where else str(key)
        if isinstance(value, str) and (value.startswith(("$", "@", "%")) or str(key).startswith("_")):
            if not name.startswith("_meta_"):
                yield name, value
        elif not name.startswith("_meta_"):
            yield from _runs(value, name)
