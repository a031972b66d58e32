"""Fold a multiplication by, or an addition of, constants into the linear op beside it.

before:  y = Add(Mul(Conv(x, w, b), k), c)      after:  y = Conv(x, w * k, b * k + c)
before:  y = Conv(Add(Mul(x, k), c), w, b)      after:  y = Conv(x, w * k, b + sum(w * c))

Behind a Conv, ConvTranspose or Gemm always, with one constant per output channel; Div and Sub as
well. One constant for all channels also passes Reshape, Transpose and their like:

before:  y = Mul(Transpose(Reshape(Gemm(x, w, b))), 0.125)
after:   y = Transpose(Reshape(Gemm(x, w * 0.125, b * 0.125)))

In front of a Conv or Gemm only where padding cannot tell: an offset moves what the borders
see, so it stays in front of a padded Conv; a factor leaves zeros zero. Every fold is computed in
float64 and rounded to float32 once.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.affine_nodes import AffineNode, affine_node, per_channel
from edgeq.graph import (
    Editor,
    consumers,
    rank,
    remove_dead,
    replace_uses,
    sole_consumer,
    take_output,
)
from edgeq.linear_weights import (
    behind_affine,
    has_linear_weights,
    has_padding,
    input_channels,
    linear_weights,
    set_linear_weights,
)
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold until nothing is left to fold."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes went."""
        graph = model.graph
        editor = Editor(graph)
        folded = 0
        while step := sum(_fold(node, editor) for node in list(graph)):
            folded += step
            remove_dead(graph)
        return folded


def _fold(node: ir.Node, editor: Editor) -> bool:
    affine = affine_node(node)
    if affine is None or (not node.outputs[0].uses() and not node.outputs[0].is_graph_output()):
        return False
    return _into_producer(affine, editor) or _into_consumers(affine, editor)


def _into_producer(affine: AffineNode, editor: Editor) -> bool:
    if sole_consumer(affine.source) is not affine.node:
        return False
    same_for_all = affine.factor.size == affine.offset.size == 1
    made = _in_front_of_movement(affine.source) if same_for_all else affine.source
    linear = made.producer()
    weights = None if linear is None else linear_weights(linear)
    if linear is None or weights is None:
        return False
    outputs = weights.bias.size
    factor = per_channel(affine.factor, -1 if same_for_all else 1, outputs)
    offset = per_channel(affine.offset, -1 if same_for_all else 1, outputs)
    if factor is None or offset is None:
        return False
    output = affine.node.outputs[0]
    set_linear_weights(linear, weights.scaled(factor, offset), editor)
    replace_uses(output, affine.source)
    take_output(output, affine.source)
    return True


# Every element stays, once; none is added.
_REARRANGEMENTS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def _in_front_of_movement(value: ir.Value) -> ir.Value:
    """Walk up from `value` through nodes that rearrange elements for it alone."""
    node = value.producer()
    while node is not None and not node.domain and node.op_type in _REARRANGEMENTS:
        source = node.inputs[0]
        if source is None or sole_consumer(source) is not node:
            return value
        value, node = source, source.producer()
    return value


def _into_consumers(affine: AffineNode, editor: Editor) -> bool:
    output = affine.node.outputs[0]
    readers = consumers(output)
    if output.is_graph_output() or not all(_takes(reader, affine) for reader in readers):
        return False
    for reader in readers:
        channels = input_channels(reader)
        factor = per_channel(affine.factor, 1, channels)
        offset = per_channel(affine.offset, 1, channels)
        assert factor is not None and offset is not None
        set_linear_weights(reader, behind_affine(reader, factor, offset), editor)
        reader.replace_input_with(0, affine.source)
    return True


def _takes(reader: ir.Node, affine: AffineNode) -> bool:
    output = affine.node.outputs[0]
    if reader.op_type not in ("Conv", "Gemm") or not has_linear_weights(reader):
        return False
    if [v is output for v in reader.inputs].count(True) != 1 or reader.inputs[0] is not output:
        return False
    if rank(output) is None or (affine.offset.any() and has_padding(reader)):
        return False
    channels = input_channels(reader)
    fits = (per_channel(affine.factor, 1, channels), per_channel(affine.offset, 1, channels))
    return all(part is not None for part in fits)
