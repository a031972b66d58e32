"""Where the axes of an index go: for each operator, from its operands to its result.

A rule says no, `None`, where the elements of the index would meet, or where the result depends on
more than them and constants.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from edgeq.dims import same_dim
from edgeq.graph import constant, int_attribute, ints_attribute, rank

Axes = tuple[int, ...]
Operands = Mapping[ir.Value, Axes]  # of a node: the axes of an index in each that has them
Rule = Callable[[ir.Node, Operands], Axes | None]


def _elementwise(node: ir.Node, operands: Operands) -> Axes | None:
    """Line the operands up at their last axes, as broadcasting does."""
    ndim = rank(node.outputs[0])
    values = [value for value in node.inputs if value is not None]
    if ndim is None or any(rank(value) is None for value in values):
        return None
    placed = {
        tuple(axis + ndim - (rank(v) or 0) for axis in operands[v]) for v in values if v in operands
    }
    others = [constant(value) for value in values if value not in operands]
    if len(placed) != 1 or any(array is None for array in others):
        return None
    (axes,) = placed
    shapes = [(1,) * (ndim - array.ndim) + array.shape for array in others if array is not None]
    return axes if all(shape[axis] == 1 for shape in shapes for axis in axes) else None


def _data(node: ir.Node, operands: Operands) -> tuple[Axes, int] | None:
    """Return the axes and the rank of the first input, if all others are constants."""
    first, *others = node.inputs
    if first not in operands or first is None or rank(first) is None:
        return None
    if any(value is not None and constant(value) is None for value in others):
        return None
    return operands[first], rank(first) or 0


def _unsqueeze(node: ir.Node, operands: Operands) -> Axes | None:
    data, added, ndim = _data(node, operands), constant(node.inputs[1]), rank(node.outputs[0])
    if data is None or added is None or ndim is None:
        return None
    new = {int(axis) % ndim for axis in added.reshape(-1)}
    kept = [axis for axis in range(ndim) if axis not in new]
    return tuple(kept[axis] for axis in data[0])


def _squeeze(node: ir.Node, operands: Operands) -> Axes | None:
    data = _data(node, operands)
    removed = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if data is None or removed is None:
        return None
    axes, ndim = data
    gone = {int(axis) % ndim for axis in removed.reshape(-1)}
    kept = [axis for axis in range(ndim) if axis not in gone]
    return None if gone.intersection(axes) else tuple(kept.index(axis) for axis in axes)


def _transpose(node: ir.Node, operands: Operands) -> Axes | None:
    data = _data(node, operands)
    if data is None:
        return None
    axes, ndim = data
    perm = ints_attribute(node, "perm", tuple(reversed(range(ndim))))
    return tuple(perm.index(axis) for axis in axes)


def _reshape(node: ir.Node, operands: Operands) -> Axes | None:
    """Let the axes of the index lead before and after; the rest holds as many elements."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source not in operands or source.shape is None or output.shape is None:
        return None
    axes = operands[source]
    count = len(axes)
    if axes != tuple(range(count)) or len(output.shape) < count:
        return None
    before, after = list(source.shape), list(output.shape)
    rows, cells = before[count:], after[count:]
    known = [size for size in (*rows, *cells) if isinstance(size, int)]
    if len(known) < len(rows) + len(cells):
        return None
    if math.prod(known[: len(rows)]) != math.prod(known[len(rows) :]):
        return None
    # One axis holds what the others leave; of several, each must be known to stay.
    same = all(same_dim(a, b) for a, b in zip(before[:count], after[:count], strict=True))
    return axes if same or count == 1 else None


def _along(default: int, position: int | None = None) -> Rule:
    """Return the rule of operators that work along axes: none may be one of the index.

    Args:
        default: Of the attribute `axis`.
        position: Of the input that lists the axes instead.
    """

    def rule(node: ir.Node, operands: Operands) -> Axes | None:
        data = _data(node, operands)
        if data is None:
            return None
        axes, ndim = data
        if position is None:
            used = [int_attribute(node, "axis", default)]
        else:
            listed = constant(node.inputs[position]) if len(node.inputs) > position else None
            used = list(range(ndim)) if listed is None else [int(a) for a in listed.reshape(-1)]
        return None if {axis % ndim for axis in used}.intersection(axes) else axes

    return rule


def _concat(node: ir.Node, operands: Operands) -> Axes | None:
    placed = {operands.get(value) for value in node.inputs if value is not None}
    ndim = rank(node.outputs[0])
    if len(placed) != 1 or ndim is None:
        return None
    (axes,) = placed
    along = int_attribute(node, "axis", 0) % ndim
    return None if axes is None or along in axes else axes


def _gather(node: ir.Node, operands: Operands) -> Axes | None:
    data, indices = node.inputs[:2]
    if data is None or indices is None:
        return None
    along, picked = int_attribute(node, "axis", 0), rank(indices)
    table = constant(data)
    if table is not None:
        return tuple(axis + along % table.ndim for axis in operands[indices])
    found = _along(0)(node, operands)
    if found is None or picked is None:
        return None
    along %= rank(data) or 1
    return tuple(axis if axis < along else axis + picked - 1 for axis in found)


def _gemm(node: ir.Node, operands: Operands) -> Axes | None:
    data = _data(node, operands)
    if data is None or data[0] not in ((), (0,)) or int_attribute(node, "transA", 0):
        return None
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    shared = bias is None or not data[0] or bias.ndim < 2 or len(bias) == 1
    return data[0] if shared else None


def _matmul(node: ir.Node, operands: Operands) -> Axes | None:
    """Let the index lie along no axis that is summed over, and the constant be one matrix."""
    left, right = node.inputs
    source, other = (left, right) if left in operands else (right, left)
    matrix, ndim = constant(other), rank(source) if source is not None else None
    if source is None or matrix is None or ndim is None or not 2 <= matrix.ndim <= max(ndim, 2):
        return None
    summed = ndim - 1 if source is left else ndim - 2
    if summed < 0 or summed in operands[source] or any(d != 1 for d in matrix.shape[:-2]):
        return None
    return operands[source]


_ELEMENTWISE = (
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin",
    "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where",
)  # fmt: skip

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(_ELEMENTWISE, _elementwise),
        "Concat": _concat,
        "Flatten": _reshape,
        "Gather": _gather,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "Reshape": _reshape,
        "Slice": _along(0, 3),
        "Split": _along(0),
        "Squeeze": _squeeze,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)
