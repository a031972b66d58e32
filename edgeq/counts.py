"""Integers that a graph counts out: equal everywhere, or evenly spaced along one axis.

Exporters write them in roundabout ways, positions of tokens even in float:

    ones = Expand(1.0, [batch, length])     1 everywhere
    Sub(CumSum(ones, axis=1), 1.0)          0, 1, 2, ... along axis 1
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.dims import same_dim, same_shape
from edgeq.graph import constant, int_attribute

_DEPTH = 32
_SMALL = 1024  # elements; what is equal everywhere is written as a scalar
# Sums and products of such numbers, and steps times any index, are exact in float32 and int32.
_START, _STEP = 2**20, 2**3
_NUMBERS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64})


@dataclass(frozen=True)
class Count:
    """Elements are `start + step * index`.

    Attributes:
        start: The first element.
        step: From one element to the next; 0 where all are equal.
        axis: Where the index runs, counted from the last axis: -1, -2, ...
    """

    start: int
    step: int = 0
    axis: int = -1


def count_of(value: ir.Value | None, depth: int = _DEPTH) -> Count | None:
    """Return what `value` counts; `None` if that is not known."""
    if value is None or value.dtype not in _NUMBERS or depth == 0:
        return None
    array = constant(value)
    if array is not None:
        return _uniform(array) if array.size <= _SMALL else None
    node = value.producer()
    if node is None or node.domain or node.op_type not in _RULES:
        return None
    found = _RULES[node.op_type](node, [count_of(v, depth - 1) for v in node.inputs])
    if found is None or abs(found.start) >= _START or abs(found.step) >= _STEP:
        return None
    return found


def neutral_operand(node: ir.Node) -> ir.Value | None:
    """Return the operand that a sum with zeros or a product with ones is equal to."""
    if node.op_type not in ("Add", "Div", "Mul", "Sub") or len(node.inputs) != 2:
        return None
    neutral = Count(int(node.op_type in ("Div", "Mul")))
    a, b = node.inputs
    pairs = [(a, b)] if node.op_type in ("Div", "Sub") else [(a, b), (b, a)]
    for kept, other in pairs:
        if kept is not None and same_shape(kept, node.outputs[0]) and count_of(other) == neutral:
            return kept
    return None


def _uniform(array: NDArray[np.generic]) -> Count | None:
    numbers = np.unique(np.asarray(array, np.float64))
    if numbers.size != 1 or not float(numbers[0]).is_integer():
        return None
    return Count(int(numbers[0]))


def _range(node: ir.Node, operands: list[Count | None]) -> Count | None:
    start, _, delta = operands
    return None if start is None or delta is None else Count(start.start, delta.start)


def _constant_of_shape(node: ir.Node, operands: list[Count | None]) -> Count | None:
    value = node.attributes.get("value")
    return Count(0) if value is None else _uniform(value.as_tensor().numpy())


def _cumulative_sum(node: ir.Node, operands: list[Count | None]) -> Count | None:
    terms, axis = operands
    shape = node.outputs[0].shape
    if terms is None or terms.step or axis is None or shape is None:
        return None
    if int_attribute(node, "reverse", 0):
        return None
    first = 0 if int_attribute(node, "exclusive", 0) else terms.start
    return Count(first, terms.start, axis.start % len(shape) - len(shape))


def _copied(node: ir.Node, operands: list[Count | None]) -> Count | None:
    return operands[0] if operands[0] is not None and _keeps_axis(node, operands, 0) else None


def _unsqueeze(node: ir.Node, operands: list[Count | None]) -> Count | None:
    data, axes, shape = operands[0], constant(node.inputs[1]), node.outputs[0].shape
    if data is None or axes is None or shape is None:
        return None
    ndim = len(shape)
    new = {int(axis) % ndim for axis in axes.reshape(-1)}
    kept = [axis for axis in range(ndim) if axis not in new]
    return Count(data.start, data.step, kept[data.axis] - ndim) if data.step else data


def _arithmetic(node: ir.Node, operands: list[Count | None]) -> Count | None:
    a, b = operands
    if a is None or b is None or not (_keeps_axis(node, operands, 0, 1)):
        return None
    axis = a.axis if a.step else b.axis
    if a.step and b.step and a.axis != b.axis:
        return None
    if node.op_type == "Mul":
        if a.step and b.step:
            return None
        return Count(a.start * b.start, a.step * b.start + b.step * a.start, axis)
    sign = 1 if node.op_type == "Add" else -1
    return Count(a.start + sign * b.start, a.step + sign * b.step, axis)


def _keeps_axis(node: ir.Node, operands: list[Count | None], *places: int) -> bool:
    """Whether what counts along an axis has as many elements there as the output."""
    output = node.outputs[0].shape
    for place in places:
        count, value = operands[place], node.inputs[place]
        if count is None or not count.step:
            continue
        if value is None or value.shape is None or output is None:
            return False
        if not same_dim(value.shape[count.axis], output[count.axis]):
            return False
    return True


_Rule = Callable[[ir.Node, list[Count | None]], Count | None]
_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "Add": _arithmetic,
        "Cast": _copied,
        "ConstantOfShape": _constant_of_shape,
        "CumSum": _cumulative_sum,
        "Expand": _copied,
        "Identity": _copied,
        "Mul": _arithmetic,
        "Range": _range,
        "Sub": _arithmetic,
        "Unsqueeze": _unsqueeze,
    }
)
