"""Statistics by the value of an integer input: what a diffusion model's tensors are, and when.

The range of the input is cut into equal parts, the buckets. A value's extremes and power are kept
for each: memory grows with the buckets, not with the samples.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.feeds import InputSpec

Feeds = Mapping[str, NDArray[Any]]
COUNT = 20


@dataclass(frozen=True)
class Buckets:
    """Equal parts of the range of an input.

    Attributes:
        name: Of the input.
        low: Its least value.
        high: Its greatest value.
        count: How many parts there are.
    """

    name: str
    low: int
    high: int
    count: int = COUNT

    def of(self, feeds: Feeds) -> int | None:
        """Return the bucket of a feed; None where its samples are in several, or outside."""
        values = np.unique(feeds[self.name])
        if not len(values) or values[0] < self.low or values[-1] > self.high:
            return None
        first, last = ((int(v) - self.low) * self.count for v in (values[0], values[-1]))
        span = self.high - self.low + 1
        return first // span if first // span == last // span else None

    def of_samples(self, feeds: Feeds) -> NDArray[np.int64]:
        """Return the bucket of each sample of a feed; the range holds all of them."""
        steps = np.atleast_1d(feeds[self.name]).astype(np.int64) - self.low
        return np.asarray(steps * self.count // (self.high - self.low + 1))


def find_buckets(inputs: Iterable[InputSpec]) -> Buckets | None:
    """Return the buckets of the first input with one integer for a sample and a range given."""
    for spec in inputs:
        if spec.span is not None and spec.shape is not None and len(spec.shape) < 2:
            low, high = spec.span
            return Buckets(spec.name, low, high, min(COUNT, high - low + 1))
    return None


@dataclass(frozen=True)
class BucketStatistics:
    """What a value was like in each bucket; zeros where no sample was.

    Attributes:
        count: Elements seen.
        low: The smallest.
        high: The largest.
        rms: Root mean square.
    """

    count: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    rms: tuple[float, ...]

    @property
    def spread(self) -> float:
        """The largest root mean square over the smallest; 1 where one of them is zero."""
        seen = [rms for rms, count in zip(self.rms, self.count, strict=True) if count]
        return max(seen) / min(seen) if seen and min(seen) > 0 else 1.0


class BucketMeter:
    """Builds the statistics of one value."""

    def __init__(self, buckets: int) -> None:
        self._count = np.zeros(buckets, np.int64)
        self._low, self._high, self._squares = np.zeros((3, buckets))

    def add(self, bucket: int, array: NDArray[np.float32], low: float, high: float) -> None:
        """Take in one feed's array, not empty, whose extremes are `low` and `high`."""
        new = self._count[bucket] == 0
        self._low[bucket] = low if new else min(low, self._low[bucket])
        self._high[bucket] = high if new else max(high, self._high[bucket])
        # Summed in float64, pairwise: no BLAS, whose sums depend on its threads.
        self._squares[bucket] += np.square(array, dtype=np.float64).sum()
        self._count[bucket] += array.size

    def result(self) -> BucketStatistics:
        """Return the statistics so far."""
        rms = np.sqrt(self._squares / np.maximum(self._count, 1))
        counts = tuple(int(n) for n in self._count)
        return BucketStatistics(counts, *(_reals(a) for a in (self._low, self._high, rms)))


def _reals(array: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in array)
