"""Why an integer linear op is exact: its accumulator cannot leave int32.

`|acc| <= sum |w - zw| * max |x - zx| + |bias|`, per output channel. Requantization is one float32
multiplication of the accumulator, rounded to float32 first: any scale is portable.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.exactness import DETERMINED, UNPROVEN, Grid, multiply, sum_of
from edgeq.float_proofs import Reason
from edgeq.float_sums import NO_LENGTH
from edgeq.graph import constant, int_attribute
from edgeq.longest import longest
from edgeq.numerics.affine import QParams
from edgeq.numerics.magnitudes import magnitude_sums
from edgeq.qdq import LinearGroup, Operand, limit_behind
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
    return Reason("integer", detail, DETERMINED)


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
    length = _length([(node.inputs[0], -1), (node.inputs[1], -2)], max_dim)
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


def reach(qparams: QParams) -> int:
    """Return the largest `|code - zero_point|`."""
    low = qparams.zero_point - qparams.qtype.qmin
    high = qparams.qtype.qmax - qparams.zero_point
    return int(np.maximum(low, high).max())


def accumulator_bound(group: LinearGroup, max_dim: int) -> int | None:
    """Return the largest magnitude of the accumulator over all channels; `None` if unknown."""
    if group.node.op_type == "Mul":
        return reach(group.x.qparams) * reach(group.w.qparams)
    sums = _weight_sums(group.node, group.w, max_dim)
    if sums is None:
        return None
    bound = sums * reach(group.x.qparams)
    if group.bias is not None and group.bias.array is not None:
        bound = bound + np.abs(group.bias.array.astype(np.int64)).reshape(-1)
    return int(bound.max())


def _weight_sums(node: ir.Node, w: Operand, max_dim: int) -> NDArray[np.int64] | None:
    """Return `sum |w - zw|` per output channel, or once for all where w is not constant."""
    if w.array is None:
        transposed = node.op_type == "Gemm" and int_attribute(node, "transB", 0)
        length = _length([(w.codes, -1 if transposed else -2), (node.inputs[0], -1)], max_dim)
        return None if length is None else np.array([length * reach(w.qparams)])
    ndim = w.array.ndim
    if node.op_type == "Conv":
        over = tuple(range(1, ndim))
    elif node.op_type == "Gemm":
        over = (1 if int_attribute(node, "transB", 0) else 0,)
    else:
        over = (max(0, ndim - 2),)
    return magnitude_sums(w.array, w.qparams.zero_point, w.qparams.axis, over).reshape(-1)


def _length(axes: Sequence[tuple[ir.Value | None, int]], max_dim: int) -> int | None:
    """Return how long axes of equal length are at most; None where no rank is known."""
    dims = [
        value.shape[axis]
        for value, axis in axes
        if value is not None and value.shape is not None and len(value.shape) >= -axis
    ]
    return min((longest(dim, max_dim) for dim in dims), default=None)


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
