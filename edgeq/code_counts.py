"""How many codes there can be.

Where codes are distances to the largest of a row, none is above the zero point that they are
quantized with.
"""

import onnx_ir as ir

from edgeq.qdq import Operand, quantize_node


def code_count(x: Operand) -> int:
    """Return how many codes there can be: from 0 to one less."""
    node = x.codes.producer()
    made = None if node is None else quantize_node(node)
    if made is not None and made.qparams.axis is None and _is_negative(made.node.inputs[0]):
        return int(made.qparams.zero_point) + 1
    return x.qparams.qtype.qmax + 1


def _is_negative(value: ir.Value | None) -> bool:
    """Whether `value` is `Sub(x, ReduceMax(x))`, or `Sub(x, Max(ReduceMax(x), ...))`: 0 at most."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Sub" or node.domain or node.inputs[1] is None:
        return False
    top = node.inputs[1].producer()
    tops = [] if top is None else [top]
    if top is not None and top.op_type == "Max":
        tops = [maker for v in top.inputs if v is not None and (maker := v.producer()) is not None]
    return any(t.op_type == "ReduceMax" and t.inputs[0] is node.inputs[0] for t in tops)
