"""Dimensions that ONNX's shape inference loses, found by one walk over the graph.

    Reshape(x[batch, length, 128], [-1, 128])                        [batch*length, 128]
    Reshape(x[batch*length, 128], Concat(Shape(ids), [128]))         [batch, length, 128]
    Expand(x[1, 1, 64], Concat(Shape(image)[:1], [1, 64]))           [batch, 1, 64]

ONNX follows a dimension by its name through most operators, but not where an operator takes a shape
as an operand. What is found there is handed on by ONNX's own rule for each node behind.
"""

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from edgeq.dims import Dim, dim_quotient, same_dim, shape_values
from edgeq.graph import OPSET, constant, int_attribute

_OPSETS = [onnx.helper.make_opsetid("", OPSET)]
_SMALL = 1024  # bytes; operands that decide a shape are smaller


def name_dims(graph: ir.Graph) -> int:
    """Write the dimensions that were nameless and are now known; return of how many values.

    What is known already stays as it is.
    """
    found: set[ir.Value] = set()
    for node in graph:
        if node.domain or not any(map(_is_open, node.outputs)):
            continue
        rule = _RULES.get(node.op_type)
        if rule is not None:
            shapes = [rule(node)]
        elif any(value in found for value in node.inputs):
            shapes = _infer(node)
        else:
            continue
        for output, shape in zip(node.outputs, shapes, strict=False):
            if shape is not None and _adopt(output, shape):
                found.add(output)
    return len(found)


def _is_open(value: ir.Value) -> bool:
    if value.shape is None:
        return True
    return any(isinstance(dim, ir.SymbolicDim) and dim.value is None for dim in value.shape)


def _adopt(value: ir.Value, dims: Sequence[Dim | None]) -> bool:
    """Fill the nameless dimensions of `value` from `dims`; return whether any was filled."""
    known = [ir.SymbolicDim(None)] * len(dims) if value.shape is None else list(value.shape)
    if len(known) != len(dims):
        return False
    pairs = zip(known, dims, strict=True)
    better = [b if _is_nameless(a) and b is not None else a for a, b in pairs]
    if value.shape is not None and all(_is_nameless(b) for a, b in zip(known, better, strict=True)
                                       if _is_nameless(a)):  # fmt: skip
        return False
    value.shape = ir.Shape(better)
    return True


def _is_nameless(dim: Dim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and dim.value is None


def _reshape(node: ir.Node) -> list[Dim | None] | None:
    data, shape = node.inputs[:2]
    dims = None if shape is None else shape_values(shape)
    if data is None or data.shape is None or dims is None:
        return None
    source = list(data.shape)
    result: list[Dim | None] = list(dims)
    if not int_attribute(node, "allowzero", 0):
        for index, dim in enumerate(dims):
            if dim == 0:
                result[index] = source[index] if index < len(source) else None
    if -1 in dims:
        others = [dim for dim in result if dim is not None and dim != -1]
        whole = len(others) == len(result) - 1
        result[dims.index(-1)] = dim_quotient(source, others) if whole else None
    return result


def _expand(node: ir.Node) -> list[Dim | None] | None:
    data, shape = node.inputs[:2]
    dims = None if shape is None else shape_values(shape)
    if data is None or data.shape is None or dims is None:
        return None
    return _broadcast(list(data.shape), dims)


def _broadcast(a: list[Dim], b: list[Dim]) -> list[Dim | None]:
    ndim = max(len(a), len(b))
    pairs = zip([1] * (ndim - len(a)) + a, [1] * (ndim - len(b)) + b, strict=True)
    return [_broadcast_dim(x, y) for x, y in pairs]


def _broadcast_dim(a: Dim, b: Dim) -> Dim | None:
    if same_dim(a, b) or b == 1:
        return a
    if a == 1:
        return b
    return next((d for d in (a, b) if isinstance(d, int)), None)  # the other is this or 1


def _constant_of_shape(node: ir.Node) -> list[Dim | None] | None:
    dims = None if node.inputs[0] is None else shape_values(node.inputs[0])
    return None if dims is None else list(dims)


def _range(node: ir.Node) -> list[Dim | None] | None:
    """`Range(0, n, 1)` has n elements."""
    start, limit, delta = node.inputs
    first, step = constant(start), constant(delta)
    if first is None or step is None or limit is None or first != 0 or step != 1:
        return None
    dims = shape_values(limit)
    return None if dims is None else list(dims)


_RULES = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Range": _range,
    "Reshape": _reshape,
}


def _infer(node: ir.Node) -> list[list[Dim | None] | None]:
    """Return what ONNX's rule for `node` says, by output."""
    types, data = {}, {}
    for value in node.inputs:
        if value is None:
            continue
        if value.dtype is None:
            return []
        name = str(value.name)
        types[name] = onnx.helper.make_tensor_type_proto(int(value.dtype), _as_onnx(value))
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.nbytes <= _SMALL:
            data[name] = ir.serde.serialize_tensor(tensor)
            data[name].name = name
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data, opset_imports=_OPSETS
        )
    except onnx.shape_inference.InferenceError:  # the whole graph's inference says what is wrong
        return []
    return [_dims(found.get(str(output.name))) for output in node.outputs]


def _as_onnx(value: ir.Value) -> list[int | str | None] | None:
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _dims(kind: onnx.TypeProto | None) -> list[Dim | None] | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    return [
        d.dim_value if d.HasField("dim_value") else ir.SymbolicDim(d.dim_param or None)
        for d in kind.tensor_type.shape.dim
    ]
