"""QuantizeLinear and DequantizeLinear: per tensor, per axis and, for weights, in blocks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from edgeq.errors import UnsupportedOperatorError
from edgeq.numerics import affine
from edgeq.numerics.parallel import blocks, for_each
from edgeq.numerics.qtype import TENSOR_TYPES, QType, qtype_of

Array = NDArray[Any]


def _target(zero_point: Array | None, output_dtype: int) -> QType:
    if zero_point is not None:
        return qtype_of(zero_point.dtype)
    if not output_dtype:
        return TENSOR_TYPES["uint8"]
    return TENSOR_TYPES[ir.DataType(output_dtype).name.lower()]


def _axis(scale: Array, axis: int, ndim: int) -> int | None:
    """Return the channel axis, `None` for one scale; a scale of shape (1,) is one scale too."""
    if scale.size == 1 and scale.ndim < 2:
        return None
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} of a tensor of {ndim} dimensions")
    return axis % ndim


def _blocked(parameter: Array, x: Array, axis: int, block_size: int) -> Array:
    """Return a blocked parameter in a shape that broadcasts to that of `x`."""
    if parameter.shape[axis] == 1:
        return parameter  # one block, however long it may be
    repeated = np.repeat(parameter, block_size, axis=axis)
    return repeated[tuple(slice(0, size) for size in x.shape)]


def _in_parts(function: Callable[[Array], Array], x: Array, dtype: DTypeLike) -> Array:
    """Return `function(x)`, computed piece by piece in threads."""
    out = np.empty(x.shape, dtype)
    source, target = x.reshape(-1), out.reshape(-1)
    pieces = blocks(x.size, 1)

    def one(index: int) -> None:
        with np.errstate(all="ignore"):
            target[pieces[index]] = function(source[pieces[index]])

    for_each(len(pieces), one)
    return out


def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    saturate: int = 1,
) -> Array:
    """`saturate(round_half_even(x / scale) + zero_point)`; for 8-bit floats, the nearest."""
    try:
        qtype = _target(zero_point, output_dtype)
    except KeyError as error:
        raise UnsupportedOperatorError(f"codes of type {error.args[0]}") from None
    if qtype.floating and not saturate:
        raise UnsupportedOperatorError("8-bit floats with saturate=0: runtimes disagree at the end")
    if qtype.floating and block_size:
        raise UnsupportedOperatorError("8-bit floats in blocks")
    zero = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)
    if not block_size:
        along = _axis(scale, axis, x.ndim)
        if along is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        if along is not None:
            return affine.quantize(x, scale, zero, qtype, along)
        return _in_parts(lambda part: affine.quantize(part, scale, zero, qtype), x, qtype.dtype)
    scale, zero = (_blocked(p, x, axis, block_size) for p in (scale, zero))
    return affine.saturate(np.rint(x / scale), zero, qtype)


def dequantize_linear(
    q: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
) -> Array:
    """`float32(q - zero_point) * scale`."""
    zero = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)
    if not block_size:
        along = _axis(scale, axis, q.ndim)
        if along is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        if along is not None:
            return affine.dequantize(q, scale, zero, along)
        return _in_parts(lambda part: affine.dequantize(part, scale, zero), q, np.float32)
    scale, zero = (_blocked(p, q, axis, block_size) for p in (scale, zero))
    return (q.astype(np.int32) - zero).astype(np.float32) * scale
