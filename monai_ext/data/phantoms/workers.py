"""Several processes that make phantoms at once, the anatomies read once for all of them."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from monai_ext.data.phantoms.anatomy import Anatomy, read_anatomy, remember
from monai_ext.runtime import keep_freed_memory

Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # as map, but results come as they are ready


@contextmanager
def workers(anatomies: Sequence[Path], *, step: float, count: int) -> Iterator[Each]:
    """Give a map over processes of one thread, which know these anatomies.

    Args:
        anatomies: label maps, read once.
        step: what they are read at, in mm.
        count: of processes; 1 is this one.

    Returns:
        As the builtin map, but results come as they are ready.

    Raises:
        ValueError: `count` is below 1, or an anatomy cannot be read.
    """
    if count < 1:
        raise ValueError(f"--jobs must be at least 1, got {count}")
    if count == 1:
        keep_freed_memory()
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that has torch's threads can hang
    with ProcessPoolExecutor(count, context, _begin) as readers:
        read = list(readers.map(read_anatomy, anatomies, [step] * len(anatomies)))
    shared = [(path, step, anatomy) for path, anatomy in zip(anatomies, read, strict=True)]
    for anatomy in read:
        anatomy.stored.share_memory_()
    pool = ProcessPoolExecutor(count, context, _begin, (shared,))
    try:
        yield lambda call, items: _in_flight(pool, call, items, count)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(shared: Iterable[tuple[Path, float, Anatomy]] = ()) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that gives the work out
    torch.set_num_threads(1)
    keep_freed_memory()  # of which a phantom takes and gives back hundreds of MB at a time, a third of its seconds
    for path, step, anatomy in shared:
        remember(path, step, anatomy)


def _in_flight(
    pool: ProcessPoolExecutor, call: Callable[[Any], Any], items: Iterable[Any], count: int
) -> Iterator[Any]:
    """What `call` gives for each, never more of them under way than there are processes."""
    left = iter(items)
    running: set[Future[Any]] = {pool.submit(call, item) for item in islice(left, count)}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(call, item) for item in islice(left, len(done))}
        for future in done:
            yield future.result()
