"""Write Softmax of codes as a table, an exact sum and one division.

before:  p = Softmax(DequantizeLinear(x_q, s, z), axis)
after:   d = Sub(Cast(ReduceMax(x_q)), Cast(x_q))            int32, 0 .. 255
         e = GatherElements(table, d)                        integers held in float32
         p = Div(e, ReduceSum(e, axis))

with `table[k] = round(exp(-k * s) * (2**bits - 1))`, computed on the host in float64, and `bits`
the most for which a row's sum stays below 2**24 and therefore exact in any order. Every step is an
integer operation or a single IEEE one; z does not matter, since softmax ignores offsets.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.graph import Editor, int_attribute, rank, take_output
from edgeq.look_up import look_up
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, operand

EXACT_BITS = 24


@dataclass(frozen=True)
class ExactSoftmax(Pass):
    """Replace each Softmax whose input is quantized."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many Softmax nodes went.

        Raises:
            ModelError: The row length is unknown or beyond what float32 sums exactly.
        """
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            if node.op_type != "Softmax" or node.domain or context.keep_float(node):
                continue
            x = operand(node.inputs[0])
            if x is not None and x.qparams.axis is None and x.qparams.qtype.bits == 8:
                _replace(node, x, editor)
                done += 1
        return done


def exponentials(scale: float, length: int) -> NDArray[np.float32]:
    """Return `round(exp(-k * scale) * (2**bits - 1))` for k = 0 .. 255, exact in float32.

    Args:
        scale: Step of the logits.
        length: Elements in a row; their sum stays below 2**24.

    >>> exponentials(0.1, 256)[:2]
    array([65535., 59299.], dtype=float32)
    """
    peak = 2 ** (EXACT_BITS - (length - 1).bit_length()) - 1
    terms: NDArray[np.float32] = np.rint(np.exp(-np.arange(256) * scale) * peak).astype(np.float32)
    return terms


def _replace(node: ir.Node, x: Operand, editor: Editor) -> None:
    output, codes = node.outputs[0], x.codes
    axis = int_attribute(node, "axis", -1)
    length = _row_length(node, axis)
    name = output.name or "softmax"
    axes = editor.initializer(f"{name}_axis", np.array([axis], np.int64))
    keep = {"keepdims": 1}
    top = editor.node("ReduceMax", [codes, axes], f"{name}_max", attributes=keep, dtype=codes.dtype)
    wide = {"to": ir.DataType.INT32.value}
    top_int = editor.node(
        "Cast", [top], f"{name}_max_int", attributes=wide, dtype=ir.DataType.INT32
    )
    code_int = editor.node(
        "Cast", [codes], f"{name}_int", attributes=wide, dtype=ir.DataType.INT32, shape=codes.shape
    )
    below = editor.node(
        "Sub", [top_int, code_int], f"{name}_below", dtype=ir.DataType.INT32, shape=codes.shape
    )
    table = editor.initializer(f"{name}_exp", exponentials(float(x.qparams.scale), length))
    looked_up = look_up(editor, below, table, f"{name}_terms")
    terms = looked_up[-1]
    total = editor.node(
        "ReduceSum", [terms, axes], f"{name}_sum", attributes=keep, dtype=ir.DataType.FLOAT
    )
    share = editor.node(
        "Div", [terms, total], f"{name}_share", dtype=ir.DataType.FLOAT, shape=output.shape
    )
    editor.insert_before(node, [top, top_int, code_int, below, *looked_up, total, share])
    for reader, index in list(output.uses()):
        reader.replace_input_with(index, share)
    if output.is_graph_output():
        take_output(output, share)
    editor.graph.remove(node, safe=True)


def _row_length(node: ir.Node, axis: int) -> int:
    value = node.inputs[0]
    assert value is not None
    dimensions = rank(value)
    dimension = None if value.shape is None or dimensions is None else value.shape[axis]
    if not isinstance(dimension, int):
        raise ModelError(
            f"node {node.name} (Softmax): the length of axis {axis} is not known;"
            " fix this dimension of the model, or leave the node in float with"
            f" --keep-float '{node.name}'"
        )
    if dimension > 2**16:
        raise ModelError(
            f"node {node.name} (Softmax): rows of {dimension} elements; at most {2**16} are summed"
            " exactly"
        )
    return dimension
