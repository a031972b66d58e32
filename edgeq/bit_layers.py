"""Layers whose widths can be chosen: what they read, hold and compute.

They are the linear ops whose weights become codes, and embeddings. Layers that read values with
the same parameters have one source: their codes have one width. A table that is also the weight of
a Gemm (tied embeddings) is stored once, with the Gemm's codes: it belongs to that layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.code_plan import is_embedding, plan_codes
from edgeq.graph import constant, consumers, int_attribute
from edgeq.linear_weights import output_axis
from edgeq.numerics.affine import QParams
from edgeq.passing import Context
from edgeq.recipe import QuantSpec
from edgeq.roles import CLIPS
from edgeq.weight_codes import BIAS_LIMIT, encode, encode_rows

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BitLayer:
    """A layer.

    Attributes:
        node: Conv, Gemm or MatMul with constant weights; Gather for an embedding.
        weight: Its weights, as stored.
        bias: One value per output channel, or one for all; None without a constant bias.
        operands: Inputs of nodes that hold this weight: (name of the node, index).
        source: The value that decides the format of what the layer reads; None for an embedding.
        maker: Whose rule decides that format: the node that makes the source, or reads it first.
        macs: Multiplications and additions of a sample.
    """

    node: ir.Node
    weight: Float32
    bias: Float32 | None
    operands: tuple[tuple[str, int], ...]
    source: ir.Value | None
    maker: ir.Node | None
    macs: int

    @property
    def name(self) -> str:
        """Name of the node."""
        return str(self.node.name)

    @property
    def x(self) -> ir.Value | None:
        """The value that it multiplies; None for an embedding."""
        return None if self.source is None else self.node.inputs[0]

    def spec(self, context: Context) -> QuantSpec:
        """Return how the recipe quantizes the weights."""
        return context.weight_spec(self.node)

    def rounded_weight(self, spec: QuantSpec, x: QParams | None, context: Context) -> Float32:
        """Return the reals that the codes of the weights stand for: those of quantize-weights.

        Args:
            spec: How they are to be quantized.
            x: Parameters of what the layer reads; None for an embedding.
            context: Tells what the target multiplies right.
        """
        limit = min(spec.limit, context.capabilities.weight_max)
        if x is None:
            codes, qparams = encode_rows(self.weight, spec, limit)
            return qparams.dequantize(codes)
        channels = output_axis(self.node, self.weight.ndim)
        made = encode(
            self.weight,
            self.bias,
            x,
            spec,
            axis=channels if spec.granularity == "per_channel" else None,
            limit=limit,
            bias_limit=BIAS_LIMIT,
        )
        return made.qparams.dequantize(made.weight)

    def corrected_bias(self, rounded: Float32, context: Context) -> Float32 | None:
        """Return the bias that correct-bias comes to: the mean of every output channel stays.

            b' = b + sum over inputs of (w - rounded) * (mean of what is read)

        Args:
            rounded: From `rounded_weight`.
            context: Knows the means.
        """
        if self.x is None or self.node.op_type not in ("Conv", "Gemm"):
            return None
        assert context.calibration is not None
        mean = context.calibration.statistics[str(self.x.name)].channel_mean
        error = self.weight.astype(np.float64) - rounded
        axis = output_axis(self.node, error.ndim)
        assert axis is not None
        rows = np.moveaxis(error, axis, 0)
        rows = rows.reshape(len(rows), rows.shape[1], -1).sum(2)
        groups = int_attribute(self.node, "group", 1)
        if mean.size != rows.shape[1] * groups:
            return None
        of_group = np.repeat(mean.reshape(groups, -1), len(rows) // groups, axis=0)
        bias = np.zeros(1) if self.bias is None else self.bias.reshape(-1)
        return np.asarray(bias + (rows * of_group).sum(1), np.float32)


def find_bit_layers(model: ir.Model, context: Context) -> list[BitLayer]:
    """Return the layers of the float model that was calibrated, in graph order."""
    assert context.calibration is not None
    sources = _sources(model, context)
    linear = [node for node in model.graph if _is_linear(node, sources, context)]
    tied: dict[ir.Node, list[tuple[str, int]]] = {node: [(str(node.name), 1)] for node in linear}
    tables = []
    for node in model.graph:
        if not is_embedding(node) or context.keep_float(node):
            continue
        gemm = _tied_to(node, linear)
        if gemm is None:
            tables.append(node)
        else:
            tied[gemm].append((str(node.name), 0))
    layers = [_linear_layer(node, tied[node], sources, context) for node in linear]
    places = {node: place for place, node in enumerate(model.graph)}
    layers += _embeddings(tables)
    return sorted(layers, key=lambda layer: places[layer.node])


def _sources(model: ir.Model, context: Context) -> dict[ir.Value, ir.Value]:
    """Return, for each value that becomes codes, the first one that shares its parameters."""
    return {v: group.values[0] for group in plan_codes(model, context) for v in group.values}


def _is_linear(node: ir.Node, sources: dict[ir.Value, ir.Value], context: Context) -> bool:
    """Whether quantize-weights will find an integer op with a constant weight here."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul") or context.keep_float(node):
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or node.inputs[0] not in sources:
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias, channels = constant(value), output_axis(node, weight.ndim)
    if value is None:
        return True
    if bias is None or channels is None:
        return False
    return bias.size == 1 or bias.shape[-1:] == (bias.size,) == (weight.shape[channels],)


def _linear_layer(
    node: ir.Node,
    operands: list[tuple[str, int]],
    sources: dict[ir.Value, ir.Value],
    context: Context,
) -> BitLayer:
    weight, x = constant(node.inputs[1]), node.inputs[0]
    assert weight is not None and x is not None and context.calibration is not None
    seen = context.calibration.statistics[str(node.outputs[0].name)]
    channels = output_axis(node, weight.ndim)
    each = weight.size // (1 if channels is None else max(1, weight.shape[channels]))
    return BitLayer(
        node,
        weight,
        constant(node.inputs[2]) if len(node.inputs) > 2 else None,
        tuple(operands),
        sources[x],
        _maker(sources[x]),
        each * seen.count // context.calibration.samples,
    )


def _maker(value: ir.Value) -> ir.Node | None:
    """Return the node whose rule decides the format of `value`, as choose-qparams does."""
    node = value.producer()
    if node is not None and node.op_type in CLIPS and node.inputs[0] is not None:
        node = node.inputs[0].producer() or node
    return next(iter(consumers(value)), None) if node is None else node


def _tied_to(embedding: ir.Node, linear: Sequence[ir.Node]) -> ir.Node | None:
    """Return the Gemm whose weight is the embedding's table."""
    table = constant(embedding.inputs[0])
    assert table is not None
    for node in linear:
        weight = constant(node.inputs[1])
        by_row = node.op_type == "Gemm" and output_axis(node, 2) == 0
        if by_row and weight is not None and np.array_equal(weight, table):
            return node
    return None


def _embeddings(nodes: Sequence[ir.Node]) -> list[BitLayer]:
    """Return a layer for each table, with all the nodes that read it."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        table = node.inputs[0]
        assert table is not None
        readers.setdefault(table, []).append(node)
    layers = []
    for table, mine in readers.items():
        weight = constant(table)
        assert weight is not None
        operands = tuple((str(node.name), 0) for node in mine)
        layers.append(BitLayer(mine[0], weight, None, operands, None, None, 0))
    return layers
