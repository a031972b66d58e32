"""What is known of an integer vector that a graph computes from shapes.

Each entry is an int, or the symbolic dimension that it is equal to.
"""

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant, int_attribute

Dim = int | ir.SymbolicDim
_DEPTH = 64  # longer chains than this come from no exporter


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are known to be equal; two nameless ones are not."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value


def shape_values(value: ir.Value, depth: int = _DEPTH) -> list[Dim] | None:
    """Return the entries of the integer scalar or vector `value`; `None` where one is unknown."""
    array = constant(value)
    if array is not None:
        return [int(d) for d in array.reshape(-1)] if array.dtype.kind == "i" else None
    node = value.producer()
    if node is None or node.domain or depth == 0:
        return None
    if node.op_type == "Shape":
        return _shape(node)
    if node.op_type == "Concat":
        parts = [_of(v, depth) for v in node.inputs]
        return None if None in parts else [d for part in parts if part is not None for d in part]
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity", "Cast"):
        return _of(node.inputs[0], depth)
    if node.op_type in ("Gather", "Slice"):
        return _select(node, depth)
    return None


def _of(value: ir.Value | None, depth: int) -> list[Dim] | None:
    return None if value is None else shape_values(value, depth - 1)


def _shape(node: ir.Node) -> list[Dim] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    ndim = len(source.shape)
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", ndim)
    return list(source.shape)[slice(start, end)]


def _select(node: ir.Node, depth: int) -> list[Dim] | None:
    source = _of(node.inputs[0], depth)
    operands = [constant(v) for v in node.inputs[1:]]
    if source is None or not operands or any(a is None for a in operands):
        return None
    arrays = [np.asarray(a).reshape(-1) for a in operands]
    if node.op_type == "Gather":
        return [source[int(i)] for i in arrays[0] if -len(source) <= i < len(source)]
    if any(len(a) != 1 for a in arrays):
        return None
    step = int(arrays[3][0]) if len(arrays) > 3 else 1
    return source[int(arrays[0][0]) : int(arrays[1][0]) : step]
