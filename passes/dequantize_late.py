"""Move elements as codes, and dequantize behind: so that a linear op stands next to its codes.

before:  y = Gemm(Flatten(DequantizeLinear(q, s, z)), w)
after:   y = Gemm(DequantizeLinear(Flatten(q), s, z), w)

Moving, selecting and comparing are the same on codes as on the reals that they stand for: exact.
A linear op that something stands in front of would run in float.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.graph import Editor, consumers
from edgeq.passing import Context, Pass
from edgeq.qdq import operand

MOVES = ("Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
LINEAR = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class DequantizeLate(Pass):
    """Let what moves elements in front of a linear op move codes."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many nodes now move codes."""
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            if node.op_type in MOVES and not node.domain and _leads_to_linear(node):
                done += _move(node, editor)
        return done


def _leads_to_linear(node: ir.Node) -> bool:
    output = node.outputs[0]
    if output.is_graph_output() or len(node.outputs) > 1:
        return False
    readers = consumers(output)
    return any(
        reader.op_type in LINEAR or (reader.op_type in MOVES and _leads_to_linear(reader))
        for reader in readers
    )


def _move(node: ir.Node, editor: Editor) -> bool:
    x, output = operand(node.inputs[0]), node.outputs[0]
    if x is None or x.qparams.axis is not None:
        return False
    codes = editor.node(
        node.op_type,
        [x.codes, *node.inputs[1:]],
        f"{output.name}_q",
        attributes=dict(node.attributes),
        dtype=x.codes.dtype,
        shape=output.shape,
    )
    reals = editor.node(
        "DequantizeLinear",
        [codes, *x.node.inputs[1:]],
        f"{output.name}_dq",
        dtype=output.dtype,
        shape=output.shape,
    )
    editor.insert_before(node, [codes, reals])
    for reader, index in list(output.uses()):
        reader.replace_input_with(index, reals)
    editor.graph.remove(node, safe=True)
    return True
