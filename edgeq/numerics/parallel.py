"""Work on independent parts of a batch in a few threads; numpy releases the interpreter lock.

Each part writes its own memory, so the result does not depend on how many threads there are.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

THREADS = min(2, os.cpu_count() or 1)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="edgeq-numerics")


def for_each(count: int, work: Callable[[int], None], *, worthwhile: bool = True) -> None:
    """Call `work(i)` for `i` in `range(count)`, in any order, in threads if that is worthwhile."""
    if THREADS == 1 or count < 2 or not worthwhile:
        for index in range(count):
            work(index)
        return
    todo = iter(range(count))

    def drain() -> None:
        # `next` on a range iterator is atomic under the interpreter lock: threads share the parts.
        for index in todo:
            work(index)

    for future in [_pool().submit(drain) for _ in range(THREADS)]:
        future.result()
