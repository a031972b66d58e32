"""Reductions over axes. A mean is one sum and one division."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.operators.elementwise import divide

Array = NDArray[Any]


def _axes(x: Array, axes: Array | None, noop: int) -> tuple[int, ...]:
    if axes is not None and axes.size:
        return tuple(int(a) % x.ndim for a in axes.reshape(-1))
    return () if noop else tuple(range(x.ndim))


def _reduce(function: np.ufunc, x: Array, axes: Array | None, keepdims: int, noop: int) -> Array:
    over = _axes(x, axes, noop)
    out = np.asarray(function.reduce(x, axis=over, keepdims=True))
    out = out if keepdims else np.squeeze(out, over)
    return out.astype(x.dtype, copy=False)  # numpy sums narrow integers in int64


def reduce_sum(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """The sum, in the dtype of `x`."""
    return _reduce(np.add, x, axes, keepdims, noop_with_empty_axes)


def reduce_mean(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """The sum divided by the number of elements, once."""
    over = _axes(x, axes, noop_with_empty_axes)
    count = x.dtype.type(int(np.prod([x.shape[a] for a in over])))
    return divide(_reduce(np.add, x, axes, keepdims, noop_with_empty_axes), count)


def reduce_max(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """The largest element."""
    return _reduce(np.maximum, x, axes, keepdims, noop_with_empty_axes)


def reduce_min(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """The smallest element."""
    return _reduce(np.minimum, x, axes, keepdims, noop_with_empty_axes)


def reduce_prod(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """The product."""
    return _reduce(np.multiply, x, axes, keepdims, noop_with_empty_axes)


def reduce_sum_square(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """The sum of squares, in the dtype of `x`."""
    return _reduce(np.add, x * x, axes, keepdims, noop_with_empty_axes)


def arg_max(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The place of the largest element, the first or last of equals."""
    if not select_last_index:
        out = np.argmax(x, axis=axis, keepdims=bool(keepdims))
    else:
        flipped = np.argmax(np.flip(x, axis), axis=axis, keepdims=bool(keepdims))
        out = x.shape[axis] - 1 - flipped
    return np.asarray(out, np.int64)


def cumulative_sum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running sums along one axis."""
    along = int(axis.reshape(()))
    x = np.flip(x, along) if reverse else x
    out = np.cumsum(x, axis=along, dtype=x.dtype)
    if exclusive:
        out = out - x
    return np.flip(out, along) if reverse else out
