"""Choices that always fall the same way: a mask without gaps, a guard against NaN that never comes.

before:  p = Softmax(Add(s, Where(mask, 0, -3.4e38)));  y = Where(IsNaN(p), 0, p)
after:   y = p

torch's scaled_dot_product_attention guards its Softmax against rows of which every score is -inf.
There are none where each number on the way is finite: activations are, as a calibration must see
their ranges, and they are too small to carry the lowest float32 beyond the range.
"""

import numpy as np
import onnx_ir as ir

from edgeq.dims import same_shape
from edgeq.graph import constant

# What scores and masks are made of by arithmetic, and whose results are finite in any case.
_ARITHMETIC = frozenset(
    {
        "Add", "Cast", "Concat", "Div", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Neg",
        "Reshape", "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
_ACTIVATIONS = frozenset({"Conv", "Gemm", "MatMul", "Sigmoid", "Softmax", "Tanh"})


def chosen_operand(node: ir.Node) -> ir.Value | None:
    """Return the operand that a Where always gives, if it has the shape of the result."""
    if node.op_type != "Where" or node.domain or None in node.inputs:
        return None
    condition, yes, no = node.inputs
    array = constant(condition)
    chosen = None
    if array is not None and array.size:
        chosen = yes if array.all() else None if array.any() else no
    elif condition is not None and _never_nan(condition):
        chosen = no
    return chosen if chosen is not None and same_shape(chosen, node.outputs[0]) else None


def _never_nan(condition: ir.Value) -> bool:
    """Whether `condition` is IsNaN of a Softmax over finite scores."""
    test = condition.producer()
    source = None if test is None or test.op_type != "IsNaN" else test.inputs[0]
    softmax = None if source is None else source.producer()
    if softmax is None or softmax.op_type != "Softmax" or softmax.domain:
        return False
    return _is_finite(softmax.inputs[0])


def _is_finite(value: ir.Value | None) -> bool:
    if value is None or value.dtype not in (ir.DataType.FLOAT, None):
        return True
    array = constant(value)
    if array is not None:
        return bool(np.isfinite(array).all())
    node = value.producer()
    if node is None or node.domain:
        return False  # an input of the graph: its masks may be -inf
    if node.op_type == "Div" and not np.all(constant(node.inputs[1])):
        return False
    if node.op_type in _ARITHMETIC:
        return all(_is_finite(operand) for operand in node.inputs)
    return node.op_type in _ACTIVATIONS
