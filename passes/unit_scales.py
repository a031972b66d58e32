"""Let pools, means and interpolation work in units: integers held in float32.

before:  q = QuantizeLinear(AveragePool(DequantizeLinear(x_q, sx, zx)), sy, zy)
after:   q = QuantizeLinear(AveragePool(DequantizeLinear(x_q, 1, zx)), float32(sy / sx), zy)

A sum of dequantized values rounds at every step, in an order that each CPU chooses; a sum of units
is exact below 2**24, so its bits are the same everywhere. The real scale is applied once, by the
last QuantizeLinear, or in the float tail by one Mul:

before:  y = AveragePool(DequantizeLinear(x_q, sx, zx))
after:   y = Mul(AveragePool(DequantizeLinear(x_q, 1, zx)), sx)

GlobalAveragePool becomes ReduceMean, whose kernel divides; the fused one multiplies by a rounded
reciprocal and misses ties for half of the sizes.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, producer, rank, take_output
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, is_units, operand, result
from edgeq.roles import ACCUMULATING

_SUMS = ACCUMULATING | {"CumSum"}


@dataclass(frozen=True)
class UnitScales(Pass):
    """Rewrite accumulating ops other than the linear ones into units."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many ops now work in units."""
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            accumulates = node.op_type in _SUMS and not node.domain
            x = operand(node.inputs[0]) if accumulates else None
            if x is None or is_units(x) or x.qparams.axis is not None:
                continue
            _to_units(node, x, editor)
            if node.op_type == "GlobalAveragePool":
                _to_reduce_mean(node, editor)
            done += 1
        return done


def _to_units(node: ir.Node, x: Operand, editor: Editor) -> None:
    name = x.codes.name or "x"
    y = result(node.outputs[0])
    scale = np.float32(x.qparams.scale)
    units = editor.node(
        "DequantizeLinear",
        [x.codes, editor.initializer(f"{name}_one", np.float32(1)), *x.node.inputs[2:3]],
        f"{name}_units",
        dtype=ir.DataType.FLOAT,
        shape=x.codes.shape,
    )
    editor.insert_before(node, [units])
    node.replace_input_with(0, units)
    if y is not None:
        ratio = np.asarray(y.qparams.scale / scale, np.float32)
        y.node.replace_input_with(1, editor.initializer(f"{y.codes.name}_ratio", ratio))
        return
    output = node.outputs[0]
    real = editor.node(
        "Mul",
        [output, editor.initializer(f"{name}_real", scale)],
        f"{output.name}_real",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    for reader, index in list(output.uses()):
        if reader is not producer(real):
            reader.replace_input_with(index, real)
    editor.insert_after(node, [real])
    if output.is_graph_output():
        take_output(output, real)


def _to_reduce_mean(node: ir.Node, editor: Editor) -> None:
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    dimensions = rank(x)
    assert dimensions is not None, f"{node.name}: the rank of {x.name} is unknown"
    axes = editor.initializer(f"{output.name}_axes", np.arange(2, dimensions, dtype=np.int64))
    mean = editor.node(
        "ReduceMean",
        [x, axes],
        f"{output.name}_mean",
        attributes={"keepdims": 1},
        dtype=output.dtype,
        shape=output.shape,
    )
    editor.insert_before(node, [mean])
    for reader, index in list(output.uses()):
        reader.replace_input_with(index, mean)
    if output.is_graph_output():
        take_output(output, mean)
    editor.graph.remove(node, safe=True)
