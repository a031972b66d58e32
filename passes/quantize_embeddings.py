"""Store embedding tables as int8 codes with a scale per row.

before:  y = Gather(table, ids)
after:   y = Mul(DequantizeLinear(Gather(table_q, ids), 1), Gather(table_scale, ids))

with `table_q` int8 [rows, width] and `table_scale` float32 [rows, 1]: the product is what a
DequantizeLinear per row would give, one IEEE multiplication. A table that is also the weight of a
Gemm (tied embeddings of language models) is stored once: both read the Gemm's codes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.code_plan import is_embedding
from edgeq.graph import Editor, constant, int_attribute, replace_uses, take_output
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, operand
from edgeq.weight_codes import encode_rows


@dataclass(frozen=True)
class QuantizeEmbeddings(Pass):
    """Replace float tables that are read by row."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many tables became codes."""
        editor = Editor(model.graph)
        tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        tied = _Tied(model, context)
        for node in list(model.graph):
            table = node.inputs[0] if node.inputs else None
            if table is None or not is_embedding(node) or context.keep_float(node):
                continue
            if table not in tables:
                tables[table] = _codes(table, node, tied, editor, context)
            _replace(node, *tables[table], editor)
        return len(tables)


class _Tied:
    """Weights of Gemms, quantized by row, and the float weights that they were."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        reference = context.reference
        floats = {} if reference is None else {n.name: n.inputs for n in reference.graph}
        self.weights: list[tuple[NDArray[Any], Operand]] = []
        for node in model.graph:
            if node.op_type != "Gemm" or node.domain or not int_attribute(node, "transB", 0):
                continue
            w, inputs = operand(node.inputs[1]), floats.get(node.name)
            weight = None if inputs is None else constant(inputs[1])
            if w is not None and w.qparams.axis == 0 and weight is not None:
                self.weights.append((weight, w))

    def find(self, table: NDArray[Any]) -> Operand | None:
        """Return the codes of a weight that equals `table`, element by element."""
        for weight, codes in self.weights:
            if weight.shape == table.shape and np.array_equal(weight, table):
                return codes
        return None


def _codes(
    table: ir.Value, node: ir.Node, tied: _Tied, editor: Editor, context: Context
) -> tuple[ir.Value, ir.Value]:
    """Return the codes and the scales of a table, a scale per row."""
    array, name = constant(table), table.name or "table"
    assert array is not None
    found = tied.find(array)
    if found is not None:
        scales, codes = found.qparams.scale, found.codes
    else:
        spec = context.weight_spec(node)
        limit = min(spec.limit, context.capabilities.weight_max)
        rows, parameters = encode_rows(array, spec, limit)
        scales, codes = parameters.scale, editor.initializer(f"{name}_q", rows)
    return codes, editor.initializer(f"{name}_scale", scales.reshape(-1, 1))


def _replace(node: ir.Node, codes: ir.Value, scales: ir.Value, editor: Editor) -> None:
    output, indices = node.outputs[0], node.inputs[1]
    name = output.name or "rows"
    one = editor.initializer(f"{name}_one", np.float32(1))
    zero = editor.initializer(f"{name}_zero", np.zeros((), np.int8))
    rows = editor.node(
        "Gather", [codes, indices], f"{name}_rows", dtype=codes.dtype, shape=output.shape
    )
    units = editor.node(
        "DequantizeLinear",
        [rows, one, zero],
        f"{name}_units",
        dtype=output.dtype,
        shape=output.shape,
    )
    scale = editor.node("Gather", [scales, indices], f"{name}_row_scale", dtype=output.dtype)
    real = editor.node(
        "Mul", [units, scale], f"{name}_real", dtype=output.dtype, shape=output.shape
    )
    editor.insert_before(node, [rows, units, scale, real])
    replace_uses(output, real)
    if output.is_graph_output():
        take_output(output, real)
    editor.graph.remove(node, safe=True)
