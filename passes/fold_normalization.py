"""Fold the scale and bias of a LayerNormalization into the linear ops that read it.

before:  y = LayerNormalization(x, gamma, beta);  z = Gemm(y, w, b)
after:   y = LayerNormalization(x, 1, 0);         z = Gemm(y, w * gamma, b + sum(w * beta))

Where every reader is a Gemm with constant weights, through Reshape or not: two operations per
element less. Computed in float64 and rounded to float32 once. A weight that is an embedding as well
(tied, in language models) stays as it is, to be stored once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.code_plan import is_embedding
from edgeq.graph import Editor, constant, consumers
from edgeq.linear_weights import behind_affine, has_linear_weights, set_linear_weights
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class FoldNormalization(Pass):
    """Fold where nothing else reads the normalised value."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many LayerNormalization nodes lost their scale and bias."""
        editor = Editor(model.graph)
        tables = [node.inputs[0] for node in model.graph if is_embedding(node)]
        arrays = [array for array in map(constant, tables) if array is not None]
        return sum(_fold(node, arrays, editor) for node in list(model.graph))


def _fold(node: ir.Node, tables: list[NDArray[Any]], editor: Editor) -> bool:
    if node.op_type != "LayerNormalization" or node.domain:
        return False
    gamma = constant(node.inputs[1])
    beta = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    readers = _gemms(node.outputs[0])
    if gamma is None or gamma.ndim != 1 or gamma.dtype != np.float32 or not readers:
        return False
    offset = np.zeros_like(gamma) if beta is None else beta
    if (gamma == 1).all() and not offset.any():
        return False
    weights = [constant(gemm.inputs[1]) for gemm in readers]
    if any(np.array_equal(w, table) for w in weights if w is not None for table in tables):
        return False
    for gemm in readers:
        folded = behind_affine(gemm, gamma.astype(np.float64), offset.astype(np.float64))
        set_linear_weights(gemm, folded, editor)
    name = node.outputs[0].name
    node.replace_input_with(1, editor.initializer(f"{name}_one", np.ones_like(gamma)))
    if len(node.inputs) > 2:
        node.resize_inputs(2)
    return True


def _gemms(value: ir.Value) -> list[ir.Node]:
    """Return the Gemms that alone read `value`, perhaps behind a Reshape that keeps its rows."""
    found: list[ir.Node] = []
    if value.is_graph_output():
        return []
    for reader in consumers(value):
        rows = reader.outputs[0]
        if reader.op_type == "Reshape" and _keeps_rows(value, rows):
            inner = _gemms(rows)
            if not inner:
                return []
            found += inner
        elif reader.op_type == "Gemm" and reader.inputs[0] is value and has_linear_weights(reader):
            found.append(reader)
        else:
            return []
    return found


def _keeps_rows(value: ir.Value, rows: ir.Value) -> bool:
    if value.shape is None or rows.shape is None:
        return False
    return isinstance(value.shape[-1], int) and value.shape[-1] == rows.shape[-1]
