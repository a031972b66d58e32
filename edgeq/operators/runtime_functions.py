"""ONNX Runtime's fused functions of codes, which read tables: the same formulas on every CPU.

Parameters are the operators' inputs, as in `edgeq.operators.runtime_kernels`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UnpredictableError
from edgeq.numerics.affine import QParams
from edgeq.numerics.ort_kernels import lookup_table
from edgeq.numerics.qtype import qtype_of
from edgeq.proofs import certify_unary

Array = NDArray[Any]

LARGEST_TERM = 0x7FFFFF  # of a QLinearSoftmax: what its table gives the largest element of a row


def per_tensor(scale: Array, zero_point: Array | None, dtype: np.dtype[Any]) -> QParams:
    """Return the parameters of a tensor whose codes have `dtype`."""
    zero = np.zeros((), np.int32) if zero_point is None else zero_point.astype(np.int32)
    scale = np.asarray(scale, np.float32).reshape(())
    return QParams(qtype_of(dtype), scale, zero.reshape(()))


def of_result(scale: Array, zero_point: Array | None, codes: Array) -> QParams:
    """Return the parameters of a result whose format is that of its zero point, or of `codes`."""
    dtype = codes.dtype if zero_point is None else zero_point.dtype
    return per_tensor(scale, zero_point, dtype)


def _leaky_relu(
    x: Array,
    sx: Array,
    zx: Array | None,
    sy: Array,
    zy: Array | None = None,
    *,
    alpha: float = 0.01,
) -> Array:
    params, y = per_tensor(sx, zx, x.dtype), of_result(sy, zy, x)
    factor = np.float32(alpha)
    table = lookup_table(lambda r: np.where(r >= 0, r, r * factor), params, y)
    return np.asarray(table[x.astype(np.int32) - params.qtype.qmin])


def _sigmoid(x: Array, sx: Array, zx: Array | None, sy: Array, zy: Array | None = None) -> Array:
    params, y = per_tensor(sx, zx, x.dtype), of_result(sy, zy, x)
    if not certify_unary(_logistic, params, y).certain:
        raise UnpredictableError("a result is so near a tie that the CPU's own exp decides")
    table = lookup_table(lambda r: _logistic(r).astype(np.float32), params, y)
    return np.asarray(table[x.astype(np.int32) - params.qtype.qmin])


def _logistic(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def _softmax(
    x: Array,
    sx: Array,
    zx: Array | None,
    sy: Array,
    zy: Array | None = None,
    *,
    axis: int = -1,
    opset: int = 13,
) -> Array:
    """Return shares of the terms in a table, each rounded: float32, added in order.

    `1 / sy` is cut to an integer. Codes beyond 255 become 255, and int8 keeps their lowest 8 bits.
    """
    if opset < 13:
        raise UnpredictableError("the Softmax of an opset before 13 flattens what it reads")
    y = of_result(sy, zy, x)
    rows = np.moveaxis(x.astype(np.int64), axis, -1)
    factor = min(float(np.iinfo(np.uint32).max) / rows.shape[-1], float(LARGEST_TERM))
    below = np.arange(256, dtype=np.float64) * float(np.asarray(sx, np.float32).reshape(()))
    table = (factor * np.exp(-below)).astype(np.float32)
    terms = table[rows.max(-1, keepdims=True) - rows]
    sums = np.add.accumulate(terms, -1)[..., -1:]
    steps = np.floor(np.float32(1) / y.scale)
    codes = np.rint(terms * steps / sums).astype(np.int64) + int(y.zero_point)
    return np.asarray(np.moveaxis(np.minimum(codes, 255), -1, axis)).astype(y.qtype.dtype)


FUNCTIONS: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {"QLinearLeakyRelu": _leaky_relu, "QLinearSigmoid": _sigmoid, "QLinearSoftmax": _softmax}
)
