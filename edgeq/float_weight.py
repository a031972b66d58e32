"""What the codes of a weight were rounded from, for whoever rounds it anew."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics import grid
from edgeq.numerics.affine import along
from edgeq.numerics.qtype import QType

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class FloatWeight:
    """A weight before it was rounded: `weight ~ (codes - zero_point) * scale`.

    The codes are `base << shift`, with `base` on the grid of `qtype`. Everything here counts from
    real 0: codes of asymmetric weights have their zero point to add.

    Attributes:
        weight: float32, the shape of the codes.
        qtype: The grid of the base.
        limit: The largest magnitude of a base.
        shift: None, or int32 that broadcasts against the codes.
        axis: The channel axis of the scale; None for one scale.
    """

    weight: NDArray[np.float32]
    qtype: QType
    limit: int
    shift: NDArray[np.int32] | None = None
    axis: int | None = None

    def units(self, scale: Array) -> NDArray[np.float32]:
        """Return the weight in steps of the base, by one float32 division.

        Args:
            scale: float32, `()` or `(channels,)`, of the codes.
        """
        step = along(np.asarray(scale, np.float32), self.axis, self.weight.ndim)
        if self.shift is not None:
            step = np.ldexp(step, self.shift)
        return np.asarray(self.weight / step, np.float32)

    def nearest(self, units: Array) -> Array:
        """Return the nearest base, ties to the even one: integral, of the dtype of `units`."""
        return grid.nearest(units, self.qtype, self.limit)

    def below(self, units: Array) -> Array:
        """Return the largest base that is at most `units`, or the smallest base of all."""
        return grid.below(units, self.qtype, self.limit)

    def above(self, units: Array) -> Array:
        """Return the smallest base greater than `units`, or the largest base of all."""
        return grid.above(units, self.qtype, self.limit)

    def codes(self, base: Array) -> NDArray[np.int8]:
        """Return the codes of an integral base on the grid."""
        shift = 0 if self.shift is None else self.shift
        codes = np.left_shift(np.asarray(base).astype(np.int32), shift)
        narrow = codes.astype(np.int8)
        assert np.array_equal(narrow, codes), "a shifted code fits 8 bits"
        return narrow
