"""What makes float nodes of a QDQ model depend on the CPU: sums, functions, tables.

Each check yields a `Breach` for each place that it finds at one node.
"""

import numpy as np
import onnx_ir as ir

from edgeq.breach import Breach, Found
from edgeq.functions import float64_function
from edgeq.fused_proofs import fusion_proofs, quantized
from edgeq.graph import constant, string_attribute
from edgeq.normalization import NORMALIZING, normalization
from edgeq.numerics.qtype import QTYPES
from edgeq.proofs import certify_unary
from edgeq.qdq import Operand, operand
from edgeq.rounded_exponentials import prove_rounded

_SUMS = (
    "AveragePool",
    "ConvTranspose",
    "CumSum",
    "GlobalAveragePool",
    "ReduceMean",
    "ReduceSum",
    "Resize",
)


def off_grid_sum(node: ir.Node) -> Found:
    """Find sums of values dequantized with a scale that is no power of two."""
    if node.op_type not in _SUMS or node.domain:
        return
    if node.op_type == "Resize" and string_attribute(node, "mode", "nearest") == "nearest":
        return
    both = quantized(node)
    if both is not None and fusion_proofs(both):
        return  # a fused pool has a rule of its own
    for value in node.inputs:
        found = operand(value)
        if found is not None and not _dyadic(found):
            scale = float(np.atleast_1d(found.qparams.scale)[0])
            yield Breach(
                node.outputs[0].name or "",
                f"sums values of {found.codes.name} with scale {scale:.9g}",
            )


def _dyadic(found: Operand) -> bool:
    return bool(np.all(np.frexp(np.atleast_1d(found.qparams.scale))[0] == 0.5))


def float_function(node: ir.Node) -> Found:
    """Find functions in float whose results are not known to round alike."""
    function = None if node.domain else float64_function(node)
    if function is None or constant(node.inputs[0]) is not None:
        return
    rounded = prove_rounded(node)
    if rounded is not None and rounded.kind != "unproven":
        return
    found = quantized(node)
    if found is None:
        yield Breach(node.outputs[0].name or "", f"{node.op_type} in float32")
        return
    proof = certify_unary(function, found.inputs[0].qparams, found.y.qparams)
    if not proof.certain:
        yield Breach(node.outputs[0].name or "", proof.detail)


def normalization_in_float(node: ir.Node) -> Found:
    """Find normalisations in float, and say what keeps them from exact sums."""
    found = normalization(node)
    if found is None:
        if node.op_type in NORMALIZING and not node.domain:
            why = "its parameters are no constants, or its statistics are read too"
            yield Breach(node.outputs[0].name or "", f"{node.op_type} in float32: {why}")
        return
    x = operand(found.x)
    why = ""
    if x is None:
        why = ": its input does not come straight from a DequantizeLinear"
    elif x.qparams.axis is not None:
        why = ": its input has a scale per channel"
    kind = node.op_type if node.op_type in NORMALIZING else "RMS normalisation"
    yield Breach(node.outputs[0].name or "", f"{kind} in float32{why}")


def gather_table(node: ir.Node) -> Found:
    """Find a Gather that reads a table by codes."""
    if node.op_type != "Gather" or node.domain:
        return
    data, index = node.inputs[0], node.inputs[1]
    table = constant(data)
    if data is None or table is None or table.shape != (256,) or index is None:
        return
    source = index.producer()
    codes = source.inputs[0] if source is not None and source.op_type == "Cast" else index
    if codes is not None and codes.dtype is not None and codes.dtype.name.lower() in QTYPES:
        yield Breach(node.outputs[0].name or "", f"reads the table {data.name} by {index.name}")
