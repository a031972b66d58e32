"""Mean, variance and mean square of rows of integers: sums are exact, the rest is IEEE float64.

For a row of N elements with the sums S1 of the elements and S2 of their squares,

    mean = S1 / N        variance = (N * S2 - S1 * S1) / N**2        mean square = N * S2 / N**2

The numerators are exact up to 2**53; beyond, both products are rounded: by less than 2**-52 of the
largest element's square, times N**2.
"""

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.chain import Chain
from edgeq.longest import most_elements
from edgeq.row_sums import ROOM, Rows, row_sums

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
            reach: Their largest magnitude; the sums of the squares of a row stay within int64.
        """
        self._chain = chain
        self._x = x
        self._rows = rows
        self._reach = reach
        self._counts: list[ir.Value] = []

    def mean_and_variance(self) -> tuple[ir.Value, ir.Value]:
        """Return the mean in float32, and N**2 times the variance in float64; no axes of rows."""
        chain = self._chain
        total = row_sums(chain, self._x, self._rows, self._reach)
        mean = chain.cast(chain("Div", total, self.lengths()), FLOAT)
        variance = chain("Sub", self.mean_square(), chain("Mul", total, total))
        if (self._rows.longest * self._reach) ** 2 > ROOM[DOUBLE]:
            # The difference of rounded products may be a little below zero.
            variance = chain("Max", variance, chain.constant(np.float64(0)))
        return mean, variance

    def mean_square(self) -> ir.Value:
        """Return N**2 times the mean square in float64; no axes of rows."""
        chain, bound = self._chain, self._reach**2
        wide = self._x if bound <= ROOM[FLOAT] else chain.cast(self._x, DOUBLE)
        total = row_sums(chain, chain("Mul", wide, wide), self._rows, bound)
        return chain("Mul", total, self.lengths())

    def lengths(self, factor: NDArray[np.float64] | float = 1.0, *, power: int = 1) -> ir.Value:
        """Return `factor * N**power` in float64: a constant, where the model knows N."""
        factor = np.asarray(factor, np.float64)
        if self._rows.length is not None:
            return self._chain.constant(np.asarray(factor * float(self._rows.length**power)))
        result = self._run_time_length()
        for _ in range(power - 1):
            result = self._chain("Mul", result, self._run_time_length())
        if not factor.ndim and factor == 1:
            return result
        return self._chain("Mul", self._chain.constant(factor), result)

    def _run_time_length(self) -> ir.Value:
        """Return N in float64, computed from the shape."""
        if not self._counts:
            chain, ndim = self._chain, len(self._x.shape or ())
            sizes = chain("Shape", self._x, shape=[ndim], dtype=INT64)
            for axis in self._rows.axes:
                size = chain("Gather", sizes, chain.constant(np.int64(axis)), shape=[])
                self._counts.append(chain.cast(size, DOUBLE))
            while len(self._counts) > 1:
                self._counts[:2] = [chain("Mul", *self._counts[:2])]
        return self._counts[0]
