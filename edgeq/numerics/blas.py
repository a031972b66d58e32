"""Keep OpenBLAS from starting threads of its own below threads that already share the work.

Its workers spin for a while after each product, which costs the calling threads a third of their
time. Speed only: with another BLAS, or when the library cannot be found, nothing happens.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

_lock = threading.Lock()
_nested = 0
_before = 0


@lru_cache(maxsize=1)
def _controls() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return OpenBLAS's getter and setter of its number of threads, in numpy's own copy of it."""
    folders = [Path(np.__file__).parent.parent / "numpy.libs", Path(np.__file__).parent / ".dylibs"]
    for path in sorted(p for folder in folders if folder.is_dir() for p in folder.iterdir()):
        if "openblas" not in path.name:
            continue
        library = ctypes.CDLL(str(path))
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            getter = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
            setter = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
            if getter is not None and setter is not None:
                return getter, setter
    return None


@contextmanager
def single_threaded() -> Iterator[None]:
    """While the context is open, BLAS computes in the thread that calls it."""
    global _nested, _before
    controls = _controls()
    if controls is None:
        yield
        return
    get, set_ = controls
    with _lock:
        if _nested == 0:
            _before = get()
            set_(1)
        _nested += 1
    try:
        yield
    finally:
        with _lock:
            _nested -= 1
            if _nested == 0:
                set_(_before)
