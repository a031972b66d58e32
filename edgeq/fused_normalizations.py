"""Fused normalisations written as LayerNormalization, GroupNormalization and the RMS spelling.

before:  y, _, _, s = com.microsoft.SkipLayerNormalization(x, skip, gamma, beta, bias)
after:   s = Add(Add(x, bias), skip);  y = LayerNormalization(s, gamma, beta)

RMSNormalization is an operator of opset 23; edgeq's form of it is the one that `write_rms` writes:

before:  y = RMSNormalization(x, weight)
after:   y = Mul(Div(x, Sqrt(Add(ReduceMean(Mul(x, x)), epsilon))), weight)
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from edgeq.fused_activations import silu
from edgeq.graph import float_attribute, int_attribute
from edgeq.roles import LINEAR
from edgeq.writing import Results, Writer


def write_rms(
    write: Writer, x: ir.Value, axes: tuple[int, ...], epsilon: float, weight: ir.Value | None
) -> ir.Value:
    """Return x divided by the root of the mean of its squares, times `weight`.

    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, equation 4.

    Args:
        write: Writes the nodes.
        x: float32.
        axes: The axes of one row, negative, ascending.
        epsilon: Added to the mean of the squares.
        weight: Broadcastable to `x`; None for 1.
    """
    mean = write("ReduceMean", write("Mul", x, x), write.integers(*axes), keepdims=1)
    shifted = write("Add", mean, write.number(epsilon)) if epsilon else mean
    unit = write("Div", x, write("Sqrt", shifted))
    return unit if weight is None else write("Mul", unit, weight)


def layer_normalization(write: Writer) -> Results:
    """LayerNormalization as ONNX Runtime had it before opset 17."""
    return [_layer_norm(write, write.required(0), write.input(1), write.input(2), 1e-5)]


def _layer_norm(
    write: Writer, x: ir.Value, gamma: ir.Value | None, beta: ir.Value | None, epsilon: float
) -> ir.Value:
    node = write.node
    epsilon = float_attribute(node, "epsilon", epsilon)
    inputs = [x, gamma] if beta is None else [x, gamma, beta]
    axis = int_attribute(node, "axis", -1)
    return write("LayerNormalization", *inputs, axis=axis, epsilon=epsilon)


def _skip_layer(write: Writer) -> Results:
    total = _with_skip(write, write.input(4))
    gamma, beta = write.required(2), write.input(3)
    return [_layer_norm(write, total, gamma, beta, 1e-12), None, None, total]


def _skip_rms(write: Writer) -> Results:
    total = _with_skip(write, write.input(3))
    epsilon = float_attribute(write.node, "epsilon", 1e-12)
    return [write_rms(write, total, (-1,), epsilon, write.required(2)), None, None, total]


def _with_skip(write: Writer, bias: ir.Value | None) -> ir.Value:
    """Return input + skip + bias; the bias goes to the product that it belongs to."""
    x, skip = write.required(0), write.required(1)
    if bias is not None:
        source = skip.producer()
        if source is not None and source.op_type in LINEAR:
            skip = write("Add", skip, bias)
        else:
            x = write("Add", x, bias)
    return write("Add", x, skip)


def rms_normalization(write: Writer) -> Results:
    """RMSNormalization of opset 23, and SimplifiedLayerNormalization of ONNX Runtime."""
    node, x = write.node, write.required(0)
    axis = int_attribute(node, "axis", -1)
    axes = tuple(range(axis - write.ndim(x) if axis >= 0 else axis, 0))
    epsilon = float_attribute(node, "epsilon", 1e-5)
    return [write_rms(write, x, axes, epsilon, write.required(1))]


def group_normalization_by_group(write: Writer) -> Results:
    """GroupNormalization of opsets 18 to 20, whose scale and bias are per group."""
    x, groups = write.required(0), int_attribute(write.node, "num_groups", 1)
    channels = write.dim(x, 1)
    group = write.constant(np.arange(channels) // (channels // groups))
    gamma, beta = (write("Gather", write.required(i), group, axis=0) for i in (1, 2))
    epsilon = float_attribute(write.node, "epsilon", 1e-5)
    return [write("GroupNormalization", x, gamma, beta, num_groups=groups, epsilon=epsilon)]


def _group(write: Writer) -> Results:
    return [_group_norm(write, write.required(0))]


def _skip_group(write: Writer) -> Results:
    x, skip, bias = write.required(0), write.required(3), write.input(4)
    last = _channels_last(write)
    if write.ndim(skip) == 2:
        skip = write("Unsqueeze", skip, write.integers(*((1, 2) if last else (2, 3))))
    if bias is not None:
        per_channel = bias if last else write("Unsqueeze", bias, write.integers(1, 2))
        x = write("Add", x, per_channel)
    total = write("Add", x, skip)
    return [_group_norm(write, total), total]


def _group_norm(write: Writer, x: ir.Value) -> ir.Value:
    node, last = write.node, _channels_last(write)
    image = write("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    epsilon, groups = float_attribute(node, "epsilon", 1e-5), int_attribute(node, "groups", 1)
    gamma, beta = write.required(1), write.required(2)
    y = write("GroupNormalization", image, gamma, beta, num_groups=groups, epsilon=epsilon)
    if int_attribute(node, "activation", 0):
        y = silu(write, y)
    return write("Transpose", y, perm=[0, 2, 3, 1]) if last else y


def _channels_last(write: Writer) -> bool:
    return bool(int_attribute(write.node, "channels_last", 1))


def _embed(write: Writer) -> Results:
    """Three embeddings, their sum, and its LayerNormalization."""
    ids, segments, places = write.required(0), write.input(1), write.input(8)
    if places is None:
        places = write.positions(write.length(ids, 1))
    total = write("Add", write("Gather", write.required(2), ids, axis=0),
                  write("Gather", write.required(3), places, axis=0))  # fmt: skip
    if segments is not None:
        total = write("Add", total, write("Gather", write.required(4), segments, axis=0))
    y = _layer_norm(write, total, write.required(5), write.required(6), 1e-12)
    mask = write.input(7)
    if mask is None or not write.is_read(1):
        return [y, None, total]
    return [y, write("ReduceSum", mask, write.integers(1), keepdims=0), total]


NORMALIZATIONS: Mapping[str, Callable[[Writer], Results]] = MappingProxyType(
    {
        "EmbedLayerNormalization": _embed,
        "GroupNorm": _group,
        "SkipGroupNorm": _skip_group,
        "SkipLayerNormalization": _skip_layer,
        "SkipSimplifiedLayerNormalization": _skip_rms,
    }
)
