"""One bundle's inference as MONAI Label asks for it."""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from monai_ext.data.volumes import read_channels, write_volume
from monai_ext.files import read_json, whole_file
from monai_ext.inference.checks import TRUST
from monai_ext.inference.sidecar import sidecar
from monai_ext.inference.subjects import SYNTHETIC, find_subjects
from monai_ext.modalities import canonical
from monai_ext.runtime import ENGINES, installed
from monai_ext.serve.label_app.confinement import without_folders
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.synthesis.options import named_channels, named_images, yes_or_no

logger = logging.getLogger(__name__)
_storing = threading.Lock()
UNCHOSEN = {"site": "none", "register": "where needed"}  # what a panel shows for an option that is left alone


class Synthesis(InferTask):
    """Sources of a study in, a SYNTHETIC contrast out: an image, float32 on the reference's own grid.

    The sources are the files of the requested image's folder, by their names; or `images` says which is which,
    contrast -> file name; or `contrasts` names the channels of a 4D image in their order. The result is stored in the
    study as <TARGET>_<bundle>_synthetic.nii.gz, which is never taken for a source, with a .json that says what it is.
    An image that came with the request needs `contrasts`, and its result is sent back alone.

    Args:
        bundle_root: the bundle's folder.
        weights: their file, which need not be there yet.
        trained: the file that is used in its place once it is there, if there may be one.

    Raises:
        HTTPException: when called, 400 or 500 with the reason.
    """

    def __init__(self, bundle_root: Path, *, weights: Path, trained: Path | None = None) -> None:
        self.bundle_root, self._shipped, self._trained = bundle_root, weights, trained
        self._loaded: tuple[tuple[Path, int, int], BundleSynthesiser] | None = None
        self.fault = ""
        self._load()
        super().__init__(
            type=InferType.OTHERS,
            labels=[],
            dimension=3,
            description=f"{bundle_root.name}: a SYNTHETIC contrast from those that were acquired",
        )

    @property
    def weights(self) -> Path:
        """The file that is served from now."""
        return self._trained if self._trained is not None and self._trained.is_file() else self._shipped

    def is_valid(self) -> bool:
        """Say whether there are weights.

        Returns:
            Whether the file is there; whether it fits is not looked at.
        """
        return self.weights.is_file()

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        synthesiser = self._load()
        if synthesiser is None:
            raise HTTPException(500, self.fault)
        image = Path(request["image"])
        options = {key: first(request[key]) for key in synthesiser.choices if request.get(key) not in (None, "", [])}
        options = {key: value for key, value in options.items() if value != UNCHOSEN.get(key)}
        with tempfile.TemporaryDirectory() as scratch:
            try:
                images = self._images(request, image, synthesiser, Path(scratch))
                subject = "uploaded" if request["uploaded"] else image.parent.name
                trust = yes_or_no("trust_names", request.get("trust_names", False))
                results = synthesiser(images, Path(scratch) / "out", subject=subject, trust_names=trust, **options)
            except (ValueError, OSError) as error:
                raise HTTPException(400, without_folders(str(error)).replace(TRUST, "trust_names true")) from error
            named = {f"{target}_{self.bundle_root.name}{SYNTHETIC}": file for target, file in results.items()}
            if not request["uploaded"]:
                with _storing:  # of two requests for one study, an image and its own JSON
                    for name, file in named.items():
                        for source, suffix in ((sidecar(file), "json"), (file, "nii.gz")):
                            with whole_file(image.parent / f"{name}.{suffix}") as partial:
                                shutil.copy(source, partial)
            name, file = next(iter(named.items()))
            record = read_json(sidecar(file))
            handle, answer = tempfile.mkstemp(suffix=f"_{name}.nii.gz")  # the server removes it once it is sent
            os.close(handle)
            shutil.move(file, answer)
        warnings = [finding["message"] for finding in record.get("checks", {}).get("findings", ())]
        return answer, {**record, "warnings": warnings, "stored": [] if request["uploaded"] else list(named)}

    def _load(self) -> BundleSynthesiser | None:
        """The bundle with its weights; those that a training has written since are read anew."""
        weights = self.weights
        if not weights.is_file():
            self.fault = f"{self.bundle_root.name} has no weights at {weights.name}: train it first"
            return None
        said = weights.with_suffix(".json")  # which comes after the weights
        changed = weights, weights.stat().st_mtime_ns, said.stat().st_mtime_ns if said.is_file() else 0
        if self._loaded is None or self._loaded[0] != changed:
            try:
                self._loaded = changed, BundleSynthesiser(self.bundle_root, weights=weights)
            except ValueError as error:
                self.fault = f"{self.bundle_root.name} cannot be served: {without_folders(str(error))}"
                logger.error(self.fault)
                return None
        return self._loaded[1]

    def config(self) -> dict[str, Any]:
        """Tell what a person chooses in the client's panel.

        Returns:
            Option -> its default, or the list to choose from; {} where the weights cannot be used.
        """
        synthesiser = self._load()
        if synthesiser is None:
            return {}
        return {
            "target": list(synthesiser.targets),
            **({"site": [UNCHOSEN["site"], *synthesiser.sites]} if synthesiser.sites else {}),
            "register": [UNCHOSEN["register"], "none", "rigid"],
            "engine": [name for name in ENGINES if installed(name)],
            "images": "",
            "contrasts": "",
            "trust_names": False,
        }

    def _images(
        self, request: Mapping[str, Any], image: Path, synthesiser: BundleSynthesiser, scratch: Path
    ) -> dict[str, Path]:
        """contrast -> file, as the request says or the names of the study's files do"""
        if request.get("contrasts"):
            return _channels(image, named_channels(request["contrasts"]), scratch)
        if request["uploaded"]:
            raise ValueError("say with contrasts which contrasts the channels of an uploaded image are: 'T1,T2'")
        if request.get("images"):
            images = named_images(request["images"])
            return {contrast: _inside(image.parent, name) for contrast, name in images.items()}
        contrasts = synthesiser.contrasts
        if synthesiser.takes_any:
            contrasts = tuple(name for name in contrasts if name != first(request.get("target")))
        shown = _shown_in(image.parent, contrasts)
        lacking = [] if synthesiser.takes_any else [name for name in contrasts if name not in shown]
        if lacking or not shown:
            has = ", ".join(shown) or "no contrast that is known by its name"
            lacks = f"lacks {' and '.join(lacking)}, has {has}" if lacking else f"has {has}"
            raise ValueError(f"{image.parent.name}: {lacks}; say with images which file is which")
        return shown


def first(choice: Any) -> Any:
    """Take a choice of a panel, which sends back the list that it was given if nothing was chosen from it.

    Args:
        choice: as it came.

    Returns:
        The first of a list, anything else as it is; [] too.
    """
    return choice[0] if isinstance(choice, list) and choice else choice


def _shown_in(study: Path, contrasts: Sequence[str]) -> dict[str, Path]:
    """The files of a study's own folder that show these contrasts by their names, which may be prefixed in any way."""
    found: dict[str, list[Path]] = {}
    for subject in find_subjects(folder=study).subjects:
        for contrast, path in subject.images.items():
            if contrast in contrasts and path.parent == study:
                found.setdefault(contrast, []).append(path)
    for contrast, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(sorted(path.name for path in paths))
            raise ValueError(f"{study.name}: {names} are both {contrast}: say with images which is which")
    return {contrast: found[contrast][0] for contrast in contrasts if contrast in found}


def _inside(folder: Path, name: str) -> Path:
    """A file of the study, and of no other."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"images must be files of the study {folder.name}, got {name!r}")
    if not path.is_file():
        raise ValueError(f"the study {folder.name} has no file {name!r}")
    return path


def _channels(image: Path, contrasts: list[str], scratch: Path) -> dict[str, Path]:
    """A 4D image's channels as files of their own."""
    channels = read_channels(image)
    if len(channels) != len(contrasts):
        raise ValueError(
            f"contrasts names {len(contrasts)} channels, {', '.join(contrasts)}, but the image has {len(channels)}"
        )
    files = {}
    for contrast, channel in zip(contrasts, channels, strict=True):
        files[contrast] = scratch / f"{canonical(contrast)}.nii.gz"
        write_volume(files[contrast], channel)
    return files
