"""Why an integer linear op is exact: its accumulator cannot leave int32.

`|acc| <= sum |w - zw| * max |x - zx| + |bias|`, per output channel. Requantization is one float32
multiplication of the accumulator, rounded to float32 first: any scale is portable.
"""

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.exactness import DETERMINED, UNPROVEN
from edgeq.float_proofs import Reason
from edgeq.graph import int_attribute, static_shape
from edgeq.numerics.affine import QParams
from edgeq.numerics.magnitudes import magnitude_sums
from edgeq.qdq import LinearGroup, Operand
from edgeq.targeting import Capabilities

INT32 = 2**31 - 1


def prove_integer(group: LinearGroup, capabilities: Capabilities) -> Reason:
    """Return the proof of an integer linear group: the bound of its accumulator."""
    obstacle = _operands(group, capabilities) or _scales(group)
    if obstacle:
        return Reason("unproven", obstacle, UNPROVEN)
    bound = accumulator_bound(group)
    if bound is None:
        reason = "the length of the sum is not known, so the accumulator has no bound"
        return Reason("unproven", reason, UNPROVEN)
    if bound > INT32:
        reason = f"the accumulator can reach {bound}, beyond int32 ({INT32})"
        return Reason("unproven", reason, UNPROVEN)
    detail = f"integer accumulation, |acc| <= {bound} <= 2**31 - 1; one float32 multiplication"
    return Reason("integer", detail, DETERMINED)


def reach(qparams: QParams) -> int:
    """Return the largest `|code - zero_point|`."""
    low = qparams.zero_point - qparams.qtype.qmin
    high = qparams.qtype.qmax - qparams.zero_point
    return int(np.maximum(low, high).max())


def accumulator_bound(group: LinearGroup) -> int | None:
    """Return the largest magnitude of the accumulator over all channels; `None` if unknown."""
    if group.node.op_type == "Mul":
        return reach(group.x.qparams) * reach(group.w.qparams)
    sums = _weight_sums(group.node, group.w)
    if sums is None:
        return None
    bound = sums * reach(group.x.qparams)
    if group.bias is not None and group.bias.array is not None:
        bound = bound + np.abs(group.bias.array.astype(np.int64)).reshape(-1)
    return int(bound.max())


def _weight_sums(node: ir.Node, w: Operand) -> NDArray[np.int64] | None:
    """Return `sum |w - zw|` per output channel, or once for all where w is not constant."""
    if w.array is None:
        shape = static_shape(w.codes)
        length = _dynamic_length(node, w.codes if shape is None else None, shape)
        return None if length is None else np.array([length * reach(w.qparams)])
    ndim = w.array.ndim
    if node.op_type == "Conv":
        over = tuple(range(1, ndim))
    elif node.op_type == "Gemm":
        over = (1 if int_attribute(node, "transB", 0) else 0,)
    else:
        over = (max(0, ndim - 2),)
    return magnitude_sums(w.array, w.qparams.zero_point, w.qparams.axis, over).reshape(-1)


def _dynamic_length(
    node: ir.Node, codes: ir.Value | None, shape: tuple[int, ...] | None
) -> int | None:
    """Return how many products one output of a MatMul or Gemm sums."""
    if shape is not None and len(shape) >= 2:
        transposed = node.op_type == "Gemm" and int_attribute(node, "transB", 0)
        return shape[-1] if transposed else shape[-2]
    for value, axis in ((node.inputs[0], -1), (codes, -2)):
        if value is not None and value.shape is not None and len(value.shape) >= 2:
            length = value.shape[axis]
            if isinstance(length, int):
                return length
    return None


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
