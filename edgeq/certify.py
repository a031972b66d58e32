"""The certificate: for every node, why its bits are the same on every CPU that a target claims.

Nodes are visited in graph order; for every value the facts of `edgeq.exactness` are derived from
those of its inputs, starting from what codes can be. A node without a proof is reported once; what
is computed from its float result is "inherited", not reported again, and codes made of it count as
any codes.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.exactness import (
    DETERMINED,
    UNPROVEN,
    Fact,
    Grid,
    Unproven,
    grid_of,
    grid_of_parts,
    held,
    join,
)
from edgeq.float_proofs import Reason, prove_float
from edgeq.fused_proofs import prove_fused
from edgeq.graph import constant
from edgeq.integer_proofs import prove_integer, prove_products
from edgeq.longest import MAX_DIM
from edgeq.numerics.affine import Codes, QParams
from edgeq.numerics.floating import format_of
from edgeq.numerics.magnitudes import pieces
from edgeq.numerics.qtype import TENSOR_TYPES
from edgeq.qdq import (
    float8_constant,
    is_float8,
    is_requantization,
    linear_group,
    operand,
    quantize_node,
)
from edgeq.rounded_exponentials import prove_rounded
from edgeq.targeting import Capabilities


@dataclass(frozen=True)
class Proof:
    """Why one node's bits are the same everywhere.

    Attributes:
        node: Its name, or that of its first output.
        op_type: Its operator.
        kind: `integer`, `exact sum`, `ieee`, `enumerated`, `table`, `data movement`, `kernel`,
            `unproven`, or `inherited`: the node adds nothing to the doubt about its inputs.
        detail: The bound, the enumeration or the reason, in words.
    """

    node: str
    op_type: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Certificate:
    """The proofs of all nodes, in graph order."""

    proofs: tuple[Proof, ...]

    @property
    def proven(self) -> int:
        """How many nodes have a proof."""
        return sum(p.kind not in ("unproven", "inherited") for p in self.proofs)

    @property
    def unproven(self) -> tuple[Proof, ...]:
        """The nodes that have none."""
        return tuple(p for p in self.proofs if p.kind == "unproven")


def certify(
    model: ir.Model,
    capabilities: Capabilities,
    max_dim: int = MAX_DIM,
    kernels: Collection[str] | None = None,
) -> Certificate:
    """Return a proof, or the reason why there is none, for every node of the main graph.

    Args:
        model: The quantized model, shapes inferred: bounds of sums need the lengths of axes.
        capabilities: What the target's runtime fuses, and the weights that its CPUs multiply right.
        max_dim: No axis that the model leaves open is longer at run time.
        kernels: For a graph that a runtime has fused already: the operators whose formulas are
            known; all others run as they stand.
    """
    facts: dict[ir.Value, Fact] = {}
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        facts[value] = _given(value)
    proofs = []
    for node in model.graph:
        reason = _prove(node, facts, capabilities, max_dim, kernels)
        for output in node.outputs:
            facts[output] = _bounded(output, reason.fact)
        name = node.name or node.outputs[0].name or ""
        proofs.append(Proof(name, node.op_type, reason.kind, reason.detail))
    return Certificate(tuple(proofs))


def _prove(
    node: ir.Node,
    facts: dict[ir.Value, Fact],
    capabilities: Capabilities,
    max_dim: int,
    kernels: Collection[str] | None,
) -> Reason:
    if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
        return Reason("unproven", "subgraphs are not examined", UNPROVEN)
    inputs = [None if v is None else _fact(v, facts) for v in node.inputs]
    if kernels is not None and node.op_type in kernels:
        return Reason("kernel", "a formula that was measured", DETERMINED)
    if node.domain:
        return Reason("unproven", f"no formula is known for what {node.domain} computes", UNPROVEN)
    if node.op_type == "DequantizeLinear":
        return _dequantize(node, inputs)
    if node.op_type == "QuantizeLinear":
        return _quantize(node, capabilities)
    group = linear_group(node) if kernels is None else None
    # Mul is linear by definition, but its fused kernel needs an enumeration of its own.
    if group is not None and not (node.op_type == "Mul" and "Mul" in capabilities.fused):
        return prove_integer(group, capabilities, max_dim)
    found = prove_fused(node, capabilities)
    if found is not None:
        return found
    if group is not None:
        reason = "its operands and result have different formats, so it stays float"
        return Reason("unproven", reason, UNPROVEN)
    found = prove_rounded(node)
    if found is not None:
        return found
    if any(isinstance(f, Unproven) for f in inputs):
        return Reason("inherited", "its inputs are not proven", UNPROVEN)
    if node.op_type == "MatMulInteger":
        return prove_products(node, max_dim)
    found = prove_float(node, inputs, max_dim)
    if found.kind == "unproven" and any(map(_reads_float8, node.inputs)):
        return replace(found, detail=f"it multiplies 8-bit floats in float32: {found.detail}")
    return found


def _reads_float8(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Sum" and len(node.inputs) == 1:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear" and is_float8(node.inputs[0])


def _fact(value: ir.Value, facts: dict[ir.Value, Fact]) -> Fact:
    return facts[value] if value in facts else _given(value)


def _given(value: ir.Value) -> Fact:
    """Return what is known of an initializer, or of an input by its type alone."""
    array = constant(value)
    if array is not None:
        return grid_of(array) if array.dtype.kind in "iubf" else DETERMINED
    return _codes(value) or DETERMINED


def _codes(value: ir.Value) -> Grid | None:
    qtype = None if value.dtype is None else TENSOR_TYPES.get(value.dtype.name.lower())
    if qtype is None or qtype.bits > 16:
        return None
    step = float(format_of(qtype.dtype).magnitudes[1]) if qtype.floating else 1.0
    return Grid(step, float(qtype.qmin), float(qtype.qmax))


def _bounded(value: ir.Value, fact: Fact) -> Fact:
    """Return what holds for an output of its type; codes are codes, whatever made them."""
    if constant(value) is not None:
        return _given(value)
    codes = _codes(value)
    if codes is None:
        return held(fact, value.dtype)
    if isinstance(fact, Grid) and codes.low <= fact.low and fact.high <= codes.high:
        return fact
    return codes


def _dequantize(node: ir.Node, inputs: list[Fact | None]) -> Reason:
    found = operand(node.outputs[0])
    detail = "one float32 product of an exact difference"
    if found is None:
        if constant(node.inputs[1]) is None:
            return Reason("ieee", f"{detail}, parameters computed at run time", DETERMINED)
        if is_float8(node.inputs[0]):
            return Reason("ieee", "one float32 product", _float8_reals(node, inputs[0]))
        return Reason("ieee", detail, DETERMINED)
    if found.array is not None:
        return Reason("ieee", detail, grid_of_parts(_reals(found.array, found.qparams)))
    scale = np.atleast_1d(found.qparams.scale)
    fractions = np.frexp(scale)[0]
    codes = inputs[0]
    if not isinstance(codes, Grid) or not np.all(fractions == 0.5):
        return Reason("ieee", detail, DETERMINED)
    zeros = np.atleast_1d(found.qparams.zero_point)
    low, high = ((bound - zeros) * scale for bound in (codes.low, codes.high))
    return Reason("ieee", detail, Grid(float(scale.min()), float(low.min()), float(high.max())))


def _float8_reals(node: ir.Node, codes: Fact | None) -> Fact:
    """Return what 8-bit floats stand for: numbers times a constant scale."""
    reals, scale = float8_constant(node), constant(node.inputs[1])
    if reals is not None:
        return grid_of(reals)
    if scale is None or not np.all(np.frexp(scale)[0] == 0.5) or not isinstance(codes, Grid):
        return DETERMINED
    small, large = float(scale.min()), float(scale.max())
    return Grid(codes.step * small, codes.low * large, codes.high * large)


def _reals(codes: Codes, qparams: QParams) -> Iterator[NDArray[np.float32]]:
    """Yield what constant codes stand for, a few channels at a time."""
    if not codes.ndim:
        yield qparams.dequantize(codes)
        return
    axis = qparams.axis or 0
    for piece in pieces(codes.shape, axis):
        yield qparams.of_channels(piece).dequantize(codes[(slice(None),) * axis + (piece,)])


MERGES_PAIRS = "session.disable_double_qdq_remover"


def _quantize(node: ir.Node, capabilities: Capabilities) -> Reason:
    """Return the proof of a QuantizeLinear: division, rounding and sum are single operations."""
    kept = capabilities.session_options.get(MERGES_PAIRS) == "1"
    if capabilities.fused and not kept and is_requantization(node):
        reason = f"it is merged with the QuantizeLinear before it, unless {MERGES_PAIRS}=1"
        return Reason("unproven", reason, UNPROVEN)
    detail = "one IEEE division, round half to even, zero point, saturation"
    found = quantize_node(node)
    if found is None:
        return Reason("ieee", detail, DETERMINED)
    qtype = found.qparams.qtype
    return Reason("ieee", detail, join(Grid(1.0, float(qtype.qmin), float(qtype.qmax))))
