"""A folder of studies: a folder each, a file a contrast."""

from pathlib import Path

from monailabel.datastore.local import LocalDatastore

OURS = ("labels",)  # MONAI Label's own folder among the studies


class Studies(LocalDatastore):
    """MONAI Label's local store takes one folder of images; here an image is `<study>/<file>`, or `<file>` as there."""

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        found: dict[str, str] = super()._list_files(path, patterns)
        if Path(path).resolve() == Path(self._datastore.image_path()).resolve():
            for study in sorted(Path(path).iterdir()):
                if study.is_dir() and study.name not in OURS and not study.name.startswith("."):
                    names = (f"{study.name}/{file}" for file in super()._list_files(str(study), patterns))
                    found.update({name: name for name in names})
        return found
