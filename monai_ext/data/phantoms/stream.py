"""python -m monai_ext phantom --stream POOL: prepared phantoms, made and then renewed while training reads them."""

import argparse
import signal
import time
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from monai_ext.data.phantoms.anatomy import label_maps
from monai_ext.data.phantoms.pool import Recipe, fill, stream
from monai_ext.data.prepare import alone
from monai_ext.files import absolute
from monai_ext.modalities import MODALITIES


class _Stop(Exception):
    """A signal came: end between two subjects' files, leave the pool as it is."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The options that only --stream has."""
    add = parser.add_argument
    add("--size", type=int, default=100, metavar="N", help="with --stream: training subjects at a time")
    add("--validation", type=int, default=0, metavar="N", help="with --stream: subjects that are never renewed")
    add("--canvas", default="96x112", metavar="IxJ,...", help="with --stream: voxels of a slice; slots take turns")
    add("--depth", type=int, default=80, metavar="K", help="with --stream: slices")
    add("--once", action="store_true", help="with --stream: fill the pool and end")
    add("--every", type=float, default=0.0, metavar="S", help="with --stream: seconds from one renewal to the next")


def run(args: argparse.Namespace, *, contrasts: tuple[str, ...], spacing: tuple[float, float, float]) -> int:
    """Fill the pool, then renew it until a signal or Ctrl-C."""
    if args.anatomy is None:
        raise ValueError("--stream needs --anatomy DIR, a folder of label maps in FreeSurfer's numbering")
    if args.size < 1 or args.validation < 0 or args.depth < 1 or args.every < 0:
        raise ValueError("--size and --depth must be at least 1, --validation and --every 0 or more")
    pool = absolute(args.stream)
    recipe = Recipe(
        anatomies=tuple(label_maps(args.anatomy)),
        contrasts=contrasts or MODALITIES,
        spacing=spacing,
        canvases=_canvases(args.canvas),
        depth=args.depth,
        masks=tuple(label_maps(args.lesions)) if args.lesions else (),
        seed=args.seed,
    )
    pool.mkdir(parents=True, exist_ok=True)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    made = 0
    try:
        with alone(pool):
            for _ in tqdm(fill(pool, recipe, size=args.size, validation=args.validation), desc="pool", unit="subject"):
                made += 1
            if args.once:
                return 0
            began = time.monotonic()
            for _ in tqdm(stream(pool, recipe, size=args.size), desc="renewed", unit="subject"):
                made += 1
                time.sleep(max(0.0, args.every - (time.monotonic() - began)))
                began = time.monotonic()
    except _Stop:
        print(f"stopped; {made} subjects were made: {pool / 'datalist.json'}")
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
    """An argument that must be a folder."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"is not a folder: {text}")
    return path
