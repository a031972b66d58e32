"""What operators compute from single elements, as TIR: one row each.

Only what IEEE defines to the last bit is here. All else (exp, tanh, ...) is looked up in tables
that the simulator's definition fills: `edgeq.tvm.elementwise`.

Nodes are made by their constructors: `a + b` in Python is `a` where `b` is 0, which loses a sign.
Relu and Clip return a NaN that they get; what Max, Min and their reductions make of one is open.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from tvm import tirx
from tvm.ir import Expr

from edgeq.graph import float_attribute, int_attribute
from edgeq.tvm.arithmetic import absolute, const, dtype_of, rint

Scalar = Callable[[ir.Node, Sequence[Expr]], Expr]


def _is_float(x: Expr) -> bool:
    return dtype_of(x).startswith("float")


def _divide(node: ir.Node, x: Sequence[Expr]) -> Expr:
    del node
    return tirx.Div(x[0], x[1]) if _is_float(x[0]) else tirx.truncdiv(x[0], x[1])


def _mean(node: ir.Node, x: Sequence[Expr]) -> Expr:
    del node
    dtype = dtype_of(x[0])
    share = np.dtype(dtype).type(1) / np.dtype(dtype).type(len(x))
    return tirx.Mul(_sum(x), const(share, dtype))


def _sum(x: Sequence[Expr]) -> Expr:
    return reduce(tirx.Add, x)


def _clip(node: ir.Node, x: Sequence[Expr]) -> Expr:
    del node
    found = x[0]
    if len(x) > 1 and x[1] is not None:
        found = _at_least(found, x[1])
    if len(x) > 2 and x[2] is not None:
        found = _at_most(found, x[2])
    return found


def _at_least(x: Expr, low: Expr) -> Expr:
    """Return the larger: of -0 and 0, which are alike, `low`."""
    return tirx.Select(tirx.LE(x, low), low, x) if _is_float(x) else tirx.max(x, low)


def _at_most(x: Expr, high: Expr) -> Expr:
    """Return the smaller: of -0 and 0, which are alike, `high`."""
    return tirx.Select(tirx.GE(x, high), high, x) if _is_float(x) else tirx.min(x, high)


def _cast(node: ir.Node, x: Sequence[Expr]) -> Expr:
    dtype = ir.DataType(int_attribute(node, "to", 0)).numpy().name
    if dtype == "bool":
        return tirx.NE(x[0], const(0, dtype_of(x[0])))
    return x[0].astype(dtype)


def _round(node: ir.Node, x: Sequence[Expr]) -> Expr:
    del node
    return rint(x[0]) if dtype_of(x[0]) == "float32" else tirx.nearbyint(x[0])


def _relu(node: ir.Node, x: Sequence[Expr]) -> Expr:
    del node
    return _at_least(x[0], const(0, dtype_of(x[0])))


def _leaky_relu(node: ir.Node, x: Sequence[Expr]) -> Expr:
    slope = const(np.float32(float_attribute(node, "alpha", 0.01)), "float32")
    return tirx.Select(x[0] < const(0, "float32"), tirx.Mul(x[0], slope), x[0])


def _prelu(node: ir.Node, x: Sequence[Expr]) -> Expr:
    del node
    return tirx.Select(x[0] < const(0, dtype_of(x[0])), tirx.Mul(x[0], x[1]), x[0])


def _of(function: Callable[..., Expr]) -> Scalar:
    """Return the row of a function of the operands alone."""

    def scalar(node: ir.Node, x: Sequence[Expr]) -> Expr:
        del node
        return function(*x)

    return scalar


SCALARS: Mapping[str, Scalar] = MappingProxyType(
    {
        "Abs": _of(absolute),
        "Add": _of(tirx.Add),
        "And": _of(tirx.And),
        "Cast": _cast,
        "Clip": _clip,
        "Div": _divide,
        "Equal": _of(tirx.EQ),
        "Greater": _of(tirx.GT),
        "GreaterOrEqual": _of(tirx.GE),
        "Identity": _of(lambda x: x),
        "LeakyRelu": _leaky_relu,
        "Less": _of(tirx.LT),
        "LessOrEqual": _of(tirx.LE),
        "Max": _of(lambda *x: reduce(tirx.max, x)),
        "Mean": _mean,
        "Min": _of(lambda *x: reduce(tirx.min, x)),
        "Mul": _of(tirx.Mul),
        "Neg": _of(lambda x: -x),
        "Not": _of(tirx.Not),
        "Or": _of(tirx.Or),
        "PRelu": _prelu,
        "Reciprocal": _of(lambda x: tirx.Div(const(1, dtype_of(x)), x)),
        "Relu": _relu,
        "Round": _round,
        "Sqrt": _of(tirx.sqrt),
        "Sub": _of(tirx.Sub),
        "Sum": _of(lambda *x: _sum(x)),
        "Where": _of(tirx.Select),
    }
)
