"""A bounded number of rows of what layers read, picked from streamed samples.

Rows are what lies along axis 0: images in front of a Conv, tokens in front of a Gemm. Each row of
each sample gets a random key, and those with the smallest keys stay: every row has the same chance,
however many there are, and memory grows with neither samples nor layers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.buckets import Buckets
from edgeq.calibrate import tapped_session
from edgeq.runtime import run

Array = NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of one value.

    Attributes:
        x: float32, (rows, channels, ...).
        bucket: int64, (rows,): which part of the range of the integer input each one is from; -1
            where that is not known.
    """

    x: NDArray[np.float32]
    bucket: NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """How much is looked at, and kept.

    Attributes:
        samples: Feeds, spread evenly over the calibration set.
        rows: Of each value.
        megabytes: Of each value; wide rows are kept in smaller number.
        together: Megabytes of the values that one sweep over the samples keeps.
    """

    samples: int = 128
    rows: int = 2048
    megabytes: int = 8
    together: int = 256


def sampled_rows(
    model: ir.Model,
    samples: Iterable[Feeds],
    names: Sequence[str],
    *,
    budget: Budget,
    buckets: Buckets | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, Rows]]:
    """Yield each value's name with some of its rows, in the order of `names`.

    Args:
        model: Float model; not changed.
        samples: Iterated once for each group of values that fits the budget.
        names: Values that the model computes.
        budget: What to look at.
        buckets: What tells rows apart.
        seed: Of the choice.
    """
    count = max(1, budget.together // budget.megabytes)
    for start in range(0, len(names), count):
        group = list(dict.fromkeys(names[start : start + count]))
        kept = {name: _Reservoir(budget, seed + start + i) for i, name in enumerate(group)}
        session = tapped_session(model, group)
        for feed in _spread(samples, budget.samples):
            bucket = None if buckets is None else buckets.of(feed)
            found = run(session, feed)
            for name in group:
                kept[name].add(found[name], -1 if bucket is None else bucket)
        for name in group:
            yield name, kept.pop(name).rows()


def _spread(samples: Iterable[Feeds], wanted: int) -> Iterator[Feeds]:
    """Yield at most `wanted` feeds: every n-th where their number is known, else the first."""
    count = getattr(samples, "count", None)
    total = count if isinstance(count, int) else None
    step = 1 if total is None else -(-total // wanted)
    for index, feed in enumerate(samples):
        if index >= wanted * step:
            return
        if index % step == 0:
            yield feed


class _Reservoir:
    """The rows with the smallest keys so far."""

    def __init__(self, budget: Budget, seed: int) -> None:
        self._budget = budget
        self._random = np.random.default_rng(seed)
        self._keys = np.zeros(0)
        self._buckets = np.zeros(0, np.int64)
        self._x: NDArray[np.float32] | None = None

    def add(self, array: NDArray[np.float32], bucket: int) -> None:
        if not array.size:
            return
        if self._x is None or self._x.shape[1:] != array.shape[1:]:
            if self._x is not None:  # images of another size: those that came first stay
                return
            self._x = array[:0]
        room = self._budget.megabytes * 2**20 // max(1, array[:1].nbytes)
        limit = max(1, min(self._budget.rows, room))
        keys = np.concatenate([self._keys, self._random.random(len(array))])
        first = np.sort(np.argsort(keys, kind="stable")[:limit])
        old, new = first[first < len(self._keys)], first[first >= len(self._keys)]
        if not len(new):
            return
        self._x = np.concatenate([self._x[old], array[new - len(self._keys)]])
        self._buckets = np.concatenate([self._buckets[old], np.full(len(new), bucket)])
        self._keys = keys[first]

    def rows(self) -> Rows:
        assert self._x is not None, "samples have rows"
        return Rows(self._x, self._buckets)
