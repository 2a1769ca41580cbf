"""python -m monai_ext phantom --stream POOL: prepared phantoms, made and then renewed while training reads them."""

import argparse
import signal
import time
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from monai_ext.data.phantoms.anatomy import label_maps, step_for
from monai_ext.data.phantoms.pool import Recipe, fill, stream
from monai_ext.data.phantoms.protocols import Echoes
from monai_ext.data.phantoms.workers import workers
from monai_ext.data.prepare import alone
from monai_ext.files import absolute
from monai_ext.modalities import MODALITIES

LONG = "longer ones make lesions brighter, and fluid"


class _Stop(Exception):
    """A signal came: end between two subjects' files, leave the pool as it is."""


@dataclass(frozen=True)
class Stream:
    """What only --stream has: subjects at a time, those never renewed, voxels, the pace, and echoes."""

    size: int = 100
    validation: int = 0
    canvas: str = "96x112"
    depth: int = 80
    once: bool = False
    every: float = 0.0
    flair_echo: float = Echoes.flair
    t2_echo: float = Echoes.t2


def configure(parser: argparse.ArgumentParser) -> None:
    """Give the command the options that only --stream has; their defaults are those of Stream.

    Args:
        parser: of the command.
    """
    add = parser.add_argument_group("with --stream").add_argument
    add("--size", type=int, metavar="N", help=f"training subjects at a time, {Stream.size} if not said")
    add("--validation", type=int, metavar="N", help=f"subjects that are never renewed, {Stream.validation} if not said")
    add("--canvas", metavar="IxJ,...", help=f"voxels of a slice; slots take turns; {Stream.canvas} if not said")
    add("--depth", type=int, metavar="K", help=f"slices, {Stream.depth} if not said")
    add("--once", action="store_true", default=None, help="fill the pool and end")
    add("--every", type=float, metavar="S", help="seconds from one renewal to the next, as fast as it goes if not said")
    add("--flair_echo", type=float, metavar="MS", help=f"of the FLAIR to be made, {Echoes.flair:g} if not said; {LONG}")
    add("--t2_echo", type=float, metavar="MS", help=f"the shortest of T2 scans, {Echoes.t2:g} if not said")


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Give those of Stream's options that were typed.

    Args:
        args: what the command's parser read.

    Returns:
        By the names of Stream's fields.
    """
    return {f.name: getattr(args, f.name) for f in fields(Stream) if getattr(args, f.name) is not None}


def run(args: argparse.Namespace, *, contrasts: tuple[str, ...], spacing: tuple[float, float, float]) -> int:
    """Fill the pool, then renew it until a signal or Ctrl-C, or with --once end there.

    Args:
        args: what the command's parser read.
        contrasts: those to make; () for all of MODALITIES.
        spacing: of the voxels in mm, along I, J, K.

    Returns:
        The exit status, 0, of a pool that was stopped too.

    Raises:
        ValueError: a number that may not be, too little room on the disk, or another process that writes to the pool.
    """
    options = Stream(**given(args))
    if options.size < 1 or options.validation < 0 or options.depth < 1 or options.every < 0:
        raise ValueError("--size and --depth must be at least 1, --validation and --every 0 or more")
    pool = absolute(args.stream)
    recipe = Recipe(
        anatomies=tuple(label_maps(args.anatomy)) if args.anatomy else (),
        contrasts=contrasts or MODALITIES,
        spacing=spacing,
        canvases=_canvases(options.canvas),
        depth=options.depth,
        masks=tuple(label_maps(args.lesions)) if args.lesions else (),
        seed=args.seed,
        echoes=Echoes(options.flair_echo, options.t2_echo),
    )
    pool.mkdir(parents=True, exist_ok=True)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    count = 0
    try:
        with alone(pool), workers(recipe.anatomies, step=step_for(spacing), count=args.jobs) as each:
            filling = fill(
                pool, recipe, size=options.size, validation=options.validation, device=args.device, each=each
            )
            for _ in tqdm(filling, desc="pool", unit="subject"):
                count += 1
            if options.once:
                return 0
            began = time.monotonic()
            renewing = stream(pool, recipe, size=options.size, device=args.device, each=each)
            for _ in tqdm(renewing, desc="renewed", unit="subject"):
                count += 1
                time.sleep(max(0.0, options.every - (time.monotonic() - began)))
                began = time.monotonic()
    except _Stop:
        print(f"stopped; {count} subjects were made: {pool / 'datalist.json'}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what signal.signal calls
    raise _Stop


def _canvases(text: str) -> tuple[tuple[int, int], ...]:
    sizes = []
    for part in text.lower().split(","):
        try:
            i, j = (int(side) for side in part.split("x"))
        except ValueError:
            raise ValueError(f"--canvas takes sizes such as 96x112,112x128, got {text!r}") from None
        if not (16 <= i <= 1024 and 16 <= j <= 1024):
            raise ValueError(f"--canvas takes sizes of 16 to 1024 voxels, got {part!r}")
        sizes.append((i, j))
    return tuple(sizes)


def existing_folder(text: str) -> Path:
    """Read an argument that must be a folder.

    Args:
        text: as typed.

    Returns:
        Its path, as it was given.

    Raises:
        argparse.ArgumentTypeError: there is no such folder.
    """
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"is not a folder: {text}")
    return path
