"""What of a server's files a client may name, and what it is told of them: studies by their ids, never a path."""

import re

# A folder or a file of the studies: what one may be called that cannot lead out of them.
PART = r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,200}"
IMAGE = re.compile(f"{PART}(/{PART})?")
FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\",;:]+/)+")  # of an absolute path, up to its last name


def is_image_id(name: str) -> bool:
    """Say whether this could be an image of the studies: `<file>` or `<study>/<file>`, without its ending.

    Args:
        name: as a client gives it.

    Returns:
        False of what could lead out of the studies, is hidden, or is not printable; whether there is one is not looked
        at.
    """
    return IMAGE.fullmatch(name) is not None and name.isprintable()


def without_folders(message: str) -> str:
    """Reduce the absolute paths in a message to the names of their files.

    Args:
        message: of any text.

    Returns:
        The text without the folders.
    """
    return FOLDERS.sub("", message)
