"""Where tasks are computed: in this process, in a pool of processes, or on a cluster."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from edgeq.cluster import connect
from edgeq.errors import DataError


@contextmanager
def open_executor(
    executor: Executor | None = None, *, workers: int = 1, cluster: str | None = None
) -> Iterator[Executor | None]:
    """Give what computes tasks; None for this process.

    Args:
        executor: The caller's own, which stays open.
        workers: Processes on this machine.
        cluster: Address of a dask.distributed scheduler.

    Raises:
        DataError: More than one of them is asked for, or the cluster cannot be used.
    """
    if workers < 1:
        raise DataError(f"--workers {workers}: give at least 1")
    if sum((executor is not None, workers > 1, cluster is not None)) > 1:
        raise DataError("give one of executor, --workers and --cluster")
    if cluster is not None:
        with connect(cluster) as connected:
            yield connected
    elif workers > 1:
        with _processes(workers) as pool:
            yield pool
    else:
        yield executor


@contextmanager
def _processes(count: int) -> Iterator[Executor]:
    """Give a pool of processes, which do not outlive an interrupt."""
    # Not forked: threads of the runtime would be copied without what they do.
    method = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, mp_context=method, initializer=_leave_interrupts)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown()


def _leave_interrupts() -> None:
    """Let the parent alone answer Ctrl-C, which the terminal sends to all of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
