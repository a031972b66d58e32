"""Which initializers of a quantized graph can be learned: codes of weights, biases, scales.

Codes are learned where it is known what they were rounded from; biases where they are int32 codes
of an integer linear op; scales of weights with their codes; scales of activations where nothing
else of the graph was made from their value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.float_weight import FloatWeight
from edgeq.graph import constant
from edgeq.numerics.affine import QParams
from edgeq.qdq import REAL_NAME, LinearGroup, Result, linear_group, quantize_node


@dataclass(frozen=True, eq=False)
class Weight:
    """The codes of a linear op's weight.

    Attributes:
        codes: Their initializer.
        scale: The initializer of their scale, `()` or `(channels,)`.
        group: The linear op.
        source: What the codes were rounded from.
    """

    codes: ir.Value
    scale: ir.Value
    group: LinearGroup
    source: FloatWeight


@dataclass(frozen=True, eq=False)
class Bias:
    """The int32 codes of a linear op's bias, whose scale is `float32(sx * sw)`.

    Attributes:
        codes: Their initializer.
        scale: The initializer of their scale.
        scale_x: That of the scale of the op's input.
        scale_w: That of the scale of its weight.
        group: The linear op.
    """

    codes: ir.Value
    scale: ir.Value
    scale_x: ir.Value
    scale_w: ir.Value
    group: LinearGroup


def find_weights(graph: ir.Graph, sources: Mapping[str, FloatWeight]) -> list[Weight]:
    """Return the weights whose codes can be rounded anew, in graph order."""
    found = {}
    for group in _groups(graph):
        codes, scale = group.w.node.inputs[:2]
        assert codes is not None and scale is not None
        source = sources.get(str(codes.name))
        if codes.is_initializer() and source is not None and len(codes.uses()) == 1:
            found[codes] = Weight(codes, scale, group, source)
    return list(found.values())


def find_biases(graph: ir.Graph) -> list[Bias]:
    """Return the biases of integer linear ops, in graph order."""
    found = {}
    for group in _groups(graph):
        if group.bias is None:
            continue
        codes, scale = group.bias.node.inputs[:2]
        scale_x, scale_w = group.x.node.inputs[1], group.w.node.inputs[1]
        assert codes is not None and scale is not None
        assert scale_x is not None and scale_w is not None
        if codes.is_initializer() and len(codes.uses()) == 1 and len(scale.uses()) == 1:
            found[codes] = Bias(codes, scale, scale_x, scale_w, group)
    return list(found.values())


def find_activation_scales(graph: ir.Graph, qparams: Mapping[str, QParams]) -> list[ir.Value]:
    """Return the scales of 8-bit activations that may take other values, in graph order.

    Not those of inputs and probabilities, whose ranges are known; nor where a limit on codes was
    made from the scale, or codes are dequantized with another one than they were made with.

    Args:
        graph: A graph of QuantizeLinear and DequantizeLinear pairs.
        qparams: What was decided for the float model's values, by name.
    """
    found: dict[ir.Value, bool] = {}
    for node in graph:
        if node.op_type == "QuantizeLinear" and not node.domain:
            scale = node.inputs[1]
            assert scale is not None
            made = quantize_node(node)
            fits = made is not None and _is_free(node, made, qparams)
            found[scale] = found.get(scale, True) and fits
    mismatched = _mismatched(graph)
    return [v for v, fits in found.items() if fits and v.is_initializer() and v not in mismatched]


def _groups(graph: ir.Graph) -> Iterator[LinearGroup]:
    return (group for node in graph if (group := linear_group(node)) is not None)


def _is_free(node: ir.Node, made: Result, qparams: Mapping[str, QParams]) -> bool:
    source = node.inputs[0]
    maker = None if source is None else source.producer()
    if maker is None or maker.op_type == "Softmax" or made.qparams.axis is not None:
        return False
    if made.qparams.qtype.bits > 8:
        return False
    decided = qparams.get(made.codes.metadata_props.get(REAL_NAME, ""))
    limits = [r for r, _ in made.codes.uses() if r.op_type in ("Clip", "Max", "Min")]
    return all(_limits_the_format(reader, made, decided) for reader in limits)


def _limits_the_format(clip: ir.Node, made: Result, decided: QParams | None) -> bool:
    """Whether limits on codes are those of a narrow format, or at real 0: not of a real number."""
    if clip.op_type != "Clip":
        return False
    bounds = [None if v is None else constant(v) for v in clip.inputs[1:]]
    zero = int(made.qparams.zero_point)
    fitting = {zero, made.qparams.qtype.qmin, made.qparams.qtype.qmax}
    if decided is not None:
        fitting |= {decided.qtype.qmin, decided.qtype.qmax}
    return all(bound is not None and int(bound) in fitting for bound in bounds)


def _mismatched(graph: ir.Graph) -> set[ir.Value]:
    """Return the scales of codes that are dequantized with another scale than they were made."""
    made: dict[ir.Value, frozenset[ir.Value]] = {}
    found: set[ir.Value] = set()
    for node in graph:
        if node.op_type == "QuantizeLinear" and not node.domain:
            scales = frozenset(v for v in node.inputs[1:2] if v is not None)
        elif node.op_type == "DequantizeLinear" and not node.domain:
            codes, scale = node.inputs[0], node.inputs[1]
            sources = frozenset() if codes is None else made.get(codes, frozenset())
            if sources and sources != {scale}:
                found |= sources
                found |= {scale} if scale is not None else set()
            continue
        else:
            scales = frozenset(s for v in node.inputs if v is not None for s in made.get(v, ()))
        made.update(dict.fromkeys(node.outputs, scales))
    return found
