"""Functions that IEEE does not define, in float64: what tables hold and ties are measured by.

Accurate to a few float64 ulps, so a table rounded to float32 or to codes is the same on every host
unless a value lies within 2**-50 of a tie. Where a function is not defined the result is that of
IEEE arithmetic: Log(0) is -inf, Reciprocal(0) is inf, Log(-1) and Asin(2) are NaN. As codes they
are the smallest, the largest and, for NaN, the smallest (`edgeq.numerics.affine.quantize`).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import float_attribute, string_attribute

Float64 = NDArray[np.float64]
Function = Callable[[Float64], Float64]


def float64_function(node: ir.Node) -> Function | None:
    """Return what `node`, a unary operator, computes; `None` if it is not one of these."""
    make = None if node.domain else _FUNCTIONS.get(node.op_type)
    return None if make is None else _quiet(make(node))


def _quiet(function: Function) -> Function:
    def quiet(x: Float64) -> Float64:
        with np.errstate(all="ignore"):
            return np.asarray(function(x))

    return quiet


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _plain(function: Function) -> Callable[[ir.Node], Function]:
    return lambda node: function


def _sigmoid(x: Float64) -> Float64:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: Float64) -> Float64:
    return np.asarray(np.logaddexp(0, x))


def _celu(node: ir.Node) -> Function:
    alpha = float_attribute(node, "alpha", 1.0)
    return lambda x: np.maximum(x, 0) + np.minimum(alpha * np.expm1(x / alpha), 0)


def _elu(node: ir.Node) -> Function:
    alpha = float_attribute(node, "alpha", 1.0)
    return lambda x: np.where(x < 0, alpha * np.expm1(x), x)


def _selu(node: ir.Node) -> Function:
    alpha = float_attribute(node, "alpha", 1.6732632423543772)
    gamma = float_attribute(node, "gamma", 1.0507009873554805)
    return lambda x: gamma * np.where(x > 0, x, alpha * np.expm1(x))


def _hard_sigmoid(node: ir.Node) -> Function:
    slope, offset = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    return lambda x: np.clip(slope * x + offset, 0, 1)


def _gelu(node: ir.Node) -> Function:
    if string_attribute(node, "approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * _erfc(-x / math.sqrt(2))


_FUNCTIONS: Mapping[str, Callable[[ir.Node], Function]] = MappingProxyType(
    {
        "Acos": _plain(np.arccos),
        "Acosh": _plain(np.arccosh),
        "Asin": _plain(np.arcsin),
        "Asinh": _plain(np.arcsinh),
        "Atan": _plain(np.arctan),
        "Atanh": _plain(np.arctanh),
        "Celu": _celu,
        "Cos": _plain(np.cos),
        "Cosh": _plain(np.cosh),
        "Elu": _elu,
        "Erf": _plain(_erf),
        "Exp": _plain(np.exp),
        "Gelu": _gelu,
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": _plain(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
        "Log": _plain(np.log),
        "Mish": _plain(lambda x: x * np.tanh(_softplus(x))),
        "Reciprocal": _plain(np.reciprocal),
        "Selu": _selu,
        "Sigmoid": _plain(_sigmoid),
        "Sin": _plain(np.sin),
        "Sinh": _plain(np.sinh),
        "Softplus": _plain(_softplus),
        "Softsign": _plain(lambda x: x / (1 + np.abs(x))),
        "Tan": _plain(np.tan),
        "Tanh": _plain(np.tanh),
    }
)

# A Pow by, or of, a constant is a function too; a region holds it.
FUNCTIONS = frozenset(_FUNCTIONS)
