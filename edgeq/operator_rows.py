"""What runs where: each node of a deployed model with its kernel, formats and proof.

The formats are those of the codes that a node computes with, where the runtime has an integer
kernel for it; else the type of its result. Fewer than 8 bits are named where weights are stored and
activations are limited so: `uint6 * int4 -> uint6`. A node that is gone from the runtime's own
graph is part of a kernel beside it, or was computed when the model was loaded.
"""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from edgeq.certify import Certificate
from edgeq.qdq import Operand, Result, limited_codes, linear_group, operand, result
from edgeq.report import FloatRow, OperatorRow
from edgeq.roles import data_inputs, moves_codes
from edgeq.stored_codes import stored_format

_SPELLED = {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16"}
_BOUNDARY = ("QuantizeLinear", "DequantizeLinear")


def operator_rows(
    model: ir.Model,
    certificate: Certificate,
    placement: Mapping[str, str],
    reasons: Iterable[FloatRow] = (),
) -> tuple[OperatorRow, ...]:
    """Return a row for each node of `model`, in graph order.

    Args:
        model: The deployed model.
        certificate: Of it.
        placement: The runtime's kernels by node name; empty where it does not tell.
        reasons: Why nodes compute in float32, where somebody knows.
    """
    known = {row.node: row.reason for row in reasons}
    return tuple(
        OperatorRow(
            proof.node,
            proof.op_type,
            proof.kind,
            proof.detail,
            placement.get(str(node.name), "") if placement else "",
            _formats(node, placement.get(str(node.name), "")),
            known.get(proof.node, ""),
        )
        for node, proof in zip(model.graph, certificate.proofs, strict=True)
    )


def _formats(node: ir.Node, kernel: str) -> str:
    """Return what a node computes with: `uint8 * int8 -> uint8`, `float32`."""
    group = linear_group(node)
    if group is not None:
        made = "float32" if group.y is None else _result(group.y)
        return f"{_codes(group.x)} * {_codes(group.w)} -> {made}"
    if node.op_type in _BOUNDARY:
        return f"{_dtype(node.inputs[0])} -> {_dtype(node.outputs[0])}"
    behind = result(node.outputs[0])
    if behind is not None and kernel.startswith("QLinear"):
        sides = [found.qparams.qtype.name for v in node.inputs if (found := operand(v))]
        return f"{', '.join(dict.fromkeys(sides))} -> {behind.qparams.qtype.name}"
    return _dtype(node.outputs[0])


def _codes(x: Operand) -> str:
    """Return the format of an operand: of fewer than 8 bits where it is stored or limited so."""
    return stored_format(x.codes) or _limited(x.codes) or x.qparams.qtype.name


def _result(y: Result) -> str:
    limits = limited_codes(y.codes)
    return (None if limits is None else _limited(limits.codes)) or y.qparams.qtype.name


def _limited(codes: ir.Value) -> str | None:
    """Return the format of codes that a Clip leaves fewer bits than their type, moved or not."""
    node = codes.producer()
    while node is not None and moves_codes(node) and len(data_inputs(node)) == 1:
        node = data_inputs(node)[0].producer()
    limits = None if node is None or node.inputs[0] is None else limited_codes(node.inputs[0])
    if limits is None or limits.node is not node or limits.low < 0 or limits.high > 127:
        return None
    return f"uint{limits.high.bit_length()}"


def _dtype(value: ir.Value | None) -> str:
    if value is None or value.dtype is None:
        return "unknown"
    name = value.dtype.name
    return _SPELLED.get(name, name.lower())
