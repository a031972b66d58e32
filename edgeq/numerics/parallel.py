"""Work on independent parts of a batch in a few threads; numpy releases the interpreter lock.

Each part writes its own memory, so the result does not depend on how many threads there are.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

from edgeq.numerics.blas import single_threaded

THREADS = min(2, os.cpu_count() or 1)
# Elements that one numpy call should treat. Shorter calls (a few microseconds) fight for the
# interpreter lock and two threads are slower than one (measured); longer ones leave the cache.
GRAIN = 240_000


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="edgeq-numerics")


_local = threading.local()


def together(tasks: Sequence[Callable[[], None]]) -> None:
    """Run `tasks`, of which there are at most `THREADS`, at the same time, each in one thread."""

    def alone(task: Callable[[], None]) -> None:
        _local.busy = True  # what it calls shall not cut its work into threads again
        try:
            task()
        finally:
            _local.busy = False

    with single_threaded():
        others = [_pool().submit(alone, task) for task in tasks[1:]]
        try:
            alone(tasks[0])
        finally:
            errors = [future.exception() for future in others]  # waits for all of them
        for error in filter(None, errors):
            raise error


def _busy() -> bool:
    """Whether this thread has a share of the whole work already."""
    return getattr(_local, "busy", False)


def for_each(count: int, work: Callable[[int], None], *, worthwhile: bool = True) -> None:
    """Call `work(i)` for `i` in `range(count)`, in any order, in threads if that is worthwhile."""
    if THREADS == 1 or count < 2 or not worthwhile or _busy():
        for index in range(count):
            work(index)
        return
    todo = iter(range(count))

    def drain() -> None:
        # `next` on a range iterator is atomic under the interpreter lock: threads share the parts.
        for index in todo:
            work(index)

    with single_threaded():
        others = [_pool().submit(drain) for _ in range(min(THREADS, count) - 1)]
        try:
            drain()
        finally:
            errors = [future.exception() for future in others]  # waits for all of them
        for error in filter(None, errors):
            raise error


def blocks(rows: int, width: int) -> list[slice]:
    """Cut `rows` of `width` elements into even slices of about `GRAIN` elements each."""
    parts = max(1, min(rows, round(rows * width / GRAIN)))
    cuts = [rows * part // parts for part in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(cuts)]


def parts(rows: int, width: int) -> list[slice]:
    """Cut `rows` as `blocks` does, but into one part per thread that will share them at least."""
    most = max(1, rows if _busy() else -(-rows // THREADS))
    step = min(most, max(1, round(GRAIN / max(1, width))))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]
