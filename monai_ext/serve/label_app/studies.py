"""A folder of studies: a folder each, a file a contrast."""

import shutil
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore

from monai_ext.serve.label_app.confinement import is_image_id

OURS = ("labels",)  # MONAI Label's own folder among the studies


class Studies(LocalDatastore):
    """MONAI Label's local store takes one folder of images; here an image is `<study>/<file>`, or `<file>` as there."""

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        files: dict[str, str] = super()._list_files(path, patterns)
        if Path(path).resolve() == Path(self._datastore.image_path()).resolve():
            for study in sorted(Path(path).iterdir()):
                if study.is_dir() and study.name not in OURS and not study.name.startswith("."):
                    names = (f"{study.name}/{file}" for file in super()._list_files(str(study), patterns))
                    files.update({name: name for name in names})
        return files

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an image that is new, in a folder of its study; one that is there is never written over.

        Args:
            image_id: STUDY/FILE.
            image_filename: the file that is stored.
            image_info: what is known of it.

        Returns:
            The image's id.

        Raises:
            HTTPException: 400, it cannot be stored so; 409, there is one.
        """
        name, ending = self._to_id(Path(image_filename).name)
        image_id = image_id or name
        study = image_id.partition("/")[0]
        root = Path(self._datastore.image_path()).resolve()
        place = (root / f"{image_id}{ending}").resolve()
        if not is_image_id(image_id) or study in OURS or not place.is_relative_to(root):
            raise HTTPException(400, f"image must be STUDY/FILE, got {image_id!r}")
        if place.exists() or image_id in self._datastore.objects:
            raise HTTPException(409, f"the image {image_id!r} is there already and is kept")
        new = not place.parent.exists()
        place.parent.mkdir(exist_ok=True)
        try:
            return str(super().add_image(image_id, image_filename, image_info))
        except OSError as error:
            if new:
                shutil.rmtree(place.parent)
            raise HTTPException(400, f"the image {image_id!r} cannot be stored: {error.strerror}") from error

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Tell what is known of an image, but for where the server has it.

        Args:
            image_id: `<study>/<file>` or `<file>`, without its ending.

        Returns:
            MONAI Label's, without "path".
        """
        return {key: value for key, value in super().get_image_info(image_id).items() if key != "path"}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Say where a label is.

        Args:
            label_id: of the image that it was drawn on.
            label_tag: such as "final".

        Returns:
            The label's path.

        Raises:
            HTTPException: 404, it is not there.
        """
        uri = str(super().get_label_uri(label_id, label_tag))
        if not uri:
            raise HTTPException(404, f"there is no label {label_tag!r} of {label_id!r}")
        return uri

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """List images with their labels, named as the studies name them and not by where the server has them.

        Args:
            full_path: MONAI Label's; both values give the studies' names.

        Returns:
            "image" and "label" a dictionary, relative to the studies' folder.
        """
        root = Path(self._datastore.base_path).resolve()
        items = super().datalist(full_path)
        return [{key: Path(path).relative_to(root).as_posix() for key, path in item.items()} for item in items]

    def get_dataset_archive(self, limit_cases: int | None) -> str:  # noqa: ARG002 - the interface has it
        """Refuse it: studies are not given away as one archive.

        Args:
            limit_cases: MONAI Label's; not looked at.

        Returns:
            Nothing: it raises.

        Raises:
            HTTPException: 404, always.
        """
        raise HTTPException(404, "studies are not given away as one archive")
