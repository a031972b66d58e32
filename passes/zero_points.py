"""Write the zero point that a DequantizeLinear leaves out.

before:  x = DequantizeLinear(q, s)
after:   x = DequantizeLinear(q, s, z)          z = 0, of the type of q

They mean the same; but without the input ONNX Runtime leaves a Gemm behind it in float.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, constant
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class ZeroPoints(Pass):
    """Give every DequantizeLinear its zero point."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many zero points were added."""
        editor = Editor(model.graph)
        done = 0
        for node in model.graph:
            if node.op_type != "DequantizeLinear" or node.domain:
                continue
            given = len(node.inputs) > 2 and node.inputs[2] is not None
            codes, scale = node.inputs[0], constant(node.inputs[1])
            if given or codes is None or codes.dtype is None or scale is None:
                continue
            zeros = np.zeros(scale.shape, codes.dtype.numpy())
            node.resize_inputs(3)
            node.replace_input_with(2, editor.initializer(f"{codes.name}_zero_point", zeros))
            done += 1
        return done
