"""Which elements of its inputs a node needs for some rows of its result: those of the same rows.

Where a node treats the positions of an axis each alone, a selection along that axis can be made
before it as well as behind it. Along the last axis a linear op has its channels, which are no rows.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from edgeq.dims import dim_product, same_dim
from edgeq.graph import constant, int_attribute, ints_attribute, rank
from edgeq.operators import OPERATORS, elementwise

_POINTWISE = {"Cast", "Identity"} | {
    name for name, op in OPERATORS.items() if op.function.__module__ == elementwise.__name__
}

Sources = dict[int, int]  # the axis by the index of the input


def axis_sources(node: ir.Node, axis: int) -> Sources | None:
    """Return which axes of which inputs `axis` of the result comes from, each index from its own.

    `None` where it does not, or that is not known. Inputs that are not named are read whole.
    """
    source = node.inputs[0] if node.inputs else None
    if node.domain or node.outputs[0].shape is None or source is None or source.shape is None:
        return None
    rule = _pointwise if is_pointwise(node) else _RULES.get(node.op_type)
    return None if rule is None else rule(node, axis)


def is_pointwise(node: ir.Node) -> bool:
    """Whether `node` makes each element of the elements at its place, one of each input."""
    return not node.domain and node.op_type in _POINTWISE


def _pointwise(node: ir.Node, axis: int) -> Sources | None:
    shape = node.outputs[0].shape
    assert shape is not None
    if axis == len(shape) - 1:
        return None
    found: Sources = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.shape is None:
            return None
        own = axis - len(shape) + len(value.shape)
        if own < 0 or value.shape[own] == 1:
            continue
        if not same_dim(value.shape[own], shape[axis]):
            return None
        found[index] = own
    return found


def _normalized(node: ir.Node, axis: int) -> Sources | None:
    return {0: axis} if axis < int_attribute(node, "axis", -1) % _ndim(node) else None


def _softmax(node: ir.Node, axis: int) -> Sources | None:
    return {0: axis} if axis != int_attribute(node, "axis", -1) % _ndim(node) else None


def _matmul(node: ir.Node, axis: int) -> Sources | None:
    left, right = (0 if v is None else rank(v) or 0 for v in node.inputs)
    if left < 2 or right < 2 or axis == _ndim(node) - 1:
        return None
    if axis < _ndim(node) - 2 and right > 2:
        return None
    own = axis - _ndim(node) + left
    return {0: own} if own >= 0 else None


def _gemm(node: ir.Node, axis: int) -> Sources | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = not int_attribute(node, "transA", 0) and (bias is None or rank(bias) in (0, 1))
    return {0: 0} if axis == 0 and plain else None


def _transpose(node: ir.Node, axis: int) -> Sources | None:
    perm = ints_attribute(node, "perm", ())
    return {0: perm[axis]} if perm else None


def _reshape(node: ir.Node, axis: int) -> Sources | None:
    source, output = node.inputs[0], node.outputs[0]
    sizes = constant(node.inputs[1])
    assert source is not None and source.shape is not None and output.shape is not None
    before = dim_product(list(output.shape)[:axis])
    if sizes is None or before is None:
        return None
    for own, size in enumerate(source.shape):
        lead = dim_product(list(source.shape)[:own])
        if lead is None or not same_dim(lead, before) or not same_dim(size, output.shape[axis]):
            continue
        # A size of 0 stands for that of the source at the same place.
        return {0: own} if sizes[axis] or own == axis else None
    return None


def _squeeze(node: ir.Node, axis: int) -> Sources | None:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        return None
    assert node.inputs[0] is not None
    ndim = rank(node.inputs[0]) or 0
    kept = [i for i in range(ndim) if i not in {int(a) % ndim for a in axes.reshape(-1)}]
    return {0: kept[axis]}


def _unsqueeze(node: ir.Node, axis: int) -> Sources | None:
    axes = constant(node.inputs[1])
    if axes is None:
        return None
    added = {int(a) % _ndim(node) for a in axes.reshape(-1)}
    return None if axis in added else {0: axis - sum(a < axis for a in added)}


def _ndim(node: ir.Node) -> int:
    return rank(node.outputs[0]) or 0


_RULES: Mapping[str, Callable[[ir.Node, int], Sources | None]] = MappingProxyType(
    {
        "Gemm": _gemm,
        "LayerNormalization": _normalized,
        "MatMul": _matmul,
        "Reshape": _reshape,
        "Softmax": _softmax,
        "Squeeze": _squeeze,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)
