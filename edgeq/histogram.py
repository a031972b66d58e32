"""A histogram that grows with its data: a fixed number of bins, updated in place.

Bin widths are powers of two and edges are their multiples. So one edge is 0, bins merge in pairs
without rounding, and the result depends on the set of values only, not on their order: it is
what one pass over all values with the final edges would give.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 2048
BLOCK = 2**15  # elements binned at once: temporaries stay in the cache, and small
# Below this, values are zeros to float32 kernels that flush denormals; widths stay exact.
_SMALLEST_EXPONENT = -140


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values in bins of equal width, exact zeros apart.

    Attributes:
        counts: int64, `(bins,)`; bin i holds values in `[edges[i], edges[i + 1])`, zeros excepted.
        edges: float64, `(bins + 1,)`, multiples of the width; 0 is one of them.
        zeros: How many values are exactly 0: behind a Relu they would outweigh every bin.
    """

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    zeros: int

    @property
    def total(self) -> int:
        """How many values there are."""
        return int(self.counts.sum()) + self.zeros

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(self.edges[1] - self.edges[0])


class GrowingHistogram:
    """Counts values, and doubles its bins' width whenever they leave its range."""

    def __init__(self, bins: int = BINS) -> None:
        assert bins % 2 == 0
        self._counts = np.zeros(bins, np.int64)
        self._start = 0  # the first bin's lower edge, in widths
        self._exponent: int | None = None  # the width is 2**exponent; None before any value
        self._zeros = 0
        self._low = self._high = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count `values`, of any shape, all finite."""
        if not values.size:
            return
        flat = values.reshape(-1)
        zeros = flat.size - int(np.count_nonzero(flat))
        self._zeros += zeros
        if zeros == flat.size:
            return
        self._grow(float(flat.min()), float(flat.max()))
        assert self._exponent is not None
        factor = 2.0**-self._exponent
        for start in range(0, flat.size, BLOCK):
            # In float64 scaling by a power of two is exact for float32's denormals too, so floor
            # finds the bin without rounding.
            bins = np.multiply(flat[start : start + BLOCK], factor, dtype=np.float64)
            np.floor(bins, out=bins)
            bins -= self._start
            self._counts += np.bincount(bins.astype(np.intp), minlength=len(self._counts))
        self._counts[-self._start] -= zeros

    def _grow(self, low: float, high: float) -> None:
        """Let [low, high] and 0 fit."""
        self._low, self._high = min(self._low, low), max(self._high, high)
        exponent = self._exponent
        if exponent is None:
            exponent = _first_exponent(self._low, self._high, len(self._counts))
        start, stop = _bins(self._low, self._high, exponent)
        while stop - start > len(self._counts):
            exponent += 1
            start, stop = _bins(self._low, self._high, exponent)
        if self._exponent is not None:
            self._merge(exponent - self._exponent, start)
        self._exponent, self._start = exponent, start

    def _merge(self, doublings: int, start: int) -> None:
        """Move the counts to bins `2**doublings` times as wide, the first one at `start`."""
        used = np.flatnonzero(self._counts)
        places = ((used + self._start) >> doublings) - start
        merged = np.zeros_like(self._counts)
        np.add.at(merged, places, self._counts[used])
        self._counts = merged

    def view(self) -> Histogram:
        """Return what was counted so far; only the bins between the extremes and 0."""
        exponent = 0 if self._exponent is None else self._exponent
        start, stop = _bins(self._low, self._high, exponent)
        counts = self._counts[start - self._start : stop - self._start].copy()
        edges = np.ldexp(np.arange(start, stop + 1, dtype=np.float64), exponent)
        return Histogram(counts, edges, self._zeros)


def _first_exponent(low: float, high: float, bins: int) -> int:
    """Return the exponent of the narrowest bins, near enough from below, that hold [low, high]."""
    _, exponent = np.frexp((high - low) / bins)
    return max(int(exponent) - 1, _SMALLEST_EXPONENT)


def _bins(low: float, high: float, exponent: int) -> tuple[int, int]:
    """Return the bins, by their lower edge in widths, that hold [low, high] and 0."""
    start = int(np.floor(np.ldexp(low, -exponent)))
    stop = int(np.floor(np.ldexp(high, -exponent))) + 1
    return start, stop
