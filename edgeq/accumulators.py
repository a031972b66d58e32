"""How far the accumulator of an integer linear op can go.

`|acc| <= sum |w - zw| * max |x - zx| + |bias|`, per output channel, for every input there is and
for every partial sum, in whatever order the products are added.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import constant, int_attribute
from edgeq.longest import longest
from edgeq.numerics.magnitudes import magnitude_sums
from edgeq.qdq import LinearGroup, Operand

PROMISED_BITS = "edgeq.accumulator_bits"  # metadata of a linear op: what its accumulator must fit


def reach(operand: Operand) -> int:
    """Return the largest `|code - zero_point|`; a Clip that makes the codes narrows their range."""
    qtype, zero = operand.qparams.qtype, operand.qparams.zero_point
    low, high = qtype.qmin, qtype.qmax
    clip = operand.codes.producer()
    if clip is not None and clip.op_type == "Clip" and not clip.domain:
        limits = [constant(value) for value in (*clip.inputs[1:], None, None)[:2]]
        low = low if limits[0] is None else max(low, int(limits[0].reshape(())))
        high = high if limits[1] is None else min(high, int(limits[1].reshape(())))
    return max(0, int(np.maximum(zero - low, high - zero).max()))


def accumulator_bound(group: LinearGroup, max_dim: int) -> int | None:
    """Return the largest magnitude of the accumulator over all channels; `None` if unknown.

    No axis that the model leaves open is longer than `max_dim`.
    """
    if group.node.op_type == "Mul":
        return reach(group.x) * reach(group.w)
    sums = _weight_sums(group.node, group.w, max_dim)
    if sums is None:
        return None
    bound = sums * reach(group.x)
    if group.bias is not None and group.bias.array is not None:
        bound = bound + np.abs(group.bias.array.astype(np.int64)).reshape(-1)
    return int(bound.max())


def _weight_sums(node: ir.Node, w: Operand, max_dim: int) -> NDArray[np.int64] | None:
    """Return `sum |w - zw|` per output channel, or once for all where w is not constant."""
    if w.array is None:
        transposed = node.op_type == "Gemm" and int_attribute(node, "transB", 0)
        length = common_length([(w.codes, -1 if transposed else -2), (node.inputs[0], -1)], max_dim)
        return None if length is None else np.array([length * reach(w)])
    ndim = w.array.ndim
    if node.op_type == "Conv":
        over = tuple(range(1, ndim))
    elif node.op_type == "Gemm":
        over = (1 if int_attribute(node, "transB", 0) else 0,)
    else:
        over = (max(0, ndim - 2),)
    return magnitude_sums(w.array, w.qparams.zero_point, w.qparams.axis, over).reshape(-1)


def common_length(axes: Sequence[tuple[ir.Value | None, int]], max_dim: int) -> int | None:
    """Return how long axes of equal length are at most; None where no rank is known."""
    dims = [
        value.shape[axis]
        for value, axis in axes
        if value is not None and value.shape is not None and len(value.shape) >= -axis
    ]
    return min((longest(dim, max_dim) for dim in dims), default=None)
