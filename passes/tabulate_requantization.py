"""Look codes of codes up in a table, where ONNX Runtime would merge the two quantizations.

before:  p = QuantizeLinear(DequantizeLinear(q, s1, z1), s2, z2)
after:   p = Reshape(GatherElements(table, Cast(Reshape(q, [-1]))), Shape(q))

`table[q]` is what the two nodes make of the code `q`, for each code: exact. Only where q is made by
a QuantizeLinear and p is dequantized, each for one reader.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.graph import Editor, remove_dead, replace_uses
from edgeq.look_up import look_up
from edgeq.numerics.qtype import all_codes
from edgeq.passing import Context, Pass
from edgeq.qdq import is_requantization, operand, quantize_node


@dataclass(frozen=True)
class TabulateRequantization(Pass):
    """Replace second quantizations by tables."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many became tables. Those with a scale per channel stay."""
        editor = Editor(model.graph)
        matches = [node for node in model.graph if is_requantization(node)]
        done = sum(_replace(node, editor) for node in matches)
        remove_dead(model.graph)
        return done


def _replace(node: ir.Node, editor: Editor) -> bool:
    x, y = operand(node.inputs[0]), quantize_node(node)
    if x is None or y is None or x.qparams.axis is not None or y.qparams.axis is not None:
        return False
    if x.qparams.qtype.bits not in (8, 16):
        return False
    reals = x.qparams.dequantize(all_codes(x.qparams.qtype))
    name = y.codes.name or "codes"
    table = editor.initializer(f"{name}_table", y.qparams.quantize(reals))
    looked_up = look_up(editor, x.codes, table, name)
    editor.insert_before(node, looked_up)
    looked_up[-1].metadata_props.update(y.codes.metadata_props)
    replace_uses(y.codes, looked_up[-1])
    return True
