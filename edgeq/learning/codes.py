"""Quantizing, dequantizing and integer linear groups in torch: the definition, with a gradient.

Codes are held in float32, which is exact up to 2**24. A group computes

    acc = sum((x - zx) * (w - zw)) + bias,   y = saturate(round_half_even(float32(acc) * M) + zy)

with `M = float32(float32(sx * sw) / sy)`, in torch, so that a gradient reaches codes and scales.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeq.errors import UnsupportedOperatorError
from edgeq.graph import int_attribute, ints_attribute, string_attribute
from edgeq.learning.operators_linear import conv
from edgeq.learning.straight_through import quantize, requantize, round_half_even, saturate
from edgeq.numerics.affine import QParams
from edgeq.numerics.linear import FLOAT32_EXACT
from edgeq.numerics.qtype import QTYPES, QType
from edgeq.numerics.windows import AutoPad
from edgeq.operators.binding import describe
from edgeq.qdq import LinearGroup

Zero: TypeAlias = Tensor | float  # a zero point: a number where it is a constant
Kernel = Callable[..., tuple[Tensor, ...]]
ZERO_POINTS = {"QuantizeLinear": (2,), "DequantizeLinear": (2,)}  # which arguments are zero points
GROUP_ZERO_POINTS = (6, 7, 8)


def _along(parameter: Tensor, axis: int, x: Tensor, block_size: int = 0) -> Tensor:
    """Return a parameter so that it broadcasts against `x`: one, per axis, or in blocks."""
    if parameter.numel() == 1 and parameter.ndim < 2:
        return parameter.reshape(())
    if not block_size:
        shape = [1] * x.ndim
        shape[axis] = -1
        return parameter.reshape(shape)
    if parameter.shape[axis] == 1:
        return parameter  # one block, however long it may be
    repeated = parameter.repeat_interleave(block_size, axis)
    return repeated.narrow(axis, 0, x.shape[axis])


def _zero_along(zero: Zero | None, axis: int, x: Tensor, block_size: int = 0) -> Zero:
    if zero is None:
        return 0.0
    return zero if isinstance(zero, float) else _along(zero, axis, x, block_size)


def _units(codes: Tensor, zero: Zero) -> Tensor:
    return codes if isinstance(zero, float) and zero == 0.0 else codes - zero


def _limited(units: Callable[[float, float], Tensor], zero: float, qtype: QType) -> Tensor:
    """Return saturated units and the zero point that is added to them."""
    found = units(qtype.qmin - zero, qtype.qmax - zero)
    return found + zero if zero else found


def _qtype(node: ir.Node) -> QType:
    """Return the format that a QuantizeLinear makes."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = node.outputs[0].dtype if zero is None else zero.dtype
    wanted = int_attribute(node, "output_dtype", 0)
    if dtype is None and wanted:
        dtype = ir.DataType(wanted)
    name = "uint8" if dtype is None else dtype.name.lower()
    if name not in QTYPES:
        raise UnsupportedOperatorError(f"{describe(node)}: codes of type {name}")
    return QTYPES[name]


def _layout(node: ir.Node) -> tuple[int, int]:
    return int_attribute(node, "axis", 1), int_attribute(node, "block_size", 0)


def quantize_kernel(node: ir.Node) -> Kernel:
    """Return the function of a QuantizeLinear node: (x, scale, zero point) to codes.

    Raises:
        UnsupportedOperatorError: Its codes have a type that is no format.
    """
    qtype, axis, block_size = _qtype(node), *_layout(node)

    def kernel(x: Tensor, scale: Tensor, zero: Zero | None = None) -> tuple[Tensor, ...]:
        x, scale = x.to(torch.float32), _along(scale, axis, x, block_size)
        zero = _zero_along(zero, axis, x, block_size)
        if isinstance(zero, float):
            return (_limited(lambda low, high: quantize(x, scale, low, high), zero, qtype),)
        return (saturate(round_half_even(x / scale) + zero, qtype.qmin, qtype.qmax),)

    return kernel


def dequantize_kernel(node: ir.Node) -> Kernel:
    """Return the function of a DequantizeLinear node: (codes, scale, zero point) to reals."""
    axis, block_size = _layout(node)

    def kernel(codes: Tensor, scale: Tensor, zero: Zero | None = None) -> tuple[Tensor, ...]:
        wide = codes if codes.is_floating_point() else codes.to(torch.float64)
        units = _units(wide, _zero_along(zero, axis, codes, block_size)).to(torch.float32)
        return (units * _along(scale, axis, codes, block_size),)

    return kernel


def group_inputs(group: LinearGroup, *, real: bool) -> tuple[ir.Value | None, ...]:
    """Return what a group's kernel takes: x, w, bias, their and the result's scales, zero points.

    Args:
        group: The integer linear op.
        real: Leave out the parameters of the result.
    """
    x, w, y = group.x.node, group.w.node, None if group.y is None or real else group.y.node
    bias = None if group.bias is None else group.bias.node.inputs[0]
    scales = [x.inputs[1], w.inputs[1], None if y is None else y.inputs[1]]
    zeros = [None if node is None or len(node.inputs) < 3 else node.inputs[2] for node in (x, w, y)]
    return (x.inputs[0], w.inputs[0], bias, *scales, *zeros)


def group_kernel(group: LinearGroup, *, real: bool, exact: bool) -> Kernel:
    """Return the function of an integer linear group; its arguments are `group_inputs`.

    Args:
        group: The integer linear op.
        real: Give `float32(acc) * float32(sx * sw)`, the value before it is quantized.
        exact: Sum in float64 where the constant weights do not prove that float32 is exact.
    """
    products = _product_bound(group)
    wide = torch.float64 if exact and products >= FLOAT32_EXACT else torch.float32
    bias_max, near = _bias_bound(group)
    inside = not exact or (near and products + bias_max < FLOAT32_EXACT)  # the op adds the bias
    bias_dtype = torch.float32 if near or not exact else torch.float64
    product = _product(group)
    shape = (-1, *(1,) * _spatial(group)) if group.node.op_type == "Conv" else (-1,)
    w_axis = group.w.qparams.axis or 0
    qtype = None if group.y is None or real else group.y.qparams.qtype

    def kernel(
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        scale_x: Tensor,
        scale_w: Tensor,
        scale_y: Tensor | None,
        zero_x: Zero | None,
        zero_w: Zero | None,
        zero_y: Zero | None,
    ) -> tuple[Tensor, ...]:
        x = _units(x, _zero_along(zero_x, 0, x))
        w = _units(w, _zero_along(zero_w, w_axis, w))
        if wide != torch.float32:
            x, w = x.to(wide), w.to(wide)
        if bias is not None and not bias.is_floating_point():
            bias = bias.to(bias_dtype)
        if bias is not None and inside:
            acc = product(x, w, bias.to(wide))
        else:
            acc = product(x, w, None)
            if bias is not None:
                acc = acc + (bias if bias.ndim > 1 else bias.reshape(shape))
        acc = acc.to(torch.float32)
        scale = (scale_x * scale_w).reshape(shape if scale_w.numel() > 1 else ())
        if qtype is None or scale_y is None:
            return (acc * scale,)
        multiplier = scale / scale_y.reshape(())
        zero = 0.0 if zero_y is None else zero_y
        if isinstance(zero, float):
            found = _limited(lambda low, high: requantize(acc, multiplier, low, high), zero, qtype)
            return (found,)
        return (saturate(round_half_even(acc * multiplier) + zero, qtype.qmin, qtype.qmax),)

    return kernel


def _spatial(group: LinearGroup) -> int:
    shape = group.w.codes.shape
    assert shape is not None, "a Conv's weight has a shape"
    return len(shape) - 2


def _product(group: LinearGroup) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the function of units and a bias that makes accumulators."""
    node = group.node
    if node.op_type == "Conv":
        auto_pad: AutoPad = string_attribute(node, "auto_pad", "NOTSET")  # type: ignore[assignment]  # windows() reads unknown text as ONNX's default
        pads, strides, dilations = (
            ints_attribute(node, name, ()) for name in ("pads", "strides", "dilations")
        )
        groups = int_attribute(node, "group", 1)
        return lambda x, w, bias: conv(
            x, w, bias, auto_pad=auto_pad, dilations=dilations, group=groups, pads=pads,
            strides=strides,
        )  # fmt: skip
    if node.op_type == "Mul":
        return lambda x, w, bias: x * w
    if node.op_type == "Gemm" and int_attribute(node, "transB", 0):
        return _linear
    return lambda x, w, bias: torch.matmul(x, w) if bias is None else torch.matmul(x, w) + bias


def _linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None and bias.ndim > 1:
        return torch.matmul(x, w.T) + bias
    if bias is not None and bias.numel() != len(w):
        bias = bias.expand(len(w))
    return torch.nn.functional.linear(x, w, bias)


def _largest(qparams: QParams) -> int:
    """Return the largest `|code - zero_point|`."""
    zero = qparams.zero_point.astype(np.int64)
    return int(max(np.max(zero - qparams.qtype.qmin), np.max(qparams.qtype.qmax - zero)))


def _product_bound(group: LinearGroup) -> int:
    """Return the largest magnitude of a partial sum of products, from the constant weights."""
    x_max, w_max = _largest(group.x.qparams), _largest(group.w.qparams)
    if group.node.op_type == "Mul":
        return x_max * w_max
    codes, axis = group.w.array, group.w.qparams.axis
    if codes is None:
        shape = group.x.codes.shape
        length = None if shape is None else shape[-1]
        return length * x_max * w_max if isinstance(length, int) else FLOAT32_EXACT
    zero = group.w.qparams.zero_point
    places = [1] * codes.ndim
    if axis is not None:
        places[axis] = -1
    units = np.abs(codes.astype(np.int64) - zero.reshape(places))
    if group.node.op_type == "Conv":
        summed = tuple(range(1, codes.ndim))
    else:
        transposed = group.node.op_type == "Gemm" and int_attribute(group.node, "transB", 0)
        summed = (codes.ndim - 1,) if transposed or codes.ndim == 1 else (codes.ndim - 2,)
    return int(units.sum(axis=summed).max(initial=0)) * x_max


def _bias_bound(group: LinearGroup) -> tuple[int, bool]:
    """Return the largest magnitude of a bias, and whether float32 holds all of them."""
    codes = None if group.bias is None else group.bias.array
    if codes is None:
        return 0, True
    near = np.array_equal(codes.astype(np.float32).astype(np.int64), codes)
    return int(np.abs(codes.astype(np.int64)).max(initial=0)), near
