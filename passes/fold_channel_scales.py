"""Take the factors of channels into the QuantizeLinear behind them: a scale for each channel.

before:  x_q = QuantizeLinear(Mul(v, g), s, z);   y = Conv(DequantizeLinear(x_q, s, z), w)
after:   x_q = QuantizeLinear(v, s / g, z);       y = Conv(DequantizeLinear(x_q, s, z), w)

The reader's DequantizeLinear keeps its one scale, so the integer kernels stay what they are: codes
count steps of s, and the weights know that a channel was scaled by g. One division takes the place
of a multiplication and a division: for powers of two the bits are the same, else they are those of
the new definition.

The Mul stays where ONNX Runtime would fuse what makes `v` with the QuantizeLinear. Such kernels
take one scale: they refuse several at run time, or use the first of them for all
(ONNX Runtime 1.31, `per-axis-result` in `edgeq.rules`).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, constant, rank, remove_dead, sole_consumer
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, Pass
from edgeq.qdq import operand, quantize_node

# What ONNX Runtime never fuses with a QuantizeLinear behind it.
_UNFUSED = frozenset({"DequantizeLinear", "Div", "GatherElements", "Sub"})
_FUSED_BETWEEN_CODES = frozenset({"Add", "Mul"})  # where both sides are dequantized


@dataclass(frozen=True)
class FoldChannelScales(Pass):
    """Fold the factors that `context.channel_scales` names."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many QuantizeLinear nodes got a scale for each channel."""
        editor = Editor(model.graph)
        nodes = [n for n in model.graph if n.outputs[0].name in context.channel_scales]
        done = sum(_fold(node, editor) for node in nodes)
        remove_dead(model.graph)
        return done


def _fold(node: ir.Node, editor: Editor) -> bool:
    value, factors = node.inputs[0], constant(node.inputs[1])
    reader = sole_consumer(node.outputs[0])
    found = None if reader is None else quantize_node(reader)
    if value is None or factors is None or found is None or found.qparams.axis is not None:
        return False
    if reader is None or rank(value) is None or not _is_unfused(value):
        return False
    if _is_rounded_for_this(value):
        return False
    scale = (found.qparams.scale / factors.reshape(-1)).astype(np.float32)
    fits = np.isfinite(scale).all() and (scale >= np.finfo(np.float32).tiny).all()
    if not fits or scale.size != factors.size or scale.size == 1:
        return False
    zeros = np.broadcast_to(found.qparams.zero_point, scale.shape)
    qparams = QParams(found.qparams.qtype, scale, zeros, 1)
    name = reader.outputs[0].name
    reader.replace_input_with(0, value)
    reader.replace_input_with(1, editor.initializer(f"{name}_scales", qparams.scale))
    codes = qparams.zero_point.astype(qparams.qtype.dtype)
    reader.replace_input_with(2, editor.initializer(f"{name}_zero_points", codes))
    reader.attributes["axis"] = ir.AttrInt64("axis", 1)
    return True


def _is_rounded_for_this(value: ir.Value) -> bool:
    """Whether two QuantizeLinear would stand one behind the other: ONNX Runtime makes them one."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or sole_consumer(value) is None:
        return False
    codes = node.inputs[0]
    return codes is not None and sole_consumer(codes) is not None


def _is_unfused(value: ir.Value) -> bool:
    """Whether no kernel makes `value` and its codes at once."""
    node = value.producer()
    if node is None:
        return True
    if node.domain:
        return False
    if node.op_type == "Reshape" and node.inputs[0] is not None:  # of what a table made
        node = node.inputs[0].producer() or node
        return node.op_type == "GatherElements"
    if node.op_type in _FUSED_BETWEEN_CODES:
        return not all(map(operand, node.inputs))
    return node.op_type in _UNFUSED
