"""Fold BatchNormalization into the linear op before it.

before:  y = BatchNormalization(Conv(x, w, b), gamma, beta, mean, var)
after:   y = Conv(x, w * k, (b - mean) * k + beta)      where k = gamma / sqrt(var + eps)

The same for ConvTranspose and Gemm. Computed in float64 and rounded to float32 once. A
BatchNormalization behind anything else becomes a depthwise Conv, for which runtimes have an integer
kernel:

before:  y = BatchNormalization(Add(a, b), gamma, beta, mean, var)
after:   y = Conv(Add(a, b), k as [C, 1, 1, 1], beta - mean * k, group = C)

It becomes `Add(Mul(x, k), beta - mean * k)` where `x` is a matrix or the node stays in float, and
where `fold-affine` or `fold-input` fold that into a linear op beside it, so that no Conv is added.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.affine_nodes import Float64, affine_node
from edgeq.graph import (
    Editor,
    constant,
    consumers,
    float_attribute,
    int_attribute,
    producer,
    rank,
    remove_dead,
    replace_uses,
    sole_consumer,
    take_output,
)
from edgeq.linear_weights import (
    has_linear_weights,
    has_padding,
    linear_weights,
    set_linear_weights,
)
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold every BatchNormalization with constant statistics."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many BatchNormalization nodes went."""
        graph = model.graph
        found = [n for n in graph if n.op_type == "BatchNormalization" and not n.domain]
        editor = Editor(graph)
        folded = sum(_fold(node, editor, context) for node in found)
        remove_dead(graph)
        return folded


def _fold(node: ir.Node, editor: Editor, context: Context) -> bool:
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
    # What stays float must not become a Conv, whose float sums have no proof.
    plain = ndim < 3 or context.keep_float(node)
    plain = plain or _folds_behind(source, context) or _folds_ahead(output, offset)
    made = (_mul_add if plain else _depthwise)(source, output, affine, editor)
    editor.insert_before(node, made)
    total = made[-1]
    replace_uses(output, total)
    take_output(output, total)
    producer(total).name = node.name
    return True


def _folds_behind(source: ir.Value, context: Context) -> bool:
    """Whether constants alone stand between `source` and a linear op or a frame's input."""
    value = source
    while (affine := affine_node(value.producer())) and sole_consumer(value) is not None:
        value = affine.source
    if value.is_graph_input():
        return str(value.name) in context.input_types
    linear = value.producer()
    # Of a value that others read too, nothing can be folded into the weights.
    return linear is not None and has_linear_weights(linear) and sole_consumer(value) is not None


def _folds_ahead(output: ir.Value, offset: Float64) -> bool:
    """Whether every reader of `output` is a linear op that takes factor and offset."""
    readers = consumers(output)
    return (
        bool(readers)
        and not output.is_graph_output()
        and all(
            reader.op_type in ("Conv", "Gemm")
            and has_linear_weights(reader)
            and reader.inputs[0] is output
            and not (offset.any() and has_padding(reader))
            for reader in readers
        )
    )


def _mul_add(
    source: ir.Value, output: ir.Value, affine: tuple[Float64, Float64], editor: Editor
) -> list[ir.Value]:
    ndim = rank(source)
    assert ndim is not None
    shape = (-1, *[1] * (ndim - 2)) if ndim > 1 else (-1,)
    factor, offset = (part.astype(np.float32).reshape(shape) for part in affine)
    k = editor.initializer(f"{output.name}_factor", factor)
    c = editor.initializer(f"{output.name}_offset", offset)
    product = editor.node(
        "Mul", [source, k], f"{output.name}_scaled", dtype=source.dtype, shape=source.shape
    )
    total = editor.node(
        "Add", [product, c], f"{output.name}_sum", dtype=source.dtype, shape=source.shape
    )
    return [product, total]


def _depthwise(
    source: ir.Value, output: ir.Value, affine: tuple[Float64, Float64], editor: Editor
) -> list[ir.Value]:
    ndim = rank(source)
    assert ndim is not None
    factor, offset = (part.astype(np.float32) for part in affine)
    ones = [1] * (ndim - 2)
    k = editor.initializer(f"{output.name}_factor", factor.reshape(-1, 1, *ones))
    c = editor.initializer(f"{output.name}_offset", offset)
    total = editor.node(
        "Conv", [source, k, c], f"{output.name}_scaled", dtype=source.dtype, shape=source.shape,
        attributes={"group": factor.size, "kernel_shape": ones},
    )  # fmt: skip
    return [total]


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
