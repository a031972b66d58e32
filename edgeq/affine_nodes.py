"""Nodes that multiply by a constant or add one: `y = factor * x + offset`, read as float64."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import constant, rank

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AffineNode:
    """A Mul, Div, Add or Sub of a run-time value and a constant.

    Attributes:
        node: The node.
        source: Its run-time operand.
        factor: float64, of the rank of `source`, every axis 1 or that of `source`.
        offset: float64, the same.
    """

    node: ir.Node
    source: ir.Value
    factor: Float64
    offset: Float64


def affine_node(node: ir.Node | None) -> AffineNode | None:
    """Return what `node` does, or `None`: no constant operand, or one that changes the shape."""
    if node is None or node.domain or node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return None
    left, right = node.inputs
    if left is None or right is None:
        return None
    swapped = constant(left) is not None
    source, array = (right, constant(left)) if swapped else (left, constant(right))
    ndim = rank(source)
    if array is None or ndim is None or array.dtype != np.float32 or array.ndim > ndim:
        return None
    number = array.astype(np.float64).reshape((1,) * (ndim - array.ndim) + array.shape)
    assert source.shape is not None
    if any(a not in (1, d) for a, d in zip(number.shape, source.shape, strict=True)):
        return None
    one, zero = np.ones_like(number), np.zeros_like(number)
    if node.op_type == "Div" and (swapped or not number.all()):
        return None
    factor, offset = {
        "Mul": (number, zero),
        "Div": (1 / number if node.op_type == "Div" else one, zero),
        "Add": (one, number),
        "Sub": (-one, number) if swapped else (one, -number),
    }[node.op_type]
    if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
        return None
    return AffineNode(node, source, factor, offset)


def per_channel(array: Float64, axis: int, channels: int) -> Float64 | None:
    """Return `array` as (channels,), or `None` if it varies along another axis than `axis`."""
    axis %= array.ndim
    if any(size != 1 for i, size in enumerate(array.shape) if i != axis):
        return None
    flat = array.reshape(-1)
    return np.broadcast_to(flat, (channels,)) if flat.size in (1, channels) else None
