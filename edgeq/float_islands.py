"""Float islands: what computes in float32 between the input and the last linear op.

There, each value that a node of the float model computes from reals becomes, in the quantized one,

- codes, or what a Relu or Clip limits on its way to them;
- part of an exact form: between the products of attention, within a table or a normalisation
  (`edgeq.code_plan.unrounded_values`);
- or else part of a float island: other nodes read it in float32.

A node that the user keeps float32 is an island wherever it stands, and so is one without a proof.
What is made of integers and constants alone, a mask say, is no real to round. What stands behind
the last linear op is the float tail: it may be float32, with its proofs.
"""

from collections.abc import Iterable

import onnx_ir as ir

from edgeq.certify import Certificate
from edgeq.code_plan import region, unrounded_values
from edgeq.graph import constant
from edgeq.passing import Context
from edgeq.qdq import REAL_NAME, linear_group, operand, quantize_node
from edgeq.report import FloatRow
from edgeq.roles import LINEAR, activation_inputs, is_activation, moves_codes


def float_islands(
    model: ir.Model, certificate: Certificate, context: Context
) -> tuple[FloatRow, ...]:
    """Return the nodes of float islands: those of the prepared float model, in graph order.

    Nodes of `model` without a proof that the float model does not have come last.
    """
    reference = context.reference
    assert reference is not None
    codes = {v.metadata_props.get(REAL_NAME) for node in model.graph for v in node.outputs}
    in_front = {v for node in region(reference, context) for v in node.inputs}
    in_front -= unrounded_values(reference, context)
    found = {}
    for node in filter(_computes_reals, reference.graph):
        name = str(node.name)
        if context.keep_float(node):
            found[name] = FloatRow(name, node.op_type, "kept by --keep-float")
        elif any(v in in_front and v.name not in codes for v in node.outputs):
            reason = "its result is read in float32, outside of any exact form"
            found[name] = FloatRow(name, node.op_type, reason)
    for proof in certificate.unproven:
        reason = f"no proof: {proof.detail}"
        found.setdefault(proof.node, FloatRow(proof.node, proof.op_type, reason))
    return tuple(found.values())


def float_tail(model: ir.Model, certificate: Certificate) -> tuple[FloatRow, ...]:
    """Return the nodes that compute in float32 and that no linear op depends on, and why."""
    products = [n for n in model.graph if n.op_type in LINEAR or n.op_type == "MatMulInteger"]
    in_front = _sources(v for node in products for v in node.inputs)
    rows = []
    for node, proof in zip(model.graph, certificate.proofs, strict=True):
        made = node.outputs[0]
        if made.dtype != ir.DataType.FLOAT or constant(made) is not None or made in in_front:
            continue
        on_codes = linear_group(node) is not None or proof.kind == "enumerated"
        if operand(made) is None and quantize_node(node) is None and not on_codes:
            rows.append(FloatRow(str(node.name), node.op_type, f"{proof.kind}: {proof.detail}"))
    return tuple(rows)


def _computes_reals(node: ir.Node) -> bool:
    makes = any(map(is_activation, node.outputs))
    return makes and not moves_codes(node) and any(True for _ in activation_inputs(node))


def _sources(values: Iterable[ir.Value | None]) -> set[ir.Value]:
    """Return `values` and what they are computed from."""
    found: set[ir.Value] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        if value is not None and value not in found:
            found.add(value)
            node = value.producer()
            pending += () if node is None else node.inputs
    return found
