"""Why Exp and Round of codes give the same integers on every CPU: no result is near a tie.

`edgeq.certain_exponentials` chooses the scale of the codes so.
"""

import numpy as np
import onnx_ir as ir

from edgeq.certain_exponentials import margins
from edgeq.code_counts import code_count
from edgeq.exactness import DETERMINED, Grid
from edgeq.float_proofs import Reason, unproven
from edgeq.graph import sole_consumer
from edgeq.qdq import Operand, operand


def prove_rounded(node: ir.Node) -> Reason | None:
    """Return the proof of an Exp of codes, or of the Round behind it; None for all else."""
    exp = node if node.op_type == "Exp" else None
    if node.op_type == "Round" and node.inputs[0] is not None:
        exp = node.inputs[0].producer()
    x = None if exp is None else rounded_codes(exp)
    if x is None:
        return None
    step, zero_point = float(x.qparams.scale), int(x.qparams.zero_point)
    count = code_count(x)
    margin = float(margins(step, zero_point, count).min())
    if not margin > 0:  # NaN where a result is infinite
        return unproven("a result of Exp is so near a rounding tie that CPUs may round it apart")
    detail = (
        f"all {count} results lie {margin:.2g} further from a rounding tie than any CPU may err"
    )
    if node is exp:
        return Reason("table", detail, DETERMINED)
    highest = float(np.rint(np.exp((count - 1 - zero_point) * step)))
    return Reason("table", detail, Grid(1.0, 0.0, highest))


def rounded_codes(node: ir.Node) -> Operand | None:
    """Return the uint8 or uint16 codes of an Exp that nothing but a Round reads."""
    if node.op_type != "Exp" or node.domain:
        return None
    reader, x = sole_consumer(node.outputs[0]), operand(node.inputs[0])
    if reader is None or reader.op_type != "Round" or x is None:
        return None
    fits = x.qparams.axis is None and x.qparams.qtype.name in ("uint8", "uint16")
    return x if fits else None
