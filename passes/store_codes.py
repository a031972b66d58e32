"""Store what QuantizeLinear makes of constants, in place of the floats and the node.

before:  w = DequantizeLinear(QuantizeLinear(float, s, z), s, z)
after:   w = DequantizeLinear(codes, s, z)

Some tools leave weights in float and quantize them in the graph. ONNX Runtime computes them when it
loads the model; here they are computed once, by the same definition.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.graph import Editor, constant, remove_dead, replace_uses
from edgeq.passing import Context, Pass
from edgeq.qdq import quantize_node


@dataclass(frozen=True)
class StoreCodes(Pass):
    """Replace QuantizeLinear of a constant by its codes."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many constants are now codes."""
        return store_codes(model)


def store_codes(model: ir.Model) -> int:
    """Replace each QuantizeLinear of a constant; return how many."""
    editor = Editor(model.graph)
    done = 0
    for node in list(model.graph):
        reals = constant(node.inputs[0]) if node.op_type == "QuantizeLinear" else None
        found = None if reals is None else quantize_node(node)
        if reals is None or found is None or node.outputs[0].is_graph_output():
            continue
        codes = found.qparams.quantize(reals)
        replace_uses(node.outputs[0], editor.initializer(f"{node.outputs[0].name}", codes))
        model.graph.remove(node, safe=True)
        done += 1
    if done:
        remove_dead(model.graph)
    return done
