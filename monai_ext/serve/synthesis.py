"""A bundle's inference for one subject after another, with its network built once: what servers call."""

import copy
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_ext.bundle import fitted, refuse_unknown_ids
from monai_ext.files import absolute
from monai_ext.inference.subjects import SYNTHETIC
from monai_ext.modalities import canonical
from monai_ext.runtime import keep_freed_memory
from monai_ext.weights import ARCHIVE, about_weights, archived


class Synthesiser:
    """`configs/inference.json` of the bundle at `bundle_root`, run as `monai.bundle run` would, call by call.

    An archive that `ckpt_export` wrote can stand for the folder: its configs and weights are within. The weights,
    `models/model.pt` unless others are named, say which network they are for and from which contrasts it makes which.
    They are read again for each subject: those of a training that ended meanwhile are the next's. `ids`
    are the config's. Several threads may call; one at a time is served.
    """

    def __init__(self, bundle_root: Path | str, *, weights: Path | str | None = None, **ids: Any) -> None:
        self.bundle_root = absolute(Path(bundle_root))
        alone = self.bundle_root.suffix == ARCHIVE
        own = self.bundle_root if alone else self.bundle_root / "models" / "model.pt"
        self.weights = absolute(Path(weights)) if weights else own
        if not self.weights.is_file():
            raise ValueError(f"there are no weights at {self.weights}: train the bundle first, or name others")
        if alone:
            config = archived(self.bundle_root, "inference.json")
        else:
            config = ConfigParser.load_config_file(self.bundle_root / "configs" / "inference.json")
        self.config = fitted(config, about_weights(self.weights))
        self.ids = {"bundle_root": str(self.bundle_root), "weights": str(self.weights), **ids}
        refuse_unknown_ids(self._parser({}).get(), [self.config])
        self._turn = threading.Lock()
        keep_freed_memory()
        parser = self._parser({})
        try:
            parser.get_parsed_content("maker")  # whether the weights fit is known now, not at the first patient
        except RuntimeError as error:
            raise _root(error) from None
        self.network = parser.get_parsed_content("network")

    @property
    def takes_any(self) -> bool:
        """Whether sources are whichever of `contrasts` a subject has; else it needs all of them."""
        return self.get("sources") is None

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Those that it synthesises from."""
        return tuple(canonical(name) for name in self.get("modalities" if self.takes_any else "sources"))

    @property
    def targets(self) -> tuple[str, ...]:
        """Those that a person may choose from."""
        given = self.get("target")
        if given is None:
            return self.contrasts
        return tuple(canonical(name) for name in ([given] if isinstance(given, str) else given))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Those that the weights know apart, none where they know but one kind of data."""
        return tuple(self.get("network_def").get("datasets", ()))

    def get(self, name: str) -> Any:
        """What an id is, in words and numbers: unevaluated."""
        return self.ids.get(name, self.config.get(name))

    def __call__(
        self, images: Mapping[str, Path | str], output_dir: Path | str, *, subject: str | None = None, **ids: Any
    ) -> dict[str, Path]:
        """Synthesise from `images`, contrast -> file, into an empty `output_dir`: contrast -> the NIfTI written there.

        What is wrong with the subject is raised, not printed.
        """
        files = {contrast: str(absolute(Path(path))) for contrast, path in images.items()}
        given = {"images": files, "subject": subject, "output_dir": str(output_dir), "overwrite": True, **ids}
        refuse_unknown_ids(given, [self.config])
        with self._turn:
            parser = self._parser(given)
            parser["network"] = self.network
            try:
                volumes = "volumes" if "volumes" in self.config else "dataset"  # where that is a dataset's name
                dataset = parser.get_parsed_content(volumes)
                parser.get_parsed_content("evaluator").run()
            except RuntimeError as error:  # MONAI wraps what a component raises
                raise _root(error) from None
            if dataset.failures:
                raise dataset.failures[0]
            if not dataset.done:
                raise ValueError(
                    f"there is nothing to make: {', '.join(files)} are there, name the target that you want"
                )
        made = sorted((Path(output_dir) / dataset.done[0]).glob(f"*{SYNTHETIC}.nii.gz"))
        return {path.name.removesuffix(f"{SYNTHETIC}.nii.gz"): path for path in made}

    def _parser(self, ids: Mapping[str, Any]) -> ConfigParser:
        parser = ConfigParser(copy.deepcopy(self.config))
        for name, value in {**self.ids, **ids}.items():
            parser[name] = value
        parser.get_parsed_content("imports")
        return parser


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
