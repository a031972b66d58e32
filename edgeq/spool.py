"""Feeds that can be read once, kept on disk so that they can be read again.

The file has no name that others see and goes when its owner does. It holds `.npy` records, one feed
after another: memory is for one feed.
"""

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgeq.errors import DataError

Array = NDArray[Any]
_WITHOUT, _WITH = b"0", b"1"  # before each feed: whether a label follows its arrays


class Spool:
    """Feeds on disk: added once, read many times, also at the same time.

    Attributes:
        count: How many feeds it holds.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Open an empty spool for feeds with the arrays `names`."""
        self.count = 0
        self._names = tuple(names)
        self._file = tempfile.TemporaryFile(prefix="edgeq-")  # noqa: SIM115  # lives with its owner
        weakref.finalize(self, self._file.close)
        self._end = 0

    def add(self, feed: dict[str, Array], label: Array | None) -> None:
        """Append a feed.

        Raises:
            DataError: The disk is full.
        """
        try:
            self._file.seek(self._end)
            self._file.write(_WITHOUT if label is None else _WITH)
            for array in (*(feed[n] for n in self._names), *([] if label is None else [label])):
                npy.write_array(self._file, array, allow_pickle=False)
            self._file.flush()
            self._end = self._file.tell()
        except OSError as error:
            raise DataError(
                f"cannot keep the samples in {tempfile.gettempdir()} ({error}); set TMPDIR to a"
                " folder with more space, or give data that can be read again"
            ) from error
        self.count += 1

    def __iter__(self) -> Iterator[tuple[dict[str, Array], Array | None]]:
        position = 0
        while position < self._end:
            self._file.seek(position)
            labelled = self._file.read(1) == _WITH
            feed = {name: self._next() for name in self._names}
            label = self._next() if labelled else None
            position = self._file.tell()
            yield feed, label

    def _next(self) -> Array:
        return np.asarray(npy.read_array(self._file, allow_pickle=False))
