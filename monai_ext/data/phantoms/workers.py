"""Several processes that make phantoms at once, the anatomies read once for all of them."""

import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from torch import multiprocessing

from monai_ext.data.phantoms.anatomy import Anatomy, read_anatomy, remember
from monai_ext.data.phantoms.pool import Jobs, Put, Recipe


@contextmanager
def workers(recipe: Recipe, *, count: int) -> Iterator[Jobs | None]:
    """Give what `fill` and `stream` take as `jobs`: `count` processes, of one thread each; None where one is enough.

    Raises:
        ValueError: `count` is below 1, or an anatomy cannot be read.
    """
    if count < 1:
        raise ValueError(f"--jobs must be at least 1, got {count}")
    if count == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin) as readers:
        read = list(readers.map(_read, recipe.anatomies, [recipe.step] * len(recipe.anatomies)))
    known = [(path, recipe.step, anatomy) for path, anatomy in zip(recipe.anatomies, read, strict=True)]
    for _, _, anatomy in known:
        anatomy.stored.share_memory_()
    pool = ProcessPoolExecutor(count, context, _begin, (known,))
    try:
        yield lambda put, wanted: _in_flight(pool, put, wanted, count)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(known: Iterable[tuple[Path, float, Anatomy]] = ()) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that gives the work out
    torch.set_num_threads(1)
    for path, step, anatomy in known:
        remember(path, step, anatomy)


def _read(path: Path, step: float) -> Anatomy:
    return read_anatomy(path, step)


def _in_flight(pool: ProcessPoolExecutor, put: Put, wanted: Iterable[tuple[str, int]], count: int) -> Iterator[str]:
    """The slots as they are filled, never more under way than there are processes."""
    calls = iter(wanted)
    running: set[Future[str]] = {pool.submit(put, *call) for call in islice(calls, count)}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(put, *call) for call in islice(calls, len(done))}
        for future in done:
            yield future.result()
