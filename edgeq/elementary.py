"""Operators written in simpler ones, which have integer kernels, exact sums or tables.

before:  y = Mean(a, b)                 after:  y = Div(Sum(a, b), 2)
before:  y = Pow(x, 2)                  after:  y = Mul(x, x)
before:  y = ReduceL2(x, axes)          after:  y = Sqrt(ReduceSum(Mul(x, x), axes))
before:  y = LpNormalization(x)         after:  y = Div(x, Sqrt(ReduceSum(Mul(x, x), axis)))
before:  y = GlobalMaxPool(x)           after:  y = ReduceMax(x, axes of the image)
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor, constant, int_attribute, producer, rank, replace_uses, take_output


def write_elementary(node: ir.Node, editor: Editor) -> bool:
    """Replace `node` if it is one of these operators on float32; return whether it was."""
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    made = rule(_Maker(node, editor))
    if not made:
        return False
    output, last = node.outputs[0], made[-1]
    last.shape = output.shape
    producer(last).name = node.name
    editor.insert_before(node, made)
    replace_uses(output, last)
    take_output(output, last)
    editor.graph.remove(node, safe=True)
    return True


class _Maker:
    """Makes the nodes that stand for one node."""

    def __init__(self, node: ir.Node, editor: Editor) -> None:
        self.node, self.editor = node, editor
        self.inputs = [value for value in node.inputs if value is not None]

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = f"{self.node.outputs[0].name}_{op_type.lower()}"
        return self.editor.node(
            op_type, inputs, name, attributes=attributes, dtype=ir.DataType.FLOAT
        )

    def constant(self, array: NDArray[Any] | np.generic) -> ir.Value:
        return self.editor.initializer(f"{self.node.outputs[0].name}_constant", array)


def _mean(make: _Maker) -> list[ir.Value]:
    total = make("Sum", *make.inputs)
    return [total, make("Div", total, make.constant(np.float32(len(make.inputs))))]


def _power(make: _Maker) -> list[ir.Value]:
    x, exponent = make.inputs[0], constant(make.inputs[1])
    number = None if exponent is None or exponent.size != 1 else float(exponent.reshape(()))
    if number is None or (exponent is not None and exponent.ndim > (rank(x) or 0)):
        return []
    if number == 2:
        return [make("Mul", x, x)]
    if number == 0.5:
        return [make("Sqrt", x)]
    return [make("Reciprocal", x)] if number == -1 else []


def _norm(make: _Maker, x: ir.Value, axes: list[ir.Value], **attributes: int) -> list[ir.Value]:
    square = make("Mul", x, x)
    square.shape = x.shape
    total = make("ReduceSum", square, *axes, **attributes)
    return [square, total, make("Sqrt", total)]


def _reduce_l2(make: _Maker) -> list[ir.Value]:
    names = ("keepdims", "noop_with_empty_axes")
    attributes = {n: int_attribute(make.node, n, int(n == "keepdims")) for n in names}
    return _norm(make, make.inputs[0], make.inputs[1:], **attributes)


def _lp_normalization(make: _Maker) -> list[ir.Value]:
    if int_attribute(make.node, "p", 2) != 2:
        return []
    x = make.inputs[0]
    axes = make.constant(np.array([int_attribute(make.node, "axis", -1)]))
    made = _norm(make, x, [axes], keepdims=1)
    return [*made, make("Div", x, made[-1])]


def _global_max_pool(make: _Maker) -> list[ir.Value]:
    ndim = rank(make.inputs[0])
    if ndim is None:
        return []
    axes = make.constant(np.arange(2, ndim))
    return [make("ReduceMax", make.inputs[0], axes, keepdims=1)]


_RULES: Mapping[str, Callable[[_Maker], list[ir.Value]]] = MappingProxyType(
    {
        "GlobalMaxPool": _global_max_pool,
        "LpNormalization": _lp_normalization,
        "Mean": _mean,
        "Pow": _power,
        "ReduceL2": _reduce_l2,
    }
)
