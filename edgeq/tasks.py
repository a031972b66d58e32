"""Independent pieces of work: spread over an executor, kept as they finish, given back in order.

A task is a mapping of arrays, and the work a module-level function of it that depends on nothing
else. So a result is the same wherever it is computed, and can be found again by its content.
Nothing else in edgeq knows about processes or clusters.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edgeq import __version__
from edgeq.checkpoint import digest
from edgeq.errors import EdgeqError
from edgeq.numerics.blas import single_threaded
from edgeq.passing import Context

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Function = Callable[[Arrays], dict[str, Array]]

AHEAD = 64  # tasks handed out at a time; the next is taken when one is done


class MadeTasks(Sequence[Arrays]):
    """Tasks that are made when they are asked for: few are in memory, however many there are."""

    def __init__(self, makers: Sequence[Callable[[], Arrays]]) -> None:
        """Take what makes each task."""
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, place: int) -> Arrays: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Arrays]: ...

    def __getitem__(self, place: int | slice) -> Arrays | Sequence[Arrays]:
        if isinstance(place, slice):
            return MadeTasks(self._makers[place])
        return self._makers[place]()


def run_tasks(
    function: Function, tasks: Sequence[Arrays], context: Context, stage: str
) -> list[dict[str, Array]]:
    """Return `function(task)` of each task, in order.

    Args:
        function: Pure, and at the top level of a module, so that another process finds it. It
            draws random numbers from a seed in its task alone.
        tasks: Arrays of numbers or text by name, options included; large ones are `MadeTasks`.
        context: Its `executor` computes (None: this process), its `checkpoint` keeps.
        stage: What the progress is called.

    Raises:
        EdgeqError: The executor broke down; what was finished is kept. Or what a task raises.
    """
    total, results = len(tasks), dict[int, dict[str, Array]]()
    context.progress(stage, 0, total)

    def done(place: int, key: str, result: dict[str, Array]) -> None:
        if context.checkpoint is not None:
            context.checkpoint.save(key, result)
        found(place, result)

    def found(place: int, result: dict[str, Array]) -> None:
        results[place] = result
        context.progress(stage, len(results), total)

    waiting = deque(range(total))
    running: dict[Future[dict[str, Array]], tuple[int, str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < AHEAD:
                place = waiting.popleft()
                task = tasks[place]
                key = digest(_words(function), task)
                kept = None if context.checkpoint is None else context.checkpoint.load(key)
                if kept is not None:
                    found(place, kept)
                elif context.executor is None:
                    done(place, key, alone(function, task))
                else:
                    running[context.executor.submit(alone, function, task)] = place, key
            ended = wait(running, return_when=FIRST_COMPLETED).done
            for future in sorted(ended, key=_failed):  # what is finished is kept first
                done(*running.pop(future), future.result())
    except (BrokenExecutor, CancelledError) as error:
        note = "" if context.checkpoint is None else "; what is finished is kept"
        raise EdgeqError(
            f"{stage}: a worker is gone ({type(error).__name__}), for want of memory perhaps{note}."
            " Try again, with fewer workers"
        ) from error
    finally:
        for future in running:
            future.cancel()
    return [results[place] for place in range(total)]


def alone(function: Function, task: Arrays) -> dict[str, Array]:
    """Return `function(task)`, computed with one thread of BLAS.

    The order in which a product adds up, and so its last bits, depend on the number of threads.
    """
    with single_threaded():
        return function(task)


def _failed(future: Future[dict[str, Array]]) -> bool:
    return future.cancelled() or future.exception() is not None


def _words(function: Function) -> tuple[str, ...]:
    """Return what a result depends on beside its task."""
    return function.__module__, function.__qualname__, __version__, np.__version__
