"""A dask.distributed cluster as an executor: the one module that knows of dask.

A worker that dies takes nothing with it: the scheduler gives its tasks to another.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from edgeq.errors import DataError
from edgeq.versions import versions

SECONDS = 10  # to answer


@contextmanager
def connect(address: str) -> Iterator[Executor]:
    """Give the executor of the scheduler at `address`: `tcp://10.0.0.1:8786`.

    Raises:
        DataError: dask.distributed is not installed, nothing answers, there is no worker, or one
            has other versions than this machine, and so might compute other bits.
    """
    try:
        import distributed
    except ImportError as error:
        raise DataError(
            f"--cluster needs dask.distributed ({error}): pip install edgeq[cluster]"
        ) from error
    try:
        client = distributed.Client(address, timeout=SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--cluster {address}: no scheduler answers ({error}); give the address that"
            " `dask scheduler` prints"
        ) from error
    with client:
        _check_workers(client, address)
        yield client.get_executor()


def _check_workers(client: Any, address: str) -> None:  # noqa: ANN401  # dask has no types
    try:
        found: dict[str, dict[str, str]] = client.run(versions)
    except ImportError as error:  # of edgeq, there
        raise DataError(f"--cluster {address}: {error} on a worker: install edgeq there") from error
    if not found:
        raise DataError(f"--cluster {address}: it has no worker; start one with `dask worker`")
    mine = versions()
    for worker, theirs in found.items():
        for package in ("edgeq", "numpy"):
            if theirs[package] != mine[package]:
                raise DataError(
                    f"--cluster {address}: worker {worker} has {package} {theirs[package]}, this"
                    f" machine {mine[package]}: install the same, so that bits are the same"
                )
