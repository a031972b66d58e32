"""Write products of 16-bit codes in float64, where their sums are exact.

before:  y_q = QuantizeLinear(MatMul(DequantizeLinear(a_q, sa, za), DequantizeLinear(b_q, sb, zb)),
                              sy, zy)
after:   a   = Sub(Cast(a_q), za);  b = Sub(Cast(b_q), zb)                    float64, integers
         y_q = QuantizeLinear(Cast(MatMul(a, b)), float32(sy / (sa * sb)), zy)

No integer kernel takes 16-bit codes, and float32 counts to 2**24 alone: one product of 16 by 8
bits. float64 adds up 2**29 of them in any order. It is for who asks for 16 bits: a softmax, say, to
see what 8 bits cost.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.chain import Chain
from edgeq.graph import Editor, remove_dead, replace_uses, take_output
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, Result, operand, result

DOUBLE, FLOAT = ir.DataType.DOUBLE, ir.DataType.FLOAT


@dataclass(frozen=True)
class WidenProducts(Pass):
    """Rewrite each MatMul of codes, some of which have 16 bits."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many products went."""
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            if node.op_type != "MatMul" or node.domain or context.keep_float(node):
                continue
            a, b = (operand(value) for value in node.inputs)
            y = result(node.outputs[0])
            if a is None or b is None or y is None:
                continue
            parameters = [side.qparams for side in (a, b, y)]
            bits = max(a.qparams.qtype.bits, b.qparams.qtype.bits)
            if bits != 16 or any(p.axis is not None for p in parameters):
                continue
            _widen(node, a, b, y, editor)
            done += 1
        remove_dead(model.graph)
        return done


def _widen(node: ir.Node, a: Operand, b: Operand, y: Result, editor: Editor) -> None:
    write = Chain(editor, str(node.outputs[0].name))
    product = write("MatMul", *(_units(write, x) for x in (a, b)), shape=node.outputs[0].shape)
    ratio = np.float32(y.qparams.scale / np.float32(a.qparams.scale * b.qparams.scale))
    zero_point = y.qparams.zero_point.astype(y.qparams.qtype.dtype)
    codes = write(
        "QuantizeLinear",
        write.cast(product, FLOAT),
        write.constant(ratio),
        write.constant(zero_point),
        dtype=y.codes.dtype,
    )
    codes.metadata_props.update(y.codes.metadata_props)
    write.insert_before(node)
    replace_uses(y.codes, codes)
    take_output(y.codes, codes)


def _units(write: Chain, x: Operand) -> ir.Value:
    units = write.cast(x.codes, DOUBLE)
    if not x.qparams.zero_point.any():
        return units
    return write("Sub", units, write.constant(x.qparams.zero_point.astype(np.float64)))
