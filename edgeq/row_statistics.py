"""Mean, variance and mean square of rows of integers: sums are exact, the rest is IEEE float64.

For a row of N elements with the sums S1 of the elements and S2 of their squares,

    mean = S1 / N        N * variance = S2 - S1 * mean        N * mean square = S2

The product is off by less than 2**-52 of the largest S2: in the variance, by 2**-20 squared steps
of 16-bit codes. In a row of equal elements it is exact, and the variance 0.

Where N is a power of two, a mean of short rows is exact in float32, and so is what lies around it:
N * variance is the sum of squares of `x - mean`, in fewer operations.
"""

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.chain import Chain
from edgeq.longest import most_elements
from edgeq.row_sums import ROOM, Rows, row_sums

# From here on, the error of the product may exceed N * variance, which is at least 1/2 in a row
# that is not constant: the difference may be a little below zero.
_ROUNDED = 2**51
FLOAT, DOUBLE, INT64 = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64


def rows_along(x: ir.Value, axes: tuple[int, ...], max_dim: int) -> Rows:
    """Return the rows of `x` along `axes`; no size that its shape leaves open exceeds `max_dim`."""
    assert x.shape is not None
    sizes = [x.shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    length = math.prod(known) if len(known) == len(sizes) else None
    return Rows(axes, length, most_elements(sizes, max_dim))


class RowStatistics:
    """Makes the statistics of the rows of one tensor."""

    def __init__(self, chain: Chain, x: ir.Value, rows: Rows, reach: int) -> None:
        """Make nothing yet.

        Args:
            chain: Makes the nodes.
            x: Integers in float32.
            rows: Its rows.
            reach: Their largest magnitude, and the most that two of them differ by; the sums of
                the squares of a row stay within int64.
        """
        self._chain = chain
        self._x = x
        self._rows = rows
        self._reach = reach
        self._count: ir.Value | None = None

    def mean_and_variance(self) -> tuple[ir.Value, ir.Value]:
        """Return the mean and N times the variance, in float64; axes of length 1."""
        chain = self._chain
        total = row_sums(chain, self._x, self._rows, self._reach)
        mean = chain("Div", total, self.length())
        squares = self.squares()
        variance = chain("Sub", squares, chain("Mul", total, mean))
        if self._rows.longest * self._reach**2 >= _ROUNDED:
            variance = chain("Max", variance, self._number(0.0))
        return mean, variance

    def deviations(self) -> tuple[ir.Value, ir.Value] | None:
        """Return `x - mean` in float32, and N times the variance in float64, all of it exact.

        `None` where float32 or float64 might have to round, or `mean_and_variance` is faster: the
        squares of the elements themselves fit float32.
        """
        length, reach = self._rows.length, self._reach
        if length is None or length.bit_count() != 1 or reach**2 <= ROOM[FLOAT]:
            return None
        if reach * length > ROOM[FLOAT] or (reach * length) ** 2 * length > ROOM[DOUBLE]:
            return None
        chain, axes = self._chain, np.array(self._rows.axes, np.int64)
        assert self._x.shape is not None
        sizes = [1 if axis in axes else size for axis, size in enumerate(self._x.shape)]
        mean = chain("ReduceMean", self._x, chain.constant(axes), shape=sizes, keepdims=1)
        centered = chain("Sub", self._x, mean)
        wide = chain.cast(centered, DOUBLE)
        return centered, row_sums(chain, chain("Mul", wide, wide), self._rows, reach**2)

    def squares(self) -> ir.Value:
        """Return the sum of the squares, N times their mean, in float64; axes of length 1."""
        chain, bound = self._chain, self._reach**2
        wide = self._x if bound <= ROOM[FLOAT] else chain.cast(self._x, DOUBLE)
        return row_sums(chain, chain("Mul", wide, wide), self._rows, bound)

    def length(self) -> ir.Value:
        """Return N in float64: a constant, where the model knows it."""
        if self._rows.length is not None:
            return self._number(self._rows.length)
        if self._count is None:
            self._count = self._run_time_length()
        return self._count

    def length_times(self, factor: float) -> ir.Value:
        """Return `factor * N` in float64."""
        if self._rows.length is not None:
            return self._number(self._rows.length * factor)
        return self._chain("Mul", self.length(), self._number(factor))

    def over_root(self, numbers: NDArray[np.float64]) -> ir.Value:
        """Return `numbers / sqrt(N)` in float64; `numbers` have as many axes as the rows."""
        if self._rows.length is not None:
            return self._number(numbers / math.sqrt(self._rows.length))
        root = self._chain("Sqrt", self.length())
        return self._chain("Div", self._number(numbers), root, shape=numbers.shape)

    def _number(self, number: NDArray[np.float64] | float) -> ir.Value:
        """Return a constant of the rank of `x`: with fewer axes, ONNX Runtime broadcasts slowly."""
        array = np.asarray(number, np.float64)
        lead = (1,) * (len(self._x.shape or ()) - array.ndim)
        return self._chain.constant(array.reshape(lead + array.shape))

    def _run_time_length(self) -> ir.Value:
        chain, ndim = self._chain, len(self._x.shape or ())
        sizes = chain("Shape", self._x, shape=[ndim], dtype=INT64)
        counts = [
            chain.cast(chain("Gather", sizes, chain.constant(np.int64(axis)), shape=[]), DOUBLE)
            for axis in self._rows.axes
        ]
        while len(counts) > 1:
            counts[:2] = [chain("Mul", *counts[:2])]
        return counts[0]
