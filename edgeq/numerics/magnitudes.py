"""Sums of magnitudes of integer weights, piece by piece: weights may be large, copies are not."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import along

PIECE = 2**20  # elements


def pieces(shape: tuple[int, ...], axis: int) -> Iterator[slice]:
    """Yield slices along `axis` that cover it, each of about `PIECE` elements of the whole.

    >>> list(pieces((4, 2**19), 0))
    [slice(0, 2, None), slice(2, 4, None)]
    """
    size = shape[axis]
    others = math.prod(s for i, s in enumerate(shape) if i != axis % len(shape))
    count = max(1, PIECE // max(1, others))
    for start in range(0, size, count):
        yield slice(start, min(start + count, size))


def magnitude_sums(
    codes: NDArray[Any], zero_point: NDArray[Any], channel_axis: int | None, over: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return `sum |code - zero_point|` over some axes, which are dropped.

    Args:
        codes: Integers, at least one axis.
        zero_point: `()` or `(channels,)`.
        channel_axis: The axis of the channels, where `zero_point` has them.
        over: The axes that are summed over, counted from 0.

    >>> magnitude_sums(np.array([[-128, 3], [1, 2]], np.int8), np.int32(0), None, (1,))
    array([131,   3])
    """
    zero = along(np.asarray(zero_point, np.int64), channel_axis, codes.ndim)
    kept = [axis for axis in range(codes.ndim) if axis not in over]
    sums = np.zeros([codes.shape[axis] for axis in kept], np.int64)
    for piece in pieces(codes.shape, 0):
        mine = zero[piece] if zero.ndim and zero.shape[0] > 1 else zero
        units = codes[piece].astype(np.int64)
        units -= mine
        found = np.abs(units, out=units).sum(axis=over)
        if 0 in over:
            sums += found
        else:
            sums[piece] = found
    return sums
