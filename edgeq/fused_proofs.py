"""Why a kernel that ONNX Runtime fuses gives the bits of the definition: enumeration.

A node fuses when every input comes from a DequantizeLinear and its result goes to one
QuantizeLinear alone, all per tensor and of one 8-bit format. Such a node needs a proof of its
fused kernel; the float operators that it consists of are not what runs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.exactness import DETERMINED, UNPROVEN
from edgeq.float_proofs import Reason
from edgeq.functions import Float64, float64_function
from edgeq.graph import static_shape
from edgeq.pool_counts import fusion_obstacle, pool_counts, whole_image
from edgeq.proofs import (
    FusionProof,
    certify_unary,
    prove_add,
    prove_average_pool,
    prove_global_average_pool,
    prove_mul,
)
from edgeq.qdq import Operand, Result, operand, result
from edgeq.targeting import Capabilities


@dataclass(frozen=True, eq=False)
class Quantized:
    """A node between codes: all data inputs dequantized, the result quantized."""

    node: ir.Node
    inputs: tuple[Operand, ...]
    y: Result


def quantized(node: ir.Node) -> Quantized | None:
    """Return `node` if it stands between DequantizeLinear nodes and one QuantizeLinear."""
    inputs = [operand(v) for v in node.inputs if v is not None]
    y = result(node.outputs[0])
    if y is None or not inputs:
        return None
    found = tuple(x for x in inputs if x is not None)
    parameters = [x.qparams for x in found] + [y.qparams]
    alike = len({p.qtype.name for p in parameters}) == 1 and parameters[0].qtype.bits == 8
    if len(found) < len(inputs) or not alike or any(p.axis is not None for p in parameters):
        return None
    return Quantized(node, found, y)


def prove_fused(node: ir.Node, capabilities: Capabilities) -> Reason | None:
    """Return the proof of a node that runs fused; `None` if it does not run so."""
    function = float64_function(node)
    if function is not None:
        return _function(node, function)
    if node.op_type not in capabilities.fused:
        return None
    found = quantized(node)
    if found is None:
        return None
    if node.op_type == "LeakyRelu":
        detail = "fused into a table of 256 entries, each one IEEE product"
        return Reason("table", detail, DETERMINED)
    enumerate_ = _ENUMERATIONS.get(node.op_type)
    if enumerate_ is None:
        reason = f"runs as QLinear{node.op_type}, whose arithmetic is not the definition's"
        return Reason("unproven", reason, UNPROVEN)
    for proof in enumerate_(found):
        if not proof.equal:
            return Reason("unproven", proof.detail, UNPROVEN)
    return Reason("enumerated", proof.detail, DETERMINED)


def _function(node: ir.Node, function: Callable[[Float64], Float64]) -> Reason | None:
    """Return the proof of a function between codes whose results are far from rounding ties."""
    found = quantized(node)
    if found is None:
        return None
    proof = certify_unary(function, found.inputs[0].qparams, found.y.qparams)
    if proof.certain:
        return Reason("table", proof.detail, DETERMINED)
    return Reason("unproven", f"{proof.detail}; a table of 256 entries is exact", UNPROVEN)


def fusion_proofs(found: Quantized) -> list[FusionProof]:
    """Return the enumerations that a fused Add, Mul or pool needs; none for other operators."""
    enumerate_ = _ENUMERATIONS.get(found.node.op_type)
    return [] if enumerate_ is None else enumerate_(found)


def _add(found: Quantized) -> list[FusionProof]:
    return [prove_add(found.inputs[0].qparams, found.inputs[1].qparams, found.y.qparams)]


def _mul(found: Quantized) -> list[FusionProof]:
    return [prove_mul(found.inputs[0].qparams, found.inputs[1].qparams, found.y.qparams)]


def _average_pool(found: Quantized) -> list[FusionProof]:
    node, x, y = found.node, found.inputs[0].qparams, found.y.qparams
    obstacle = fusion_obstacle(node)
    if obstacle:
        return [FusionProof("QLinearAveragePool", 0, obstacle=obstacle)]
    counts = pool_counts(node)
    forms = (False, True) if whole_image(node) else (False,)
    return [prove_average_pool(x, y, counts, whole_image=form) for form in forms]


def _global_average_pool(found: Quantized) -> list[FusionProof]:
    value = found.node.inputs[0]
    shape = None if value is None else static_shape_of_image(value)
    if shape is None:
        reason = "the size of the image is not known"
        return [FusionProof("QLinearGlobalAveragePool", 0, obstacle=reason)]
    x, y = found.inputs[0].qparams, found.y.qparams
    return [prove_global_average_pool(x, y, math.prod(shape))]


def static_shape_of_image(value: ir.Value) -> tuple[int, ...] | None:
    """Return the spatial dimensions of `value`, if all are known."""
    whole = static_shape(value)
    if whole is not None:
        return whole[2:]
    if value.shape is None:
        return None
    sizes = list(value.shape)[2:]
    known = tuple(size for size in sizes if isinstance(size, int))
    return known if len(known) == len(sizes) else None


_ENUMERATIONS: dict[str, Callable[[Quantized], list[FusionProof]]] = {
    "Add": _add,
    "Mul": _mul,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
}
