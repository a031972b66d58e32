"""Recognise normalisations: LayerNormalization and its relatives.

    y = (x - mean) / sqrt(variance + epsilon) * gamma + beta         over the axes of one row

RMS normalisation leaves the mean in. It is no operator of opset 21 and has one spelling instead:

    y = Div(x, Sqrt(Add(ReduceMean(Mul(x, x)), epsilon)))

Both on the float graph and on the QDQ graph, where each reader of `x` has a DequantizeLinear of its
own. A Reshape, and Mul and Add by constants, that alone read the result belong to it: the affine
part of GroupNorm lies there in exports. Values inside stay float32; `x` and the output get codes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import constant, float_attribute, int_attribute, rank, sole_consumer
from edgeq.qdq import constant_reals, operand


@dataclass(frozen=True, eq=False)
class Normalization:
    """One normalisation.

    Attributes:
        node: The node that makes the normalised value.
        x: What it reads: float32, or the result of a DequantizeLinear.
        axes: The axes of a row in `x`, not negative, ascending; with groups, those behind axis 1.
        groups: Into how many groups axis 1 is cut, each of them a row with all axes behind it; 0 if
            a row is whole along its axes. InstanceNormalization has groups of one channel.
        centered: Whether the mean is subtracted; not so for RMS.
        epsilon: Added to the variance.
        gamma: The factor, float32, broadcastable to the result of `node`; None for 1. With groups,
            one number for each channel.
        beta: The summand, likewise; None for 0.
        inner: The float32 values between `x` and the result of `node`, in graph order.
    """

    node: ir.Node
    x: ir.Value
    axes: tuple[int, ...]
    groups: int
    centered: bool
    epsilon: float
    gamma: NDArray[np.float32] | None
    beta: NDArray[np.float32] | None
    inner: tuple[ir.Value, ...] = ()


def is_normalization(node: ir.Node) -> bool:
    """Whether `node` makes the result of a normalisation with constant parameters."""
    return normalization(node) is not None


def normalization(node: ir.Node) -> Normalization | None:
    """Return the normalisation whose result `node` makes; `None` if it makes none.

    Not recognised: parameters computed at run time, and operators whose statistics are read too.
    """
    if node.domain:
        return None
    if node.op_type in NORMALIZING:
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            return None
        return NORMALIZING[node.op_type](node)
    return _spelled_rms(node) if node.op_type == "Div" else None


def affine_tail(node: ir.Node) -> ir.Value:
    """Return the value behind the Reshape, Mul and Add by constants that alone follow `node`.

    It is the output of `node` itself where no Mul or Add does.
    """
    nodes = tail_nodes(node)
    return nodes[-1].outputs[0] if nodes else node.outputs[0]


def tail_nodes(node: ir.Node) -> list[ir.Node]:
    """Return the nodes between the output of `node` and `affine_tail(node)`, in order."""
    found: list[ir.Node] = []
    pending: list[ir.Node] = []
    value = node.outputs[0]
    reader = sole_consumer(value)
    while reader is not None and not reader.domain:
        if reader.op_type == "Reshape" and reader.inputs[0] is value:
            pending.append(reader)
        elif reader.op_type in ("Mul", "Add") and _other(reader, value) is not None:
            found += [*pending, reader]
            pending = []
        else:
            break
        value = reader.outputs[0]
        reader = sole_consumer(value)
    return found


def inner_values(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values of a normalisation that stay float32: neither its input nor its output."""
    found = normalization(node)
    if found is None:
        return
    yield from found.inner
    tail = tail_nodes(node)
    if tail:
        yield node.outputs[0]
        yield from (step.outputs[0] for step in tail[:-1])


def _other(node: ir.Node, value: ir.Value) -> NDArray[Any] | None:
    """Return the constant operand of a Mul or Add of `value`."""
    operands = [v for v in node.inputs if v is not value]
    return constant(operands[0]) if len(operands) == 1 else None


# -- operators -------------------------------------------------------------------------------------


def _layer(node: ir.Node) -> Normalization | None:
    x = node.inputs[0]
    ndim = None if x is None else rank(x)
    parameters = _parameters(node)
    if x is None or not ndim or parameters is None:
        return None
    axes = tuple(range(int_attribute(node, "axis", -1) % ndim, ndim))
    return Normalization(node, x, axes, 0, True, _epsilon(node), *parameters)


def _instance(node: ir.Node) -> Normalization | None:
    channels = constant(node.inputs[1])
    return None if channels is None else _in_groups(node, channels.size)


def _group(node: ir.Node) -> Normalization | None:
    return _in_groups(node, int_attribute(node, "num_groups", 1))


def _in_groups(node: ir.Node, groups: int) -> Normalization | None:
    x = node.inputs[0]
    ndim = None if x is None else rank(x)
    parameters = _parameters(node)
    if x is None or ndim is None or ndim < 2 or parameters is None:
        return None
    per_channel = (-1, *(1,) * (ndim - 2))
    gamma, beta = (None if p is None else p.reshape(per_channel) for p in parameters)
    return Normalization(node, x, tuple(range(2, ndim)), groups, True, _epsilon(node), gamma, beta)


def _parameters(
    node: ir.Node,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None] | None:
    """Return gamma and beta, `None` for idle ones; `None` unless both are constants."""
    found: list[NDArray[np.float32] | None] = [None, None]
    for place, (value, idle) in enumerate(zip(node.inputs[1:3], (1.0, 0.0), strict=False)):
        array = constant_reals(value)
        if value is not None and (array is None or array.dtype != np.float32):
            return None
        if array is not None and np.any(array != idle):
            found[place] = array
    return found[0], found[1]


def _epsilon(node: ir.Node) -> float:
    return float_attribute(node, "epsilon", 1e-5)


NORMALIZING: Mapping[str, Callable[[ir.Node], Normalization | None]] = MappingProxyType(
    {
        "GroupNormalization": _group,
        "InstanceNormalization": _instance,
        "LayerNormalization": _layer,
    }
)


# -- spelled out -----------------------------------------------------------------------------------


def _spelled_rms(node: ir.Node) -> Normalization | None:
    """Recognise `x / sqrt(mean(x * x) + epsilon)`."""
    x = node.inputs[0]
    root = _made_by("Sqrt", node.inputs[1])
    shifted = None if root is None else _made_by("Add", root.inputs[0])
    mean = None if shifted is None else _made_by("ReduceMean", shifted.inputs[0])
    square = None if mean is None else _made_by("Mul", mean.inputs[0])
    if x is None or root is None or shifted is None or mean is None or square is None:
        return None
    epsilon, axes = constant(shifted.inputs[1]), _mean_axes(mean)
    if epsilon is None or epsilon.size != 1 or axes is None:
        return None
    if not all(_same(x, factor) for factor in square.inputs):
        return None
    inner = tuple(step.outputs[0] for step in (square, mean, shifted, root))
    return Normalization(node, x, axes, 0, False, float(epsilon.reshape(())), None, None, inner)


def _made_by(op_type: str, value: ir.Value | None) -> ir.Node | None:
    """Return the node of this type that makes `value` for one reader."""
    node = None if value is None or sole_consumer(value) is None else value.producer()
    return None if node is None or node.op_type != op_type or node.domain else node


def _mean_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Return the axes of a ReduceMean that keeps dimensions."""
    x, axes = node.inputs[0], constant(node.inputs[1]) if len(node.inputs) > 1 else None
    ndim = None if x is None else rank(x)
    if ndim is None or axes is None or not axes.size or not int_attribute(node, "keepdims", 1):
        return None
    return tuple(sorted(int(axis) % ndim for axis in axes.reshape(-1)))


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values are one, or the same codes dequantized alike."""
    p, q = operand(a), operand(b)
    if p is None or q is None:
        return a is b
    return p.codes is q.codes and p.qparams.same_as(q.qparams)
