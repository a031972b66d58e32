"""Why an integer linear op is exact: its accumulator cannot leave int32.

Its bound is that of `edgeq.accumulators`. Requantization is one float32 multiplication of the
accumulator, rounded to float32 first: any scale is portable.
"""

import math

import numpy as np
import onnx_ir as ir

from edgeq.accumulators import PROMISED_BITS, accumulator_bound, common_length
from edgeq.exactness import DETERMINED, UNPROVEN, Grid, multiply, sum_of
from edgeq.float_proofs import Reason
from edgeq.float_sums import NO_LENGTH
from edgeq.graph import constant
from edgeq.qdq import LinearGroup, limit_behind
from edgeq.targeting import Capabilities

INT32 = 2**31 - 1


def prove_integer(group: LinearGroup, capabilities: Capabilities, max_dim: int) -> Reason:
    """Return the proof of an integer linear group: the bound of its accumulator.

    No axis that the model leaves open is longer than `max_dim`.
    """
    obstacle = _operands(group, capabilities) or _scales(group) or _limit(group, capabilities)
    if obstacle:
        return Reason("unproven", obstacle, UNPROVEN)
    bound = accumulator_bound(group, max_dim)
    if bound is None:
        return Reason("unproven", NO_LENGTH, UNPROVEN)
    if bound > INT32:
        reason = f"the accumulator can reach {bound}, beyond int32 ({INT32})"
        return Reason("unproven", reason, UNPROVEN)
    detail = f"integer accumulation, |acc| <= {bound} <= 2**31 - 1; one float32 multiplication"
    promised = group.node.metadata_props.get(PROMISED_BITS)
    if promised is None:
        return Reason("integer", detail, DETERMINED)
    if bound > 2 ** (int(promised) - 1) - 1:
        reason = f"the accumulator can reach {bound}, beyond int{promised}, which was asked for"
        return Reason("unproven", reason, UNPROVEN)
    return Reason("integer", f"{detail}; accumulator fits int{promised}", DETERMINED)


def prove_products(node: ir.Node, max_dim: int) -> Reason:
    """Return the proof of a MatMulInteger of uint8 codes: the bound of its sums.

    No axis that the model leaves open is longer than `max_dim`.
    """
    units = []
    for index, value in enumerate(node.inputs[:2]):
        if value is None or value.dtype != ir.DataType.UINT8:
            reason = "its operands are not both uint8: kernels for others differ between CPUs"
            return Reason("unproven", reason, UNPROVEN)
        zero_point = constant(node.inputs[index + 2]) if len(node.inputs) > index + 2 else None
        if zero_point is None or zero_point.size != 1:
            reason = "its zero points are not one constant per operand"
            return Reason("unproven", reason, UNPROVEN)
        zero = int(zero_point.reshape(()))
        units.append(Grid(1.0, -zero, 255 - zero))
    length = common_length([(node.inputs[0], -1), (node.inputs[1], -2)], max_dim)
    products = multiply(*units)
    assert isinstance(products, Grid)
    if length is None:
        return Reason("unproven", NO_LENGTH, UNPROVEN)
    total = sum_of(products, length)
    if total.magnitude > INT32:
        reason = f"a sum of {length} products can reach {total.magnitude:.0f}, beyond int32"
        return Reason("unproven", reason, UNPROVEN)
    detail = f"integer accumulation, |acc| <= {total.magnitude:.0f} <= 2**31 - 1"
    return Reason("integer", detail, total)


def _operands(group: LinearGroup, capabilities: Capabilities) -> str:
    """Return which operand the CPUs do not multiply alike; empty if none."""
    for side in (group.x, group.w):
        if len(side.node.inputs) < 3 or side.node.inputs[2] is None:
            return f"the DequantizeLinear of {side.codes.name} has no zero_point: it may stay float"
    expected = capabilities.activation_qtype
    if expected == "uint8":
        found = group.x.qparams.qtype.name
        if found != "uint8":
            return f"its activation is {found}: kernels for it differ, {expected} is needed"
        if group.w.array is None and group.w.qparams.qtype.name != "uint8":
            found = group.w.qparams.qtype.name
            return f"its right side, computed at run time, is {found}: {expected} is needed"
    array = group.w.array
    if array is not None and array.dtype == np.int8 and array.size:
        low, high = int(array.min()), int(array.max())
        if low < capabilities.weight_min or high > capabilities.weight_max:
            allowed = f"[{capabilities.weight_min}, {capabilities.weight_max}]"
            return f"weight codes reach [{low}, {high}], outside {allowed}"
    return ""


def _limit(group: LinearGroup, capabilities: Capabilities) -> str:
    limit = limit_behind(group.node) if capabilities.fused else None
    if limit is None or group.y is not None:
        return ""
    return f"the {limit.op_type} behind it keeps it in float; write it as Max and Min"


def _scales(group: LinearGroup) -> str:
    product = np.asarray(group.x.qparams.scale * group.w.qparams.scale, np.float32)
    factors = [product]
    if group.y is not None:
        factors.append(np.asarray(product / group.y.qparams.scale, np.float32))
    tiny = float(np.finfo(np.float32).tiny)
    smallest = min(float(f.min()) for f in factors)
    if smallest < tiny:
        return f"its multiplier {smallest:g} is denormal: Armv7 flushes it to zero"
    if not all(math.isfinite(float(f.max())) for f in factors):
        return "its multiplier overflows float32"
    return ""
