"""Where the bundles lie: beside the package in a checkout, within it once installed. Imports nothing heavy."""

import difflib
from collections.abc import Sequence
from pathlib import Path

VERBS = ("train", "evaluate", "inference")


def bundles_folder() -> Path:
    """The folder that holds a folder a bundle, and the overlays that serve all of them."""
    package = Path(__file__).resolve().parent
    installed = package / "bundles"
    return installed if installed.is_dir() else package.parent / "bundles"


def bundle_names() -> list[str]:
    """The bundles that came with this package."""
    return sorted(path.parent.parent.name for path in bundles_folder().glob("*/configs/metadata.json"))


def find_bundle(bundle: Path | str) -> Path:
    """The folder of the bundle with this name, or at this path.

    Raises:
        ValueError: there is none; the message names the nearest known.
    """
    for folder in (bundles_folder() / bundle, Path(bundle)):
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    if Path(bundle).is_dir():
        raise ValueError(f"{bundle} is no bundle: it has no configs/metadata.json")
    names = bundle_names()
    near = difflib.get_close_matches(str(bundle), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names) or 'none'}, or give a folder"
    raise ValueError(f"there is no bundle {str(bundle)!r}; {hint}")


def config_files(root: Path, verb: str, overlays: Sequence[str] = ()) -> list[Path]:
    """The verb's config and what is laid over it: each a path, or the name of one of the bundle's or of all bundles'.

    Raises:
        ValueError: one that is not there.
    """
    if verb not in VERBS:
        raise ValueError(f"verb must be one of {', '.join(VERBS)}, got {verb!r}")
    files = [root / "configs" / f"{verb}.json"]
    for overlay in overlays:
        places = [root / "configs" / f"{overlay}.json", root.parent / f"{overlay}.json"]
        places += [bundles_folder() / f"{overlay}.json", Path(overlay)]
        found = [place for place in places if place.is_file()]
        if not found:
            common = sorted(path.stem for path in bundles_folder().glob("*.json"))
            raise ValueError(f"there is no overlay {overlay!r}: name one of {', '.join(common)}, or a JSON file")
        files.append(found[0])
    return files
