"""The constant weight and bias of a linear node, read as float64 and written back rounded once."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import (
    Editor,
    constant,
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearWeights:
    """What a Conv, ConvTranspose or Gemm multiplies with and adds.

    Attributes:
        weight: float64; a Conv's [out, in / group, ...], a ConvTranspose's
            [in, out / group, ...], a Gemm's as stored. For a grouped ConvTranspose it is viewed as
            [group, in / group, out / group, ...].
        bias: float64, (out,); zeros where the node has none.
        axis: The output axis of `weight`.
        group_axis: The axis of groups where outputs lie on (group_axis, axis).
    """

    weight: Float64
    bias: Float64
    axis: int
    group_axis: int | None = None

    def per_output(self, values: Float64) -> Float64:
        """Reshape one value per output so that it broadcasts against `weight`."""
        shape = [1] * self.weight.ndim
        if self.group_axis is not None:
            shape[self.group_axis] = self.weight.shape[self.group_axis]
        shape[self.axis] = self.weight.shape[self.axis]
        return values.reshape(shape)

    def scaled(self, factor: Float64, offset: Float64) -> "LinearWeights":
        """Return the weights of `factor * y + offset`, both given per output."""
        weight = self.weight * self.per_output(factor)
        return LinearWeights(weight, self.bias * factor + offset, self.axis, self.group_axis)


def linear_weights(node: ir.Node) -> LinearWeights | None:
    """Return the weights of `node`; `None` unless it is linear with constant float32 weights.

    A Gemm must have alpha and beta 1; its second operand is the constant one.
    """
    found = _stored(node)
    if found is None:
        return None
    weight, bias, axis, group_axis = found
    return LinearWeights(weight.astype(np.float64), bias, axis, group_axis)


def has_linear_weights(node: ir.Node) -> bool:
    """Whether `linear_weights` finds any; nothing is copied."""
    return _stored(node) is not None


def _stored(node: ir.Node) -> tuple[NDArray[np.float32], Float64, int, int | None] | None:
    """Return the weight as it is stored, the bias, the output axis and the axis of groups."""
    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32:
        return None
    axis, group_axis = 0, None
    if node.op_type == "Gemm":
        if float_attribute(node, "alpha", 1.0) != 1.0 or float_attribute(node, "beta", 1.0) != 1.0:
            return None
        axis = 0 if int_attribute(node, "transB", 0) else 1
    if node.op_type == "ConvTranspose":
        group = int_attribute(node, "group", 1)
        weight = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        axis, group_axis = 2, 0
    outputs = weight.shape[axis] * (1 if group_axis is None else weight.shape[group_axis])
    bias = np.zeros(outputs)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        array = constant(node.inputs[2])
        if (
            array is None
            or array.size not in (1, outputs)
            or array.shape[-1:] not in ((), (1,), (outputs,))
        ):
            return None
        bias = np.broadcast_to(array.astype(np.float64).reshape(-1), (outputs,)).copy()
    return weight, bias, axis, group_axis


def set_linear_weights(node: ir.Node, weights: LinearWeights, editor: Editor) -> None:
    """Give `node` new weights, rounded to float32 once; shared initializers are not touched."""
    old = node.inputs[1]
    assert old is not None and old.shape is not None and old.name is not None
    shape = tuple(old.shape.numpy())
    if node.op_type != "ConvTranspose":
        shape = weights.weight.shape
    weight = editor.initializer(
        f"{old.name}_folded", weights.weight.astype(np.float32).reshape(shape)
    )
    node.replace_input_with(1, weight)
    had = len(node.inputs) > 2 and node.inputs[2] is not None
    if not had and not np.any(weights.bias):
        return
    bias = editor.initializer(f"{old.name}_bias", weights.bias.astype(np.float32))
    if len(node.inputs) > 2:
        node.replace_input_with(2, bias)
        return
    node.resize_inputs(3)
    node.replace_input_with(2, bias)


def has_padding(node: ir.Node) -> bool:
    """Whether a Conv may see zeros around its input; a Gemm never does."""
    if node.op_type == "Gemm":
        return False
    automatic = string_attribute(node, "auto_pad", "NOTSET")
    if automatic == "NOTSET":
        return any(ints_attribute(node, "pads", ()))
    return automatic != "VALID"


def input_channels(node: ir.Node) -> int:
    """Return how many input channels a Conv or Gemm with constant weights has."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return int(weight.shape[1]) * int_attribute(node, "group", 1)
    return int(weight.shape[1 if int_attribute(node, "transB", 0) else 0])


def behind_affine(node: ir.Node, factor: Float64, offset: Float64) -> LinearWeights:
    """Return the weights of a Conv or Gemm that reads `x` in place of `factor * x + offset`.

    Args:
        node: A node with constant weights; zeros around its input must not matter, or `offset`
            must be zero.
        factor: (input channels,).
        offset: (input channels,).
    """
    weights = linear_weights(node)
    assert weights is not None
    w = weights.weight
    if node.op_type == "Gemm":
        inner = 1 - weights.axis
        shape = [1, 1]
        shape[inner] = -1
        bias = weights.bias + (w * offset.reshape(shape)).sum(inner)
        return LinearWeights(w * factor.reshape(shape), bias, weights.axis)
    group = int_attribute(node, "group", 1)
    grouped = w.reshape(group, -1, *w.shape[1:])  # [group, out / group, in / group, ...]
    per_input = (group, 1, w.shape[1], *[1] * (w.ndim - 2))
    shift = (grouped * offset.reshape(per_input)).reshape(weights.bias.size, -1).sum(1)
    scaled = (grouped * factor.reshape(per_input)).reshape(w.shape)
    return LinearWeights(scaled, weights.bias + shift, 0)


def output_axis(node: ir.Node, ndim: int) -> int | None:
    """Return the axis of a linear op's weight that holds its output channels, if it has one."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if int_attribute(node, "transB", 0) else 1
    return ndim - 1 if ndim > 1 else None
