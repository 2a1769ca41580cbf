"""Where the bundles lie: beside the package in a checkout, within it once installed. Imports nothing heavy."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

VERBS = ("train", "evaluate", "inference")


def bundles_folder() -> Path:
    """Say where the bundles lie: a folder for each, and the overlays that serve all of them."""
    package = Path(__file__).resolve().parent
    installed = package / "bundles"
    return installed if installed.is_dir() else package.parent / "bundles"


def bundle_names() -> list[str]:
    """List the bundles that came with this package."""
    return sorted(path.parent.parent.name for path in bundles_folder().glob("*/configs/metadata.json"))


def find_bundle(bundle: Path | str) -> Path:
    """Find the folder of the bundle with this name, or at this path.

    Args:
        bundle: a name such as "agi_net", or a folder's path.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: there is none; the message names the nearest known.

    Example:
        >>> find_bundle("agi_net").name
        'agi_net'
        >>> find_bundle("agi-net")
        Traceback (most recent call last):
        ValueError: there is no bundle 'agi-net'; did you mean agi_net?
    """
    own = [bundles_folder() / bundle] if str(bundle) in bundle_names() else []  # a name, not a path such as ./agi_net
    for folder in (*own, Path(bundle)):
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    if Path(bundle).is_dir():
        raise ValueError(f"{bundle} is no bundle: it has no configs/metadata.json")
    names = bundle_names()
    near = difflib.get_close_matches(str(bundle), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names) or 'none'}, or give a folder"
    raise ValueError(f"there is no bundle {str(bundle)!r}; {hint}")


def config_files(root: Path, verb: str, overlays: Sequence[str] = ()) -> list[Path]:
    """List the verb's config and what is laid over it.

    Args:
        root: the bundle's folder.
        verb: "train", "evaluate" or "inference".
        overlays: each a path, or the name of one of the bundle's or of all bundles'.

    Returns:
        The files, the verb's first.

    Raises:
        ValueError: a verb or an overlay that is not there.
    """
    if verb not in VERBS:
        raise ValueError(f"verb must be one of {', '.join(VERBS)}, got {verb!r}")
    files = [root / "configs" / f"{verb}.json"]
    for overlay in overlays:
        places = [root / "configs" / f"{overlay}.json", root.parent / f"{overlay}.json"]
        places += [bundles_folder() / f"{overlay}.json", Path(overlay)]
        existing = [place for place in places if place.is_file()]
        if not existing:
            names = ", ".join([*_overlays(root / "configs"), *_overlays(bundles_folder())])
            raise ValueError(f"there is no overlay {overlay!r}: name one of {names}, or a JSON file")
        files.append(existing[0])
    return files


def _overlays(folder: Path) -> list[str]:
    """The configs in a folder that do not stand alone, by name; the metadata are none."""
    paths = [path for path in sorted(folder.glob("*.json")) if path.stem != "metadata"]
    return [path.stem for path in paths if "run" not in json.loads(path.read_text(encoding="utf-8"))]
