"""Operators that treat each element alone, with broadcasting.

The arithmetic ones are single IEEE operations. Functions that IEEE does not define (exp, tanh, ...)
are computed in float64 and rounded to the dtype of the input: within an ulp of any runtime, and
made exact by the tables and certificates built on them.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _wide(function: Callable[[Array], Array], x: Array) -> Array:
    return np.asarray(function(x.astype(np.float64))).astype(x.dtype)


def add(a: Array, b: Array) -> Array:
    """`a + b`."""
    return np.add(a, b)


def subtract(a: Array, b: Array) -> Array:
    """`a - b`."""
    return np.subtract(a, b)


def multiply(a: Array, b: Array) -> Array:
    """`a * b`."""
    return np.multiply(a, b)


def divide(a: Array, b: Array) -> Array:
    """`a / b`; integers are divided towards zero, as C does."""
    if a.dtype.kind == "f":
        return np.divide(a, b)
    if a.dtype.kind == "u":
        return np.floor_divide(a, b)
    quotient = np.floor_divide(a, b)
    return np.where((quotient < 0) & (quotient * b != a), quotient + 1, quotient).astype(a.dtype)


def modulo(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """The remainder: with the sign of `a` if `fmod`, else of `b`."""
    return np.fmod(a, b) if fmod else np.mod(a, b)


def total(*operands: Array) -> Array:
    """Sum, from the left."""
    return reduce(np.add, operands)


def maximum(*operands: Array) -> Array:
    """The largest operand."""
    return reduce(np.maximum, operands)


def minimum(*operands: Array) -> Array:
    """The smallest operand."""
    return reduce(np.minimum, operands)


def mean(*operands: Array) -> Array:
    """Sum from the left, times the rounded reciprocal of their number, as ONNX Runtime does."""
    kind = operands[0].dtype.type
    return np.asarray(np.multiply(total(*operands), kind(1) / kind(len(operands))))


def power(a: Array, b: Array) -> Array:
    """`a ** b`: squares and cubes by multiplication, as ONNX Runtime does."""
    if b.size == 1 and float(b.reshape(-1)[0]) == 2.0:
        return np.asarray(a * a)
    if b.size == 1 and float(b.reshape(-1)[0]) == 3.0:
        return np.asarray(a * a * a)
    wide = np.float64 if a.dtype.kind == "f" else a.dtype
    return np.asarray(np.power(a.astype(wide), b)).astype(a.dtype)


def negate(x: Array) -> Array:
    """`-x`."""
    return np.negative(x)


def absolute(x: Array) -> Array:
    """`|x|`."""
    return np.abs(x)


def sign(x: Array) -> Array:
    """-1, 0 or 1."""
    return np.sign(x)


def reciprocal(x: Array) -> Array:
    """`1 / x`."""
    return np.asarray(np.divide(x.dtype.type(1), x))


def square_root(x: Array) -> Array:
    """The correctly rounded square root."""
    return np.sqrt(x)


def floor(x: Array) -> Array:
    """The next integer below."""
    return np.floor(x)


def ceil(x: Array) -> Array:
    """The next integer above."""
    return np.ceil(x)


def rounded(x: Array) -> Array:
    """The nearest integer, ties to even."""
    return np.rint(x)


def exponential(x: Array) -> Array:
    """`e ** x`."""
    return _wide(np.exp, x)


def logarithm(x: Array) -> Array:
    """The natural logarithm."""
    return _wide(np.log, x)


def sine(x: Array) -> Array:
    """The sine."""
    return _wide(np.sin, x)


def cosine(x: Array) -> Array:
    """The cosine."""
    return _wide(np.cos, x)


def tangent(x: Array) -> Array:
    """The tangent."""
    return _wide(np.tan, x)


def arc_sine(x: Array) -> Array:
    """The angle of a sine."""
    return _wide(np.arcsin, x)


def arc_cosine(x: Array) -> Array:
    """The angle of a cosine."""
    return _wide(np.arccos, x)


def arc_tangent(x: Array) -> Array:
    """The angle of a tangent."""
    return _wide(np.arctan, x)


def sinh(x: Array) -> Array:
    """The hyperbolic sine."""
    return _wide(np.sinh, x)


def cosh(x: Array) -> Array:
    """The hyperbolic cosine."""
    return _wide(np.cosh, x)


def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    return _wide(np.tanh, x)


def area_sinh(x: Array) -> Array:
    """The inverse of the hyperbolic sine."""
    return _wide(np.arcsinh, x)


def area_cosh(x: Array) -> Array:
    """The inverse of the hyperbolic cosine."""
    return _wide(np.arccosh, x)


def area_tanh(x: Array) -> Array:
    """The inverse of the hyperbolic tangent."""
    return _wide(np.arctanh, x)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array) -> Array:
    """The error function."""
    return _wide(_erf, x)


def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))`."""
    return _wide(lambda wide: 1.0 / (1.0 + np.exp(-wide)), x)


def softplus(x: Array) -> Array:
    """`log(1 + exp(x))`."""
    return _wide(lambda wide: np.logaddexp(0.0, wide), x)


def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """`x`, below 0 `alpha * (exp(x) - 1)`."""
    return np.where(x < 0, _wide(lambda wide: alpha * np.expm1(np.minimum(wide, 0)), x), x)


def selu(x: Array, *, alpha: float = 1.6732632423543772, gamma: float = 1.05070098735548) -> Array:
    """`gamma * x`, below 0 `gamma * alpha * (exp(x) - 1)`."""
    return _wide(
        lambda wide: gamma * np.where(wide > 0, wide, alpha * np.expm1(np.minimum(wide, 0))), x
    )


def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """`x`, below 0 `alpha * (exp(x / alpha) - 1)`."""
    return _wide(
        lambda wide: np.maximum(wide, 0) + np.minimum(alpha * np.expm1(wide / alpha), 0), x
    )


def softsign(x: Array) -> Array:
    """`x / (1 + |x|)`."""
    return _wide(lambda wide: wide / (1.0 + np.abs(wide)), x)


def gelu(x: Array, *, approximate: Literal["none", "tanh"] = "none") -> Array:
    """`x` times the normal distribution function, exact or by the tanh formula."""

    def exact(wide: Array) -> Array:
        return np.asarray(0.5 * wide * (1.0 + _erf(wide / math.sqrt(2.0))))

    def by_tanh(wide: Array) -> Array:
        inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)
        return 0.5 * wide * (1.0 + np.tanh(inner))

    return _wide(exact if approximate == "none" else by_tanh, x)


def mish(x: Array) -> Array:
    """`x * tanh(softplus(x))`."""
    return _wide(lambda wide: wide * np.tanh(np.logaddexp(0.0, wide)), x)


def relu(x: Array) -> Array:
    """`max(x, 0)`."""
    return np.asarray(np.maximum(x, x.dtype.type(0)))


def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """`x`, below 0 `alpha * x`."""
    return np.where(x < 0, x.dtype.type(alpha) * x, x)


def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """`x` above alpha, else 0."""
    return np.where(x > x.dtype.type(alpha), x, x.dtype.type(0))


def parametric_relu(x: Array, slope: Array) -> Array:
    """`x`, below 0 `x * slope`."""
    return np.where(x < 0, x * slope, x)


def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """`min(max(x, low), high)`."""
    if low is not None:
        x = np.maximum(x, low.reshape(()))
    if high is not None:
        x = np.minimum(x, high.reshape(()))
    return x


def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """`max(0, min(1, alpha * x + beta))`, the product and the sum each rounded."""
    kind = x.dtype.type
    return np.asarray(np.maximum(np.minimum(kind(alpha) * x + kind(beta), kind(1)), kind(0)))


def hard_swish(x: Array) -> Array:
    """`x * hard_sigmoid(x)` with alpha 1/6 and beta 1/2."""
    return x * hard_sigmoid(x, alpha=float(np.float32(1 / 6)), beta=0.5)


def is_nan(x: Array) -> Array:
    """Whether `x` is no number."""
    return np.isnan(x)


def equal(a: Array, b: Array) -> Array:
    """`a == b`."""
    return np.equal(a, b)


def less(a: Array, b: Array) -> Array:
    """`a < b`."""
    return np.less(a, b)


def less_or_equal(a: Array, b: Array) -> Array:
    """`a <= b`."""
    return np.less_equal(a, b)


def greater(a: Array, b: Array) -> Array:
    """`a > b`."""
    return np.greater(a, b)


def greater_or_equal(a: Array, b: Array) -> Array:
    """`a >= b`."""
    return np.greater_equal(a, b)


def logical_and(a: Array, b: Array) -> Array:
    """Both."""
    return np.logical_and(a, b)


def logical_or(a: Array, b: Array) -> Array:
    """Either."""
    return np.logical_or(a, b)


def logical_not(x: Array) -> Array:
    """Not."""
    return np.logical_not(x)


def where(condition: Array, a: Array, b: Array) -> Array:
    """`a` where the condition holds, else `b`."""
    return np.where(condition, a, b)
