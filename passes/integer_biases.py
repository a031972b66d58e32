"""Give a linear op on codes an int32 bias on the grid of its accumulator.

before:  y = Conv(DequantizeLinear(x, sx, zx), DequantizeLinear(w, sw, 0), b)
after:   y = Conv(..., DequantizeLinear(bq, sb, 0))      bq = rint(b / sb), sb = float32(sx * sw)

A bias in float, or on another grid, keeps the op in float or is added to it there. Rounding moves
it by half a step of the accumulator at most, which is far below one step of the result.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor
from edgeq.passing import Context, Pass
from edgeq.qdq import constant_reals, operand

LIMIT = 2**30


@dataclass(frozen=True)
class IntegerBiases(Pass):
    """Quantize constant biases of Conv and Gemm."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many biases are new."""
        editor = Editor(model.graph)
        nodes = [n for n in model.graph if n.op_type in ("Conv", "Gemm") and not n.domain]
        return sum(_quantize(node, editor) for node in nodes)


def _quantize(node: ir.Node, editor: Editor) -> bool:
    x, w = operand(node.inputs[0]), operand(node.inputs[1])
    reals = _reals(node)
    if x is None or w is None or reals is None or x.qparams.axis is not None:
        return False
    scale = np.asarray(x.qparams.scale * w.qparams.scale, np.float32)
    known = operand(node.inputs[2])
    if known is not None and known.qparams.qtype.name == "int32":
        same = np.array_equal(
            np.broadcast_to(scale, known.qparams.scale.shape), known.qparams.scale
        )
        if same and not np.any(known.qparams.zero_point):
            return False
    if scale.ndim and scale.shape != reals.shape:
        return False
    codes = np.rint(reals.astype(np.float64) / scale)
    if np.abs(codes).max(initial=0) > LIMIT:
        return False
    name = node.outputs[0].name
    inputs = [
        editor.initializer(f"{name}_bias", codes.astype(np.int32)),
        editor.initializer(f"{name}_bias_scale", scale),
        editor.initializer(f"{name}_bias_zero_point", np.zeros(scale.shape, np.int32)),
    ]
    bias = editor.node(
        "DequantizeLinear",
        inputs,
        f"{name}_bias_dq",
        attributes={"axis": 0} if scale.ndim else {},
        dtype=ir.DataType.FLOAT,
        shape=reals.shape,
    )
    editor.insert_before(node, [bias])
    node.replace_input_with(2, bias)
    return True


def _reals(node: ir.Node) -> NDArray[np.float32] | None:
    """Return the constant bias, one element for each channel."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant_reals(value)
    if array is None or array.dtype != np.float32 or array.size != max(array.shape, default=0):
        return None
    return np.asarray(array.reshape(-1), np.float32)
