"""Float islands: what computes in float32 outside of codes and exact forms.

In the quantized model, each value that a node of the float model computes from reals is

- codes, or limited by a Relu or Clip on its way to them;
- inside an exact form: between the products of attention, within a table or a normalisation
  (`edgeq.code_plan.unrounded_values`);
- in the float tail: no codes are computed from it;
- else in a float island: other nodes read it in float32, and their results become codes.

A node that the user keeps float32 is an island of its own wherever it stands, and so is one
without a proof. What is made of integers and constants alone, a mask say, is no real to round.
"""

from collections.abc import Iterable

import onnx_ir as ir

from edgeq.certify import Certificate
from edgeq.code_plan import unrounded_values
from edgeq.graph import constant
from edgeq.passing import Context
from edgeq.qdq import REAL_NAME, linear_group, operand, quantize_node
from edgeq.report import FloatRow
from edgeq.roles import activation_inputs, is_activation, moves_codes


def float_islands(
    model: ir.Model, certificate: Certificate, context: Context
) -> tuple[FloatRow, ...]:
    """Return the nodes of float islands: those of the prepared float model, in graph order.

    Nodes of `model` without a proof that the float model does not have come last.
    """
    reference = context.reference
    assert reference is not None
    names = {v.metadata_props.get(REAL_NAME) for node in model.graph for v in node.outputs}
    codes = {v for node in reference.graph for v in node.outputs if v.name in names}
    harmless = codes | unrounded_values(reference, context)
    in_front = _sources(codes)
    found = {}
    for node in filter(_computes_reals, reference.graph):
        name = str(node.name)
        if context.keep_float(node):
            found[name] = FloatRow(name, node.op_type, "kept by --keep-float")
        elif any(v in in_front and v not in harmless for v in node.outputs):
            reason = "its result is read in float32, outside of any exact form"
            found[name] = FloatRow(name, node.op_type, reason)
    for proof in certificate.unproven:
        reason = f"no proof: {proof.detail}"
        found.setdefault(proof.node, FloatRow(proof.node, proof.op_type, reason))
    return tuple(found.values())


def float_tail(model: ir.Model, certificate: Certificate) -> tuple[FloatRow, ...]:
    """Return the nodes that compute in float32 and that no codes depend on, with their proofs."""
    codes = [v for n in model.graph for v in n.outputs if REAL_NAME in v.metadata_props]
    in_front = _sources(codes) | set(codes)
    rows = []
    for node, proof in zip(model.graph, certificate.proofs, strict=True):
        made = node.outputs[0]
        if made.dtype != ir.DataType.FLOAT or constant(made) is not None or made in in_front:
            continue
        if operand(made) is not None or quantize_node(node) or linear_group(node) is not None:
            continue
        rows.append(FloatRow(str(node.name), node.op_type, f"{proof.kind}: {proof.detail}"))
    return tuple(rows)


def _computes_reals(node: ir.Node) -> bool:
    return (
        any(map(is_activation, node.outputs))
        and not moves_codes(node)
        and next(activation_inputs(node), None) is not None
    )


def _sources(values: Iterable[ir.Value]) -> set[ir.Value]:
    """Return what `values` are computed from."""
    found: set[ir.Value] = set()
    pending = list(values)
    while pending:
        node = pending.pop().producer()
        fresh = () if node is None else [v for v in node.inputs if v is not None and v not in found]
        found.update(fresh)
        pending += fresh
    return found
