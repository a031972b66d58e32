"""Float graphs that are a function of one value, as exporters write them."""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.onnx_api import infer_shapes

Float64 = NDArray[np.float64]

CONSTANTS = ", ".join(
    f"float {name} = {{{value!r}}}"
    for name, value in {
        "half": 0.5,
        "one": 1.0,
        "two": 2.0,
        "three": 3.0,
        "six": 6.0,
        "zero": 0.0,
        "sqrt2": math.sqrt(2),
        "cubic": 0.044715,
        "inner": math.sqrt(2 / math.pi),
        "quick": 1.702,
    }.items()
)


def model(nodes: str, outputs: str = "float[N,4] y", inputs: str = "float[N,4] x") -> ir.Model:
    """Return the float model of `nodes`, shapes inferred."""
    result = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g ({inputs}) => ({outputs}) <{CONSTANTS}, float[4] vector = {{1, 2, 3, 4}},
          float[1,1,1] deep = {{2}}, int64[1] axis = {{0}},
          int64[1] ahead = {{1}}> {{ {nodes} }}"""
    )
    infer_shapes(result)
    return result


def sigmoid(x: Float64) -> Float64:
    """Return `1 / (1 + exp(-x))`."""
    return np.asarray(1 / (1 + np.exp(-x)))


def gelu_tanh(x: Float64) -> Float64:
    """Return the approximation of Gelu by tanh."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)))


def gelu(x: Float64) -> Float64:
    """Return Gelu."""
    return np.asarray(0.5 * x * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x])))


def hard_swish(x: Float64) -> Float64:
    """Return `x * hard_sigmoid(x)`."""
    return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


# Nodes from x to y, and what they compute.
SPELLINGS: dict[str, tuple[str, Callable[[Float64], Float64]]] = {
    "SiLU": ("s = Sigmoid(x) y = Mul(x, s)", lambda x: x * sigmoid(x)),
    "erf-Gelu of torch": (
        "a = Div(x, sqrt2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
        gelu,
    ),
    "erf-Gelu, halves first": (
        "h = Mul(x, half) a = Div(x, sqrt2) b = Erf(a) c = Add(b, one) y = Mul(h, c)",
        gelu,
    ),
    "tanh-Gelu with Pow": (
        "p = Pow(x, three) a = Mul(cubic, p) b = Add(x, a) c = Mul(b, inner) d = Tanh(c)"
        " e = Add(d, one) h = Mul(x, half) y = Mul(h, e)",
        gelu_tanh,
    ),
    "tanh-Gelu with products": (
        "q = Mul(x, x) p = Mul(q, x) a = Mul(cubic, p) b = Add(x, a) c = Mul(b, inner)"
        " d = Tanh(c) e = Add(one, d) h = Mul(x, half) y = Mul(h, e)",
        gelu_tanh,
    ),
    "QuickGelu": (
        "a = Mul(x, quick) s = Sigmoid(a) y = Mul(x, s)",
        lambda x: x * sigmoid(1.702 * x),
    ),
    "Mish": (
        "a = Softplus(x) t = Tanh(a) y = Mul(x, t)",
        lambda x: x * np.tanh(np.log1p(np.exp(x))),
    ),
    "Softplus in pieces": ("a = Exp(x) b = Add(a, one) y = Log(b)", lambda x: np.log1p(np.exp(x))),
    "hard-swish of HardSigmoid": (
        "s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, s)",
        hard_swish,
    ),
    "hard-swish of Clip": (
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
        hard_swish,
    ),
    "hard-swish of Relu and Min": (
        "a = Add(x, three) b = Relu(a) m = Min(b, six) d = Div(m, six) y = Mul(x, d)",
        hard_swish,
    ),
    "cube": ("a = Mul(x, x) y = Mul(a, x)", lambda x: x**3),
    "Pow alone": ("y = Pow(x, three)", lambda x: x**3),
    "constant base": ("y = Pow(two, x)", lambda x: 2**x),
    "where": (
        "c = Greater(x, one) n = Neg(x) a = Abs(n) y = Where(c, a, half)",
        lambda x: np.where(x > 1, np.abs(x), 0.5),
    ),
    "between limits": (
        "a = Less(x, zero) b = Greater(x, three) c = Or(a, b) y = Where(c, zero, x)",
        lambda x: np.where((x < 0) | (x > 3), 0, x),
    ),
    "leaky": (
        "a = LeakyRelu<alpha = 0.25>(x) y = Mul(a, two)",
        lambda x: np.where(x < 0, x / 2, 2 * x),
    ),
    "two inner values, each read twice": (
        "a = Exp(x) b = Neg(x) c = Add(a, b) d = Mul(a, b) y = Sub(c, d)",
        lambda x: np.exp(x) - x + np.exp(x) * x,
    ),
    "ELU of torch": (
        "p = Greater(x, zero) e = Exp(x) d = Sub(e, one) y = Where(p, x, d)",
        lambda x: np.where(x > 0, x, np.expm1(x)),
    ),
    "softplus of torch": (
        "b = Mul(x, two) s = Softplus(b) d = Div(s, two) c = Greater(b, six) y = Where(c, x, d)",
        lambda x: np.where(2 * x > 6, x, np.log1p(np.exp(2 * x)) / 2),
    ),
    "log of sigmoid": ("s = Sigmoid(x) y = Log(s)", lambda x: -np.log1p(np.exp(-x))),
    "tanh-shrink": ("t = Tanh(x) y = Sub(x, t)", lambda x: x - np.tanh(x)),
    "squared ReLU": (
        "r = Relu(x) a = Add(r, x) y = Mul(r, a)",
        lambda x: np.maximum(x, 0) * 2 * np.maximum(x, 0),
    ),
    "a vector that is moved": (
        "e = Exp(x) u = Unsqueeze(e, axis) a = Add(u, one) t = Transpose<perm = [1, 0, 2]>(a)"
        " f = Flatten<axis = 2>(t) y = Log(f)",
        lambda x: np.log1p(np.exp(x)),
    ),
    "root": ("a = Mul(x, x) b = Add(a, one) y = Sqrt(b)", lambda x: np.sqrt(x * x + 1)),
}
