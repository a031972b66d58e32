"""Quantize an activation per tensor whose channels had scales of their own: weights take them over.

before:  q = QuantizeLinear(Relu(Conv(x, w)), s[C], z)           per channel
         y = Conv<group=C>(DequantizeLinear(q, s[C], z), v)      depthwise
after:   q = QuantizeLinear(Relu(Conv(x, w / s)), 1, z)          the scales of w are divided
         y = Conv<group=C>(DequantizeLinear(q, 1, z), v * s)     those of v are multiplied

The kernels of linear ops take one scale for an activation. A channel's scale passes through Relu,
and through a depthwise Conv, whose channels do not meet; so the linear ops on both sides can hold
it, in the scales of their weights. Codes stay what they were, up to the rounding of scales.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor, consumers, int_attribute, sole_consumer
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, Result, constant_reals, operand, quantize_node

Scales = NDArray[np.float32]


@dataclass(frozen=True)
class MoveChannelScales(Pass):
    """Move the scales of an activation's channels into the weights on both sides."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many activations have one scale now."""
        editor = Editor(model.graph)
        return sum(_move(node, editor) for node in list(model.graph))


def _move(node: ir.Node, editor: Editor) -> bool:
    found = quantize_node(node)
    if found is None or found.qparams.axis != 1 or len(set(found.qparams.zero_point.tolist())) > 1:
        return False
    writer, readers = _writer(found), _readers(found)
    if writer is None or not readers:
        return False
    scale = found.qparams.scale
    zero = np.asarray(found.qparams.zero_point[0], found.qparams.qtype.dtype)
    inputs = editor.initializer("one", np.float32(1)), editor.initializer("zero_point", zero)
    for reader in (node, *(x.node for _, x in readers)):
        reader.attributes.pop("axis", None)
        for place, value in enumerate(inputs, 1):
            reader.replace_input_with(place, value)
    _scale(writer, np.asarray(np.float32(1) / scale), editor, scales_bias=True)
    for conv, _ in readers:
        _scale(conv, scale, editor, scales_bias=False)
    return True


def _writer(found: Result) -> ir.Node | None:
    """Return the linear op in front, Relu allowed in between, if nobody else reads its result."""
    value = found.node.inputs[0]
    for _ in range(2):
        node = None if value is None else value.producer()
        if value is None or node is None or node.domain or sole_consumer(value) is None:
            return None
        if node.op_type == "Conv":
            return node if _weight(node) is not None and _plain_bias(node) else None
        if node.op_type != "Relu":
            return None
        value = node.inputs[0]
    return None


def _readers(found: Result) -> list[tuple[ir.Node, Operand]]:
    """Return the depthwise Convs behind; none if anything else reads the codes."""
    channels, pairs = found.qparams.scale.size, []
    if found.codes.is_graph_output():
        return []
    for node in consumers(found.codes):
        x = operand(node.outputs[0])
        if x is None or not x.qparams.same_as(found.qparams):
            return []
        for conv in consumers(node.outputs[0]):
            w = _weight(conv) if conv.op_type == "Conv" and not conv.domain else None
            depthwise = int_attribute(conv, "group", 1) == channels
            if w is None or not depthwise or node.outputs[0].is_graph_output():
                return []
            pairs.append((conv, x))
    return pairs


def _weight(conv: ir.Node) -> Operand | None:
    w = operand(conv.inputs[1])
    return w if w is not None and w.array is not None and w.qparams.axis in (None, 0) else None


def _plain_bias(conv: ir.Node) -> bool:
    return len(conv.inputs) < 3 or conv.inputs[2] is None or _bias(conv) is not None


def _bias(conv: ir.Node) -> NDArray[np.float32] | None:
    return constant_reals(conv.inputs[2])


def _scale(conv: ir.Node, factor: Scales, editor: Editor, *, scales_bias: bool) -> None:
    """Multiply the real weights of each output channel, and the bias where it is meant too."""
    w = _weight(conv)
    assert w is not None and w.array is not None
    channels = len(w.array)
    factor = np.repeat(factor, channels // len(factor))
    scale = np.asarray(np.broadcast_to(w.qparams.scale, channels) * factor, np.float32)
    zero = np.broadcast_to(w.qparams.zero_point, channels).astype(w.qparams.qtype.dtype)
    name = w.codes.name
    made = editor.node(
        "DequantizeLinear",
        [
            w.codes,
            editor.initializer(f"{name}_scale", scale),
            editor.initializer(f"{name}_zero_point", zero),
        ],
        f"{name}_dq",
        attributes={"axis": 0},
        dtype=ir.DataType.FLOAT,
        shape=w.codes.shape,
    )
    editor.insert_before(conv, [made])
    conv.replace_input_with(1, made)
    if not scales_bias or len(conv.inputs) < 3 or conv.inputs[2] is None:
        return
    x, codes = operand(conv.inputs[0]), operand(conv.inputs[2])
    if x is not None and codes is not None and codes.qparams.qtype.name == "int32":
        grid = np.asarray(x.qparams.scale * scale, np.float32)
        conv.replace_input_with(2, _on_grid(conv, codes, grid, editor))
        return
    bias = _bias(conv)
    assert bias is not None
    moved = np.asarray(bias * factor, np.float32)
    conv.replace_input_with(2, editor.initializer(f"{conv.outputs[0].name}_bias", moved))


def _on_grid(conv: ir.Node, bias: Operand, scale: Scales, editor: Editor) -> ir.Value:
    """Return the same bias codes on the moved grid of the accumulator."""
    name = conv.outputs[0].name
    made = editor.node(
        "DequantizeLinear",
        [
            bias.codes,
            editor.initializer(f"{name}_bias_scale", scale),
            editor.initializer(f"{name}_bias_zero_point", np.zeros(scale.shape, np.int32)),
        ],
        f"{name}_bias_dq",
        attributes={"axis": 0},
        dtype=ir.DataType.FLOAT,
        shape=bias.codes.shape,
    )
    editor.insert_before(conv, [made])
    return made
