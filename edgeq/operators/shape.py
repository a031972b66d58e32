"""Operators on shapes and types: Shape, Size, Cast, Constant, ConstantOfShape, Range."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import UnsupportedOperatorError

Array = NDArray[Any]


def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """The sizes of `x`, from axis `start` to `end`."""
    return np.array(x.shape[start:end], np.int64)


def size(x: Array) -> Array:
    """The number of elements."""
    return np.array(x.size, np.int64)


def cast(x: Array, *, to: int, saturate: int = 1) -> Array:
    """`x` in another dtype, floats cut towards zero; `saturate` concerns float8 only."""
    del saturate
    target = ir.DataType(to)
    if target == ir.DataType.STRING or x.dtype.kind in "USO":
        raise UnsupportedOperatorError("a cast from or to strings")
    dtype = target.numpy()
    narrow = dtype.name in ("int4", "uint4") or x.dtype == ml_dtypes.bfloat16
    return x.astype(np.float32).astype(dtype) if narrow and x.dtype.kind != "i" else x.astype(dtype)


def cast_like(x: Array, like: Array) -> Array:
    """`x` in the dtype of `like`."""
    return x.astype(like.dtype)


def constant(
    *,
    value: Array | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
) -> Array:
    """The value of the attribute that is given."""
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return np.array(value_floats if value_float is None else value_float, np.float32)
    return np.array(value_ints if value_int is None else value_int, np.int64)


def constant_of_shape(sizes: Array, *, value: Array | None = None) -> Array:
    """One value repeated: float32 0 by default."""
    fill = np.zeros(1, np.float32) if value is None else value.reshape(-1)
    return np.full([int(s) for s in sizes], fill[0], fill.dtype)


def range_(start: Array, limit: Array, delta: Array) -> Array:
    """`start, start + delta, ...` below `limit`."""
    first, last, step = (v.reshape(-1)[0] for v in (start, limit, delta))
    count = max(0, int(np.ceil((float(last) - float(first)) / float(step))))
    return np.asarray(first + np.arange(count, dtype=start.dtype) * step, start.dtype)
