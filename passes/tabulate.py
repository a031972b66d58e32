"""Replace functions of one value by tables of what they make of every code.

before:  x = DequantizeLinear(x_q, s, z)
         y = QuantizeLinear(Mul(x, Sigmoid(x)), sy, zy)
after:   y = Reshape(GatherElements(table, Cast(Reshape(x_q, [-1]))), Shape(x_q))

`table[q]` is the function of `float32((q - z) * s)`, computed on the host in float64 and rounded
to float32: codes where a QuantizeLinear follows, else the float32 values. A region of elementwise
nodes that read one value (`edgeq.unary_regions`) is one function; 8-bit codes have a table of 256
entries, 16-bit ones of 65,536. What moves elements inside a region moves the codes before it.

What is faster in float stays, where its bits are certain all the same: operations that IEEE
defines, while they are few, and a function of `FAST_FUNCTIONS` between 8-bit codes whose results
are all far from rounding ties (`edgeq.proofs.certify_unary`).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.functions import float64_function
from edgeq.graph import Editor, remove_dead, take_output
from edgeq.look_up import look_up
from edgeq.numerics.qtype import all_codes
from edgeq.passing import Context, Pass
from edgeq.proofs import certify_unary
from edgeq.qdq import Operand, Result, limited_codes, operand, result
from edgeq.unary_regions import UnaryRegion, unary_regions

# `python -m benchmarks.exact_forms`: DequantizeLinear - function - QuantizeLinear against a table.
FAST_FUNCTIONS = frozenset(
    {
        "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Reciprocal", "Sigmoid", "Softsign",
        "Tanh",
    }
)  # fmt: skip
FEW = 5  # passes over the data that take less than a table: see `_cost`


@dataclass(frozen=True)
class Tabulate(Pass):
    """Replace unary regions of codes by tables."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many regions became tables."""
        editor = Editor(model.graph)
        done = 0
        for region in unary_regions(model.graph, context.keep_float, shared=True):
            x, y = operand(region.source), result(region.output)
            if x is None or x.qparams.axis is not None or x.qparams.qtype.bits not in (8, 16):
                continue
            if y is not None and y.qparams.axis is not None:
                y = None
            if not _stays_float(region, x, y):
                _replace(region, x, y, editor)
                done += 1
        remove_dead(model.graph)
        return done


def _stays_float(region: UnaryRegion, x: Operand, y: Result | None) -> bool:
    """Whether the nodes themselves have certain bits, and take less time than a table."""
    if region.is_ieee:
        return y is None or (_cost(region) <= FEW and not region.moves)
    node = region.nodes[0]
    if len(region.nodes) > 1 or node.op_type not in FAST_FUNCTIONS or y is None:
        return False
    function = float64_function(node)
    alike = x.qparams.qtype is y.qparams.qtype and x.qparams.qtype.bits == 8
    if function is None or not alike:
        return False
    return certify_unary(function, x.qparams, y.qparams).certain


def _cost(region: UnaryRegion) -> int:
    """Return the time that the nodes take in float: one for each, two for each further reader.

    Every reader has a DequantizeLinear of its own, which writes four bytes an element.
    """
    reads = sum(operand(value) is not None for node in region.nodes for value in node.inputs)
    return len(region.nodes) + 2 * (reads - 1)


def _replace(region: UnaryRegion, x: Operand, y: Result | None, editor: Editor) -> None:
    name = region.output.name or region.nodes[-1].op_type
    table, output = _reals(region, x), region.output
    if y is not None:
        table, output = y.qparams.quantize(table), y.codes
        limits = limited_codes(output)
        if limits is not None:
            table, output = table.clip(limits.low, limits.high), limits.codes
    moved = _move_codes(region, x.codes, editor)
    codes = moved[-1] if moved else x.codes
    looked_up = look_up(editor, codes, editor.initializer(f"{name}_table", table), f"{name}_out")
    editor.insert_before(region.nodes[-1], [*moved, *looked_up])
    looked_up[-1].metadata_props.update(output.metadata_props)
    for reader, index in list(output.uses()):
        reader.replace_input_with(index, looked_up[-1])
    if output.is_graph_output():
        take_output(output, looked_up[-1])


def _reals(region: UnaryRegion, x: Operand) -> NDArray[np.float32]:
    """Return what the region makes of every code; some CPUs flush denormals, so there are none."""
    inputs = x.qparams.dequantize(all_codes(x.qparams.qtype)).astype(np.float64)
    with np.errstate(over="ignore"):
        reals = region.evaluate(inputs).astype(np.float32)
    reals[np.abs(reals) < np.finfo(np.float32).tiny] = 0
    return reals


def _move_codes(region: UnaryRegion, codes: ir.Value, editor: Editor) -> list[ir.Value]:
    """Return codes moved as the region moves reals, step by step; the caller inserts the nodes."""
    made = []
    for node in region.moves:
        codes = editor.node(
            node.op_type,
            [codes, *node.inputs[1:]],
            f"{codes.name}_moved",
            attributes=dict(node.attributes),
            dtype=codes.dtype,
            shape=node.outputs[0].shape,
        )
        made.append(codes)
    return made
