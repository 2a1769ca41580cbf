"""Subjects one beside another in processes of their own; one whose process is killed is that subject's fault alone."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
KILLED = "its process was killed, alone too: most likely it needs more memory than there is"


def side_by_side(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int,
    begin: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> Iterator[tuple[Item, Result | None]]:
    """Give what becomes of each, as it is known, from fresh processes: torch's and ITK's threads do not survive a fork.

    A process that dies takes the pool with it. Those that were begun are tried again, one at a time.

    Args:
        work: what is done with an item; it can be pickled.
        items: can be pickled too.
        jobs: processes at a time.
        begin: is called at the beginning of each process.
        given: what `begin` is called with.

    Returns:
        Each item with the work's result, None of one whose process was killed when it was alone too.

    Raises:
        BaseException: what the work raises; no other item is begun then.
    """
    waiting = list(range(len(items)))
    while waiting:
        unfinished = yield from _pooled(work, items, waiting, jobs, begin, given)
        # They begin in order: one of the first `jobs` was the pool's end.
        for number in unfinished[:jobs]:
            if (yield from _pooled(work, items, [number], 1, begin, given)):
                yield items[number], None
        waiting = unfinished[jobs:]


def _pooled(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    numbers: Sequence[int],
    jobs: int,
    begin: Callable[..., None] | None,
    given: tuple[Any, ...],
) -> Generator[tuple[Item, Result | None], None, list[int]]:
    """The results from one pool; returned are the numbers of those that a process's death left without one."""
    finished = set()
    with ProcessPoolExecutor(min(jobs, len(numbers)), get_context("spawn"), begin, given) as pool:
        futures: dict[Future[Result], int] = {}
        try:
            with suppress(BrokenProcessPool):  # before all were handed over
                for number in numbers:
                    futures[pool.submit(work, items[number])] = number
            for future in as_completed(futures):
                with suppress(BrokenProcessPool):
                    result = future.result()
                    finished.add(futures[future])
                    yield items[futures[future]], result
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # a full disk, or Ctrl-C: begin no other
            raise
    return [number for number in numbers if number not in finished]
