"""monai-ext weights BUNDLE --work DIR --anatomy DIR: a pool of phantoms, a training on it, weights as they are shipped.

Each part is what a command of its own does (`phantom --stream`, `train --size phantoms,phantom_train`, `pack`), and
each goes on where it was: the same command again takes up what was stopped, at any moment and by whatever.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from monai_ext.catalogue import find_bundle
from monai_ext.files import absolute
from monai_ext.modalities import MODALITIES

PATIENCE = 60.0  # s for a process to end once it is asked to
UNFINISHED = 3  # exit status: time was up, run it again
CANVAS, DEPTH = "96x112", 80  # voxels of 2 mm: a head


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="a bundle's name or folder")
    add("--work", type=Path, required=True, metavar="DIR", help="where pool and checkpoints are, kept between calls")
    add("--pool", type=Path, metavar="DIR", help="one that several trainings share (default: in --work)")
    add(
        "--anatomy", type=Path, metavar="DIR", help="label maps of people, as of phantom (default: the MNI152 template)"
    )
    add("--lesions", type=Path, metavar="DIR", help="masks of real infarcts, as of phantom")
    add("--flair_echo", type=float, metavar="MS", help="of the FLAIR to be made, as of phantom")
    add("--t2_echo", type=float, metavar="MS", help="the shortest of T2 scans, as of phantom")
    add("--size", type=int, default=100, metavar="N", help="phantoms at a time (default: 100)")
    add("--validation", type=int, default=12, metavar="N", help="phantoms that choose the best (default: 12)")
    add("--minutes", type=float, metavar="M", help="stop after so long; the same command goes on")
    add("--out", type=Path, metavar="FILE", help="the packed weights (default: BUNDLE.pt in --work)")
    add("--note", action="append", default=[], metavar="KEY=TEXT", help="a fact for the weights' JSON, as of pack")
    add("--id", action="append", default=[], metavar="ID=VALUE", help="what is changed in the training, by id")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when the weights are packed, 3 when `--minutes` were up before."""
    root, work = find_bundle(args.bundle), absolute(args.work)
    pool, trained = absolute(args.pool or work / "pool"), work / root.name
    phantoms = ["phantom", "--stream", pool, "--contrasts", ",".join(MODALITIES), "--spacing", 2, "--canvas", CANVAS]
    phantoms += ["--depth", DEPTH, "--size", args.size, "--validation", args.validation]
    for name in ("anatomy", "lesions", "flair_echo", "t2_echo"):
        phantoms += [] if getattr(args, name) is None else [f"--{name}", getattr(args, name)]
    train = ["train", root, "--size", "phantoms,phantom_train", "--dataset_dir", pool, "--output_dir", trained]
    train += ["--weights", trained / "model.pt"]
    for pair in args.id:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--id must be ID=VALUE, got {pair!r}")
        train += [f"--{name}", value]
    if any((trained / "checkpoints").glob("epoch_*.pt")):
        train += ["--resume", "true"]

    ends = time.monotonic() + 60 * args.minutes if args.minutes else None
    for part, beside in ((_command([*phantoms, "--once"]), None), (_command(train), _command(phantoms))):
        with _beside(beside):
            if not _run(part, seconds=None if ends is None else max(ends - time.monotonic(), 0.0)):
                print(f"{args.minutes:g} minutes are up: the same command goes on from the last whole epoch")
                return UNFINISHED
    pack = ["pack", root, "--weights", trained / "model.pt", "--pool", pool]
    pack += ["--out", args.out or work / f"{root.name}.pt"]
    for note in args.note:
        pack += ["--note", note]
    _run(_command(pack))
    return 0


def _command(words: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "monai_ext", *map(str, words)]


def _run(command: Sequence[str], *, seconds: float | None = None) -> bool:
    """Whether it ended by itself; one that fails ends us with its status, for it has said why."""
    with subprocess.Popen(command) as process:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return False
        except BaseException:
            _end(process)
            raise
    if status:
        raise SystemExit(status)
    return True


@contextmanager
def _beside(command: Sequence[str] | None) -> Iterator[None]:
    """A process, if any, for as long as the block lasts; it is said if it ended before."""
    if command is None:
        yield
        return
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
            if process.poll() is not None:
                told = (
                    f"the pool was not renewed to the end ({shlex.join(command[2:])} ended with {process.returncode})"
                )
                print(f"{told}: run that to see why", file=sys.stderr)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
