"""Whether a model treats every sample alone, so that a batch can be cut and its parts run apart.

The first axis of every value that depends on an input must count samples, and no node may mix
them. What is not known to keep samples apart counts as mixing them.
"""

import math
from collections.abc import Callable, Mapping, Set
from types import MappingProxyType

import onnx_ir as ir

from edgeq.graph import constant, int_attribute, ints_attribute, rank, static_shape

Batched = Set[ir.Value]


def keeps_samples_apart(graph: ir.Graph) -> bool:
    """Whether all inputs of `graph` have a symbolic first axis and no node mixes its elements."""
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    if not inputs or not all(_has_free_axis(value) for value in inputs):
        return False
    batched: set[ir.Value] = set(inputs)
    for node in graph:
        if batched.isdisjoint(node.inputs):
            continue
        rule = _RULES.get(node.op_type)
        if node.domain or rule is None or not rule(node, batched):
            return False
        batched.update(node.outputs)
    return batched.issuperset(graph.outputs)


def _has_free_axis(value: ir.Value) -> bool:
    sizes = list(value.shape or ())
    return bool(sizes) and not isinstance(sizes[0], int)


def _pointwise(node: ir.Node, batched: Batched) -> bool:
    ranks = {rank(value) for value in node.inputs if value is not None and value in batched}
    if len(ranks) != 1 or None in ranks:
        return False
    (axes,) = ranks
    return all(_broadcasts(v, axes or 0) for v in node.inputs if v is not None and v not in batched)


def _broadcasts(value: ir.Value, axes: int) -> bool:
    """Whether a constant has nothing, or one element, along the first of `axes` axes."""
    array = constant(value)
    return array is not None and (array.ndim < axes or (array.ndim == axes and len(array) == 1))


def _first_input(node: ir.Node, batched: Batched) -> bool:
    return node.inputs[0] in batched and batched.isdisjoint(node.inputs[1:])


def _gemm(node: ir.Node, batched: Batched) -> bool:
    if not _first_input(node, batched) or int_attribute(node, "transA", 0):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or _broadcasts_or_dequantizes(bias)


def _broadcasts_or_dequantizes(bias: ir.Value) -> bool:
    shape = static_shape(bias)
    return shape is not None and (len(shape) < 2 or shape[0] == 1)


def _axis(default: int) -> Callable[[ir.Node, Batched], bool]:
    """Return the rule of ops with one `axis` attribute that must not be the first."""

    def rule(node: ir.Node, batched: Batched) -> bool:
        axes = rank(node.inputs[0]) if node.inputs[0] is not None else None
        axis = int_attribute(node, "axis", default)
        data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return bool(axes and axis % axes) and all(value in batched for value in data)

    return rule


def _quantize(node: ir.Node, batched: Batched) -> bool:
    scale = constant(node.inputs[1])
    per_axis = scale is not None and scale.ndim > 0 and not _axis(1)(node, batched)
    return _first_input(node, batched) and scale is not None and not per_axis


def _axes_input(position: int) -> Callable[[ir.Node, Batched], bool]:
    """Return the rule of ops whose input at `position` lists axes; the first must not be one."""

    def rule(node: ir.Node, batched: Batched) -> bool:
        axes = constant(node.inputs[position]) if len(node.inputs) > position else None
        ndim = rank(node.inputs[0]) if node.inputs[0] is not None else None
        if axes is None or not ndim or not _first_input(node, batched):
            return False
        return all(int(axis) % ndim != 0 for axis in axes.reshape(-1))

    return rule


def _pad(node: ir.Node, batched: Batched) -> bool:
    pads = constant(node.inputs[1])
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return _axes_input(3)(node, batched)
    unpadded = pads is not None and pads[0] == 0 and pads[len(pads) // 2] == 0
    return unpadded and _first_input(node, batched)


def _reshape(node: ir.Node, batched: Batched) -> bool:
    source, target = node.inputs[0], constant(node.inputs[1])
    if source not in batched or target is None or source is None or source.shape is None:
        return False
    if not len(target) or (int_attribute(node, "allowzero", 0) and 0 in target):
        return False
    rest = [d for d in list(source.shape)[1:] if isinstance(d, int)]
    if len(rest) != len(source.shape) - 1 or any(d < 1 for d in target[1:]):
        return bool(target[0] == 0)
    return target[0] in (0, -1) and math.prod(rest) == math.prod(int(d) for d in target[1:])


def _transpose(node: ir.Node, batched: Batched) -> bool:
    return ints_attribute(node, "perm", (1,))[0] == 0


def _flatten(node: ir.Node, batched: Batched) -> bool:
    return int_attribute(node, "axis", 1) == 1


def _unsqueeze(node: ir.Node, batched: Batched) -> bool:
    axes, source = constant(node.inputs[1]), node.inputs[0]
    ndim = None if source is None else rank(source)
    if axes is None or ndim is None:
        return False
    return all(int(axis) % (ndim + axes.size) for axis in axes.reshape(-1))


_RULES: Mapping[str, Callable[[ir.Node, Batched], bool]] = MappingProxyType(
    {
        **dict.fromkeys(("Abs", "Cast", "Clip", "Identity", "LeakyRelu", "Neg"), _pointwise),
        **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "PRelu"), _pointwise),
        **dict.fromkeys(("Relu", "Sqrt", "Sub", "Sum"), _pointwise),
        **dict.fromkeys(("AveragePool", "Conv", "ConvTranspose", "DepthToSpace"), _first_input),
        **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _first_input),
        **dict.fromkeys(("GroupNormalization", "InstanceNormalization"), _first_input),
        "LayerNormalization": _axis(-1),
        "SpaceToDepth": _first_input,
        **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
        **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _axes_input(1)),
        "Concat": _axis(0),
        "Flatten": _flatten,
        "Gemm": _gemm,
        "Pad": _pad,
        "Reshape": _reshape,
        "Slice": _axes_input(3),
        "Softmax": _axis(-1),
        "Split": _axis(0),
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)
