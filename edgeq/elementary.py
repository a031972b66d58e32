"""Operators written in simpler ones, which have integer kernels, exact sums or tables.

before:  y = Mean(a, b)                 after:  y = Div(Sum(a, b), 2)
before:  y = Pow(x, 2)                  after:  y = Mul(x, x)
before:  y = ReduceL2(x, axes)          after:  y = Sqrt(ReduceSum(Mul(x, x), axes))
before:  y = ReduceLogSumExp(x, axes)   after:  y = Add(Log(ReduceSum(Exp(Sub(x, m)))), m)
before:  y = LpNormalization(x)         after:  y = Div(x, Sqrt(ReduceSum(Mul(x, x), axis)))
before:  y = GlobalMaxPool(x)           after:  y = ReduceMax(x, axes of the image)
before:  y = Einsum("bij,bkj->bik")     after:  y = MatMul(a, Transpose(b))
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from edgeq.einsum import write_einsum
from edgeq.graph import Editor, constant, int_attribute, rank
from edgeq.writing import Writer


def write_elementary(node: ir.Node, editor: Editor) -> bool:
    """Replace `node` if it is one of these operators on float32; return whether it was."""
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    write = Writer(node, editor)
    result = rule(write)
    if result is None:
        return False
    write.replace([result])
    return True


def _mean(write: Writer) -> ir.Value:
    count = len(write.node.inputs)
    return write("Div", write("Sum", *write.node.inputs), write.number(count))


def _power(write: Writer) -> ir.Value | None:
    x, exponent = write.required(0), constant(write.required(1))
    number = None if exponent is None or exponent.size != 1 else float(exponent.reshape(()))
    if number is None or (exponent is not None and exponent.ndim > (rank(x) or 0)):
        return None
    if number == 2:
        return write("Mul", x, x)
    if number == 0.5:
        return write("Sqrt", x)
    if number == -0.5:
        return write("Reciprocal", write("Sqrt", x))
    return write("Reciprocal", x) if number == -1 else None


def _reduce(op_type: str, inner: str, outer: str) -> Callable[[Writer], ir.Value]:
    """Return the rule for `outer(op_type(inner(x)))`, over the axes of the node; "" is none."""

    def rule(write: Writer) -> ir.Value:
        x = write.required(0)
        total = write(op_type, _applied(write, inner, x), *_axes(write), **_reduction(write))
        return _applied(write, outer, total)

    return rule


def _applied(write: Writer, op_type: str, x: ir.Value) -> ir.Value:
    if not op_type:
        return x
    return write(op_type, *[x] * (2 if op_type == "Mul" else 1))


def _axes(write: Writer) -> list[ir.Value]:
    return [value for value in write.node.inputs[1:] if value is not None]


def _reduction(write: Writer) -> dict[str, int]:
    names = ("keepdims", "noop_with_empty_axes")
    return {n: int_attribute(write.node, n, int(n == "keepdims")) for n in names}


def _reduce_log_sum_exp(write: Writer) -> ir.Value:
    """The maximum is subtracted first, so that nothing overflows."""
    x, axes, attributes = write.required(0), _axes(write), _reduction(write)
    kept = write("ReduceMax", x, *axes, **{**attributes, "keepdims": 1})
    terms = write("Exp", write("Sub", x, kept))
    most = kept if attributes["keepdims"] else write("ReduceMax", x, *axes, **attributes)
    return write("Add", write("Log", write("ReduceSum", terms, *axes, **attributes)), most)


def _lp_normalization(write: Writer) -> ir.Value | None:
    if int_attribute(write.node, "p", 2) != 2:
        return None
    x, axis = write.required(0), write.integers(int_attribute(write.node, "axis", -1))
    total = write("ReduceSum", write("Mul", x, x), axis, keepdims=1)
    return write("Div", x, write("Sqrt", total))


def _global_max_pool(write: Writer) -> ir.Value | None:
    x = write.required(0)
    ndim = rank(x)
    if ndim is None:
        return None
    return write("ReduceMax", x, write.integers(*range(2, ndim)), keepdims=1)


_RULES: Mapping[str, Callable[[Writer], ir.Value | None]] = MappingProxyType(
    {
        "Einsum": write_einsum,
        "GlobalMaxPool": _global_max_pool,
        "LpNormalization": _lp_normalization,
        "Mean": _mean,
        "Pow": _power,
        "ReduceL1": _reduce("ReduceSum", "Abs", ""),
        "ReduceL2": _reduce("ReduceSum", "Mul", "Sqrt"),
        "ReduceLogSum": _reduce("ReduceSum", "", "Log"),
        "ReduceLogSumExp": _reduce_log_sum_exp,
    }
)
