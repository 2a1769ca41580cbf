"""Files: paths made absolute, anything written whole or not at all, and digests."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def absolute(path: Path) -> Path:
    """Make a path absolute, without `..` and without following links: data are often links into a store."""
    return Path(os.path.normpath(path.absolute()))


def read_json(path: Path, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Read a JSON file that may come from anybody.

    Args:
        path: the file.
        pairs: makes the file's objects of their (key, value) pairs; dictionaries without it.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested deeper than Python follows, or is not a regular file.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is not a regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("is nested too deeply to be read") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read, through a temporary file and a rename: no reader ever sees half of it.

    Args:
        path: the file.
        content: what JSON has.

    Raises:
        OSError: it cannot be written; then nothing is.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise OSError(error.errno, f"nothing was written: {error.strerror}", str(path)) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to: it becomes `path` if all goes well, and is removed if not.

    Args:
        path: the file that is to be whole.

    Raises:
        OSError: it cannot be written, by the path's own name.
    """
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def everybodys(error: OSError, out: Path, *, own: Path) -> bool:
    """Say whether a fault is of the place to write to, which every subject would meet.

    Args:
        error: what was raised at one subject's turn.
        out: where all results go.
        own: the subject's folder there; what lies in its way is the subject's fault.
    """
    named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    in_the_way = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError)
    if in_the_way and named and all(path.is_relative_to(own) for path in named):
        return False
    return not named or any(path.is_relative_to(out) for path in named)


def sha256(path: Path) -> str:
    """Compute a file's sha256, in hexadecimal digits."""
    digest = hashlib.sha256()  # hashlib.file_digest is Python 3.11's
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
