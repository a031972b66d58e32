"""Functions that IEEE does not define, in float64: what tables hold and ties are measured by.

Accurate to a few float64 ulps, so a table rounded to float32 or to codes is the same on every host
unless a value lies within 2**-50 of a tie.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import float_attribute, string_attribute

Float64 = NDArray[np.float64]


def float64_function(node: ir.Node) -> Callable[[Float64], Float64] | None:
    """Return what `node`, a unary operator, computes; `None` if it is not one of these."""
    name = node.op_type
    if name == "Elu":
        alpha = float_attribute(node, "alpha", 1.0)
        return lambda x: np.where(x < 0, alpha * np.expm1(x), x)
    if name == "Selu":
        alpha = float_attribute(node, "alpha", 1.6732632423543772)
        gamma = float_attribute(node, "gamma", 1.0507009873554805)
        return lambda x: gamma * np.where(x > 0, x, alpha * np.expm1(x))
    if name == "HardSigmoid":
        slope, offset = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
        return lambda x: np.clip(slope * x + offset, 0, 1)
    if name == "Gelu" and string_attribute(node, "approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return _PLAIN.get(name)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Float64) -> Float64:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: Float64) -> Float64:
    return np.asarray(np.logaddexp(0, x))


_PLAIN: Mapping[str, Callable[[Float64], Float64]] = MappingProxyType(
    {
        "Erf": lambda x: np.asarray(_erf(x)),
        "Exp": np.exp,
        "Gelu": lambda x: np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2)))),
        "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
        "Log": np.log,
        "Mish": lambda x: x * np.tanh(_softplus(x)),
        "Reciprocal": np.reciprocal,
        "Sigmoid": _sigmoid,
        "Softplus": _softplus,
        "Softsign": lambda x: x / (1 + np.abs(x)),
        "Tanh": np.tanh,
    }
)
