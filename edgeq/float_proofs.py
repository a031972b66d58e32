"""Why a float node's bits are the same everywhere: exact sums, single IEEE operations, movement.

Facts stated once, for ONNX Runtime 1.31 (measured on x86 with VNNI, AVX2 and SSE, and on emulated
Arm cores): its kernels for separate elementwise nodes are single operations, in float32 and in
float64, `Mul` followed by `Add` is not contracted into FMA; ReduceMean and the pools sum, then
divide; Sqrt is correctly rounded; Cast rounds once; QuantizeLinear to 8 and 16 bits divides, per
tensor and per row (`axis=0`, scales computed at run time). Add and Mul with constants behind a Conv
with float weights are folded into the weights; behind weights from a DequantizeLinear they are not.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from edgeq import exactness as x
from edgeq.exactness import DETERMINED, UNPROVEN, Fact, Grid
from edgeq.float_sums import Sum, sum_of_products, sum_of_window
from edgeq.graph import constant, float_attribute, int_attribute, sole_consumer, string_attribute

Facts = list[Fact | None]


@dataclass(frozen=True)
class Reason:
    """The proof of one node, and what is known of its outputs.

    Attributes:
        kind: As `edgeq.certify.Proof.kind`.
        detail: In words.
        fact: Of every output.
    """

    kind: str
    detail: str
    fact: Fact


def unproven(detail: str) -> Reason:
    """Return the reason why a node has no proof."""
    return Reason("unproven", detail, UNPROVEN)


def prove_float(node: ir.Node, inputs: Facts, max_dim: int) -> Reason:
    """Return the proof of a node outside the fused patterns, given the facts of its inputs.

    No input's fact is `UNPROVEN`; missing optional inputs are None. No axis that the model leaves
    open is longer than `max_dim`.
    """
    kind = node.outputs[0].dtype
    whole = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, None)
    if node.op_type in _MOVES:
        return _movement(node, inputs)
    if node.op_type in _SUMS:
        return _sum(node, inputs, max_dim)
    if node.op_type in _SINGLE:
        fact = _SINGLE[node.op_type](node, inputs)
        if kind not in whole and kind != ir.DataType.BOOL:
            return Reason("integer", "integer arithmetic", fact)
        return Reason("ieee", "single IEEE operations, elementwise", fact)
    if node.op_type == "Sum":
        return _add_many(node, inputs)
    return unproven(_why_not(node.op_type))


def _why_not(op_type: str) -> str:
    if op_type in _TRANSCENDENTAL:
        return "IEEE does not define this function: its last bits differ between CPUs; use a table"
    if op_type in _NORMALIZING:
        return (
            "its sums of reals depend on the order of additions; exact-normalization writes it with"
            " exact sums, where its input is quantized and its parameters are constants"
        )
    return "no proof is known for this operator in float32"


# -- movement ------------------------------------------------------------------------------------

# How many leading inputs hold data; 0 for all of them, -1 for those that make no data.
_MOVES: Mapping[str, int] = MappingProxyType(
    {
        "ArgMax": -1, "Cast": 1, "CastLike": 1, "Concat": 0, "Constant": -1, "ConstantOfShape": -1,
        "DepthToSpace": 1, "Expand": 1, "Flatten": 1, "Gather": 1, "GatherElements": 1,
        "GatherND": 1, "GlobalMaxPool": 1, "Identity": 1, "MaxPool": 1, "NonZero": -1, "Pad": 1,
        "Range": -1, "ReduceMax": 1, "ReduceMin": 1, "Reshape": 1, "Shape": -1, "Size": -1,
        "Slice": 1, "SpaceToDepth": 1, "Split": 1, "Squeeze": 1, "Tile": 1, "Transpose": 1,
        "Trilu": 1, "Unsqueeze": 1, "Where": -2,
    }
)  # fmt: skip


def _movement(node: ir.Node, inputs: Facts) -> Reason:
    count = _MOVES[node.op_type]
    if count == -1:
        return Reason("data movement", "no arithmetic on the data", DETERMINED)
    data = inputs[1:] if count == -2 else inputs[: count or len(inputs)]
    fact = x.join(*(f for f in data if f is not None))
    if node.op_type == "Pad" and isinstance(fact, Grid):
        value = inputs[2] if len(inputs) > 2 else None
        fact = x.join(fact, value if value is not None else Grid(fact.step, 0.0, 0.0))
    if node.op_type == "Trilu" and isinstance(fact, Grid):
        fact = x.join(fact, Grid(fact.step, 0.0, 0.0))
    if node.op_type in ("Cast", "CastLike"):
        return _cast(node, fact)
    if node.op_type in ("Gather", "GatherElements") and constant(node.inputs[0]) is not None:
        return Reason("table", "a table computed on the host, read by index", fact)
    return Reason("data movement", "elements are copied or selected", fact)


def _cast(node: ir.Node, fact: Fact) -> Reason:
    detail = "a conversion, exact or rounded once"
    to = ir.DataType(int_attribute(node, "to", 0))
    whole = to.name.startswith(("INT", "UINT"))
    if node.op_type != "Cast" or not isinstance(fact, Grid) or not (whole or to in _WIDE):
        return Reason("data movement", detail, DETERMINED)
    if whole and fact.step < 1:
        fact = Grid(1.0, math.trunc(fact.low), math.trunc(fact.high))
    return Reason("data movement", detail, fact)


_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


# -- single operations -----------------------------------------------------------------------------


def _pair(facts: Facts) -> tuple[Fact, Fact]:
    return facts[0] or DETERMINED, facts[1] or DETERMINED


def _subtract(node: ir.Node, facts: Facts) -> Fact:
    a, b = _pair(facts)
    return x.add(a, x.negate(b))


def _relu(node: ir.Node, facts: Facts) -> Fact:
    return x.clip(facts[0] or DETERMINED, 0.0, math.inf, Grid(2.0**60, 0.0, 0.0))


def _clip(node: ir.Node, facts: Facts) -> Fact:
    limits = [constant(v) for v in node.inputs[1:]]
    if any(v is not None and a is None for v, a in zip(node.inputs[1:], limits, strict=True)):
        return DETERMINED
    bounds = [f for f in facts[1:] if f is not None]
    low = float(limits[0].reshape(())) if limits and limits[0] is not None else -math.inf
    high = math.inf
    if len(limits) > 1 and limits[1] is not None:
        high = float(limits[1].reshape(()))
    given = facts[0] or DETERMINED
    return x.clip(given, low, high, x.join(*bounds) if bounds else given)


def _extreme(node: ir.Node, facts: Facts) -> Fact:
    return x.join(*(f or DETERMINED for f in facts))


def _absolute(node: ir.Node, facts: Facts) -> Fact:
    a = facts[0] or DETERMINED
    return Grid(a.step, 0.0, a.magnitude) if isinstance(a, Grid) else a


def _leaky(node: ir.Node, facts: Facts) -> Fact:
    slope = x.grid_of(np.array(float_attribute(node, "alpha", 0.01), np.float32))
    return x.join(x.multiply(facts[0] or DETERMINED, slope), facts[0] or DETERMINED)


def _thresholded(node: ir.Node, facts: Facts) -> Fact:
    return x.join(facts[0] or DETERMINED, Grid(2.0**60, 0.0, 0.0))


def _prelu(node: ir.Node, facts: Facts) -> Fact:
    return x.join(x.multiply(*_pair(facts)), facts[0] or DETERMINED)


def _whole(node: ir.Node, facts: Facts) -> Fact:
    a = facts[0]
    if not isinstance(a, Grid):
        return DETERMINED
    return Grid(max(a.step, 1.0), math.floor(a.low), math.ceil(a.high))


def _any(node: ir.Node, facts: Facts) -> Fact:
    return DETERMINED


Single = Callable[[ir.Node, Facts], Fact]
_SINGLE: Mapping[str, Single] = MappingProxyType(
    {
        "Abs": _absolute,
        "Add": lambda node, facts: x.add(*_pair(facts)),
        "And": _any,
        "Ceil": _whole,
        "Clip": _clip,
        "Div": lambda node, facts: x.divide(*_pair(facts)),
        "Equal": _any,
        "Floor": _whole,
        "Greater": _any,
        "GreaterOrEqual": _any,
        "IsNaN": _any,
        "LeakyRelu": _leaky,
        "Less": _any,
        "LessOrEqual": _any,
        "Max": _extreme,
        "Min": _extreme,
        "Mod": _any,
        "Mul": lambda node, facts: x.multiply(*_pair(facts)),
        "Neg": lambda node, facts: x.negate(facts[0] or DETERMINED),
        "Not": _any,
        "Or": _any,
        "PRelu": _prelu,
        "Relu": _relu,
        "Round": _whole,
        "Sign": _any,
        "Sqrt": _any,
        "Sub": _subtract,
        "ThresholdedRelu": _thresholded,
        "Xor": _any,
    }
)


def _add_many(node: ir.Node, inputs: Facts) -> Reason:
    """Return the proof of a Sum: never fused; of more than two inputs only if exact."""
    total: Fact = inputs[0] or DETERMINED
    for fact in inputs[1:]:
        total = x.add(total, fact or DETERMINED)
    if len(inputs) <= 2:
        return Reason("ieee", "one IEEE addition; Sum is never fused", total)
    kind = node.outputs[0].dtype
    if isinstance(total, Grid) and total.fits(kind):
        return Reason("exact sum", _exact(total, kind), total)
    return unproven("a sum of more than two inputs that is not exact depends on its order")


# -- sums ------------------------------------------------------------------------------------------

_SUMS = frozenset(
    {
        "AveragePool", "Conv", "ConvTranspose", "CumSum", "Gemm", "GlobalAveragePool", "MatMul",
        "ReduceMean", "ReduceSum", "ReduceSumSquare", "Resize",
    }
)  # fmt: skip


def _sum(node: ir.Node, inputs: Facts, max_dim: int) -> Reason:
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    if node.op_type == "Resize" and string_attribute(node, "mode", "nearest") == "nearest":
        fact = inputs[0] or DETERMINED
        return Reason("data movement", "elements are copied", fact)
    folded = _folded(node)
    if folded:
        return unproven(folded)
    linear = node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    find = sum_of_products if linear else sum_of_window
    found = find(node, inputs, max_dim)
    if kind in (ir.DataType.INT32, ir.DataType.INT64):
        return _integer_sum(found, kind)
    if isinstance(found, str):
        return unproven(found)
    return _proven_sum(found, kind)


def _integer_sum(found: Sum | str, kind: ir.DataType) -> Reason:
    """Return the proof of a sum of integers: in any order the same, and right where bounded."""
    if isinstance(found, str) or found.divisors != ():
        return Reason("integer", "integer arithmetic", DETERMINED)
    if not found.total.fits(kind):
        return unproven(f"the sum can reach {found.total.magnitude:g}, beyond {kind.name.lower()}")
    detail = f"integer sum, at most {found.total.magnitude:.0f}"
    return Reason("integer", detail, found.total)


def _proven_sum(found: Sum, kind: ir.DataType | None) -> Reason:
    if not found.total.fits(kind):
        reason = (
            f"the float sum can reach {found.total.steps:g} steps of {found.total.step:g}, beyond"
            f" {_room(kind)}: its bits depend on the order of additions"
        )
        if not found.known:
            reason += "; give the axes that it sums over fixed lengths, or pass a lower --max-dim"
        return unproven(reason)
    detail = _exact(found.total, kind)
    if found.divisors == ():
        return Reason("exact sum", detail, found.total)
    if found.divisors is None:
        return Reason("exact sum", f"{detail}; then one IEEE division", DETERMINED)
    facts = [x.divide(found.total, Grid(1.0, float(n), float(n))) for n in found.divisors]
    return Reason("exact sum", f"{detail}; then one IEEE division", x.join(*facts))


def _exact(total: Grid, kind: ir.DataType | None) -> str:
    count = f"{total.steps:.0f} <= {_room(kind)}"
    return f"float sum of multiples of {total.step:g}, at most {count} of them"


def _room(kind: ir.DataType | None) -> str:
    """Return how many steps a float type counts without a gap, in words."""
    return "2**53 - 1" if kind == ir.DataType.DOUBLE else "2**24"


def _folded(node: ir.Node) -> str:
    """Return which constant ONNX Runtime would fold into the float weights of a Conv."""
    if node.op_type not in ("Conv", "MatMul") or constant(node.inputs[1]) is None:
        return ""
    reader = sole_consumer(node.outputs[0])
    if reader is None or reader.op_type not in ("Add", "Mul", "BatchNormalization"):
        return ""
    if not any(constant(v) is not None for v in reader.inputs):
        return ""
    if node.op_type == "MatMul" and reader.op_type != "Add":
        return ""
    return (
        f"the {reader.op_type} behind it is folded into its float weights, which changes the sum;"
        " let the weights come from a DequantizeLinear"
    )


_TRANSCENDENTAL = frozenset(
    {
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos",
        "Cosh", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "LogSoftmax",
        "Mish", "Pow", "Reciprocal", "Selu", "Sigmoid", "Sin", "Sinh", "Softmax", "Softplus",
        "Softsign", "Tan", "Tanh",
    }
)  # fmt: skip
_NORMALIZING = frozenset(
    {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization"}
)
