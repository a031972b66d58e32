"""Move Relu and Clip behind the QuantizeLinear, where they are limits on codes, and drop idle ones.

before:  q = QuantizeLinear(Clip(Conv(x, w), 0, 6), s, z)
after:   q = QuantizeLinear(Conv(x, w), s, z)                          if the limits are qmin, qmax
         q = Clip(QuantizeLinear(Conv(x, w), s, z), Q(0), Q(6))        otherwise

Quantizing is monotonic, so `Q(clip(v, a, b)) == clip(Q(v), Q(a), Q(b))` for every v: this is exact
for any scale. With it the linear op in front stays next to its QuantizeLinear and is fused. A limit
is idle when its code is the end of the range: every value beyond it saturates to the same code. A
Clip that stands behind the QuantizeLinear already, as for codes of 6 bits, takes the limits over.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, constant, sole_consumer, take_output
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, Pass
from edgeq.qdq import REAL_NAME, limited_codes, quantize_node
from edgeq.roles import CLIPS


@dataclass(frozen=True)
class FoldClip(Pass):
    """Turn Relu and Clip in front of a QuantizeLinear into limits on codes."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many Relu and Clip nodes went."""
        folded = 0
        for node in reversed(list(model.graph)):
            if node.op_type in CLIPS and not node.domain:
                folded += _fold(model.graph, node)
        return folded


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    quantize = sole_consumer(node.outputs[0])
    result = None if quantize is None else quantize_node(quantize)
    limits = _limits(node)
    source = node.inputs[0]
    if result is None or limits is None or source is None or result.qparams.axis is not None:
        return False
    if source.dtype != ir.DataType.FLOAT:
        return False
    low, high = (int(result.qparams.quantize(np.asarray(v, np.float32))) for v in limits)
    result.node.replace_input_with(0, source)
    graph.remove(node, safe=True)
    qparams = result.qparams
    if low > qparams.qtype.qmin or high < qparams.qtype.qmax:
        _clip_codes(graph, result.node, qparams, low, high)
    return True


def _limits(node: ir.Node) -> tuple[float, float] | None:
    """Return the real limits, or None when they are not constant."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    limits = [-np.inf, np.inf]
    for index in (1, 2):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            continue
        array = constant(value)
        if array is None or array.size != 1:
            return None
        limits[index - 1] = float(array.reshape(()))
    return limits[0], limits[1]


def _clip_codes(graph: ir.Graph, node: ir.Node, qparams: QParams, low: int, high: int) -> None:
    editor = Editor(graph)
    codes = node.outputs[0]
    behind = limited_codes(codes)
    if behind is not None:
        low, high = (min(max(limit, behind.low), behind.high) for limit in (low, high))
    bounds = [
        editor.initializer(f"{codes.name}_{name}", np.array(limit, qparams.qtype.dtype))
        for name, limit in (("min", low), ("max", high))
    ]
    if behind is not None:
        for index, bound in enumerate(bounds, 1):
            behind.node.replace_input_with(index, bound)
        return
    readers = list(codes.uses())
    clipped = editor.node(
        "Clip", [codes, *bounds], f"{codes.name}_clip", dtype=codes.dtype, shape=codes.shape
    )
    clipped.metadata_props.update(codes.metadata_props)
    codes.metadata_props.pop(REAL_NAME, None)
    for reader, index in readers:
        reader.replace_input_with(index, clipped)
    editor.insert_after(node, [clipped])
    if codes.is_graph_output():
        take_output(codes, clipped)
