"""Fold BatchNormalization into the linear op before it.

before:  y = BatchNormalization(Conv(x, w, b), gamma, beta, mean, var)
after:   y = Conv(x, w * k, (b - mean) * k + beta)      where k = gamma / sqrt(var + eps)

The same for ConvTranspose and Gemm. A BatchNormalization behind anything else becomes
`Add(Mul(x, k), beta - mean * k)`. Computed in float64 and rounded to float32 once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import (
    Editor,
    constant,
    float_attribute,
    int_attribute,
    producer,
    rank,
    remove_dead,
    replace_uses,
    sole_consumer,
    take_output,
)
from edgeq.linear_weights import linear_weights, set_linear_weights
from edgeq.passing import Context, Pass

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold every BatchNormalization with constant statistics."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many BatchNormalization nodes went."""
        graph = model.graph
        found = [n for n in graph if n.op_type == "BatchNormalization" and not n.domain]
        editor = Editor(graph)
        folded = sum(_fold(node, editor) for node in found)
        remove_dead(graph)
        return folded


def _fold(node: ir.Node, editor: Editor) -> bool:
    affine = _affine(node)
    source = node.inputs[0]
    if affine is None or source is None:
        return False
    factor, offset = affine
    linear = source.producer()
    weights = None if linear is None else linear_weights(linear)
    output = node.outputs[0]
    if linear is not None and weights is not None and sole_consumer(source) is node:
        set_linear_weights(linear, weights.scaled(factor, offset), editor)
        replace_uses(output, source)
        take_output(output, source)
        return True
    ndim = rank(source)
    if ndim is None:
        return False
    shape = (-1, *[1] * (ndim - 2)) if ndim > 1 else (-1,)
    k = editor.initializer(f"{output.name}_factor", factor.astype(np.float32).reshape(shape))
    c = editor.initializer(f"{output.name}_offset", offset.astype(np.float32).reshape(shape))
    product = editor.node(
        "Mul", [source, k], f"{output.name}_scaled", dtype=source.dtype, shape=source.shape
    )
    total = editor.node(
        "Add", [product, c], f"{output.name}_sum", dtype=source.dtype, shape=source.shape
    )
    editor.insert_before(node, [product, total])
    replace_uses(output, total)
    take_output(output, total)
    producer(total).name = node.name
    return True


def _affine(node: ir.Node) -> tuple[Float64, Float64] | None:
    """Return factor and offset per channel, in float64; `None` unless the node is constant."""
    if int_attribute(node, "training_mode", 0) or any(
        out.uses() or out.is_graph_output() for out in node.outputs[1:]
    ):
        return None
    parameters: list[NDArray[Any] | None] = [constant(v) for v in node.inputs[1:5]]
    if len(parameters) != 4 or any(p is None for p in parameters):
        return None
    gamma, beta, mean, var = (np.asarray(p, np.float64) for p in parameters)
    epsilon = np.float64(np.float32(float_attribute(node, "epsilon", 1e-5)))
    factor = gamma / np.sqrt(var + epsilon)
    return factor, beta - mean * factor
