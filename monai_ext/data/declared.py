"""What an image's header declares, held against what its file holds before any memory is taken for it."""

import os
import re
import stat
from collections.abc import Sequence
from math import prod
from pathlib import Path

MOST_VOXELS = 2**29  # 2 GB as float32; a head at 0.25 mm has 400 million
MOST_INFLATED = 1032  # bytes that one byte of deflate can become
_HEADER_BYTES = 1 << 16
_NAMES_SEVERAL = re.compile(r"LIST\b|.*%\d*d")  # MetaImage's and NRRD's ways to name a file a slice
_SIZES = ("ndims", "dimension", "dimsize", "sizes")
_FILES = ("elementdatafile", "datafile", "encoding", "compresseddata", "binarydata")


def most_voxels() -> int:
    """Say how many voxels an image may have: MONAI_EXT_MAX_VOXELS, 536870912 unless it is set.

    Returns:
        At least 1.

    Raises:
        ValueError: it is set to something else than a whole number above 0.
    """
    text = os.environ.get("MONAI_EXT_MAX_VOXELS", "")
    if not text:
        return MOST_VOXELS
    if not (text.isascii() and text.isdigit() and int(text[:19]) > 0 and len(text) < 19):
        raise ValueError(f"MONAI_EXT_MAX_VOXELS must be a whole number above 0, got {text!r}")
    return int(text)


def check_regular(path: Path) -> int:
    """Refuse what is no regular file: a pipe, a device, a socket or a folder, which reading may never end.

    Args:
        path: of the file; links are followed, and nothing is opened.

    Returns:
        The file's size in bytes.

    Raises:
        ValueError: it is none.
        OSError: it is not there.
    """
    kind = path.stat()
    if not stat.S_ISREG(kind.st_mode):
        kinds = {stat.S_IFIFO: "pipe", stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket"}
        kind_name = kinds.get(stat.S_IFMT(kind.st_mode), "device")
        raise ValueError(f"{path} is a {kind_name}, expected a regular file")
    return kind.st_size


def check_count(what: object, sizes: Sequence[int]) -> None:
    """Refuse an image of more voxels than may be.

    Args:
        what: the image, for the message.
        sizes: of its axes, as declared.

    Raises:
        ValueError: it is larger than `most_voxels` allows.
    """
    count, most = prod(int(size) for size in sizes), most_voxels()
    if count > most:
        shape = " x ".join(str(int(size)) for size in sizes)
        raise ValueError(
            f"{what} is too large: {shape} is {count:,} voxels, at most {most:,} are read; is its header damaged? "
            "If not, set MONAI_EXT_MAX_VOXELS"
        )


def check_bytes(path: Path, *, needed: int, available: int, packed: bool) -> None:
    """Refuse a file whose `available` bytes cannot hold the `needed` that its header declares.

    Args:
        path: the file.
        needed: bytes of its voxels, unpacked.
        available: bytes that it has for them.
        packed: whether they are compressed, and may be more once unpacked.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    if needed > available * (MOST_INFLATED if packed else 1):
        held = f"{available:,} bytes{' of compressed data' if packed else ''}"
        raise ValueError(
            f"{path} is truncated or damaged (its header declares {needed:,} bytes, it holds {held}): "
            "copy or download it again"
        )


def check_itk_header(path: Path) -> tuple[int, bool]:
    """Find the bytes that hold a MetaImage's or NRRD's voxels.

    The header is read as text before ITK sees it: a number of dimensions beyond what ITK has room for, and a data
    file that is not a plain name beside the header, are refused.

    Args:
        path: of the header, which may hold the voxels too.

    Returns:
        How many bytes there are for the voxels, and whether they are packed.

    Raises:
        ValueError: what the header declares is damaged or not allowed.
    """
    with path.open("rb") as file:
        read = file.read(_HEADER_BYTES).decode("latin-1")
    fields = _fields(path, read)
    count = fields.get("ndims") or fields.get("dimension") or ""
    if not re.fullmatch(r"[1-9]", count):
        raise ValueError(f"{path} is damaged (its number of dimensions is {count[:20]!r}): copy or download it again")
    sizes = (fields.get("dimsize") or fields.get("sizes") or "").split()
    if len(sizes) != int(count) or not all(re.fullmatch(r"\d{1,9}", size) for size in sizes):
        shown = " ".join(sizes)[:40]
        raise ValueError(f"{path} is damaged (its size is {shown!r} in {count} dimensions): copy or download it again")
    encoding = fields.get("encoding", "raw").lower()
    packed = fields.get("compresseddata", "").lower().startswith("t") or encoding != "raw"
    packed = packed or fields.get("binarydata", "true").lower().startswith("f")  # voxels as text
    named = fields.get("elementdatafile") or fields.get("datafile") or "LOCAL"
    if named.lower() == "local":
        return path.stat().st_size, packed
    if named != Path(named).name or named.startswith(".") or _NAMES_SEVERAL.match(named):
        raise ValueError(f"{path} keeps its voxels in {named[:80]!r}: they are read from one file beside it alone")
    return check_regular(path.with_name(named)), packed


def _fields(path: Path, read: str) -> dict[str, str]:
    """Of "key = value" and "key: value" lines, the keys in small letters, up to the header's end.

    ITK tells MetaImage's keys by their case, ends at ElementDataFile, and takes the last of what is said twice: a line
    that it would not take for what we do must not be there.
    """
    is_nrrd = read.startswith("NRRD")
    text = read.split("\n\n")[0].split("\r\n\r\n")[0] if is_nrrd else read
    ended = is_nrrd and (len(text) < len(read) or len(read) < _HEADER_BYTES)
    fields: dict[str, str] = {}
    for line in text.split("\n"):  # not at what Python takes for the end of a line too
        match = re.match(r"\s*([A-Za-z][A-Za-z ]*?)\s*(?:=|:)\s*(\S.*?)\s*$", line)
        if not match:
            continue
        key = match[1].lower().replace("data file", "datafile")
        if key in fields and key in _SIZES + _FILES:
            raise ValueError(f"{path} is damaged (its header says {match[1]!r} twice): copy or download it again")
        fields[key] = match[2]
        if match[1] == "ElementDataFile" and not is_nrrd:
            ended = True
            break
    if not ended:
        raise ValueError(f"{path} is damaged (its header does not end): copy or download it again")
    return fields
