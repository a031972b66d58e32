"""Conv, ConvTranspose, Gemm and MatMul on floats, and BatchNormalization.

On integers held in float32 they are exact while sums stay below 2**24. Quantized groups do not come
here: the simulator gives them to `edgeq.numerics.linear` with their codes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import ModelError, UnsupportedOperatorError
from edgeq.numerics import linear
from edgeq.numerics.windows import AutoPad, windows

Array = NDArray[Any]


def conv(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Array:
    """Convolution over 1, 2 or 3 spatial axes; the bias is added last."""
    if kernel_shape and kernel_shape != w.shape[2:]:
        raise ModelError(f"kernel_shape is {kernel_shape}, the weight's is {w.shape[2:]}")
    layout = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    out = linear.conv(x, w, layout, group)
    if bias is not None:
        out += bias.reshape(-1, *(1,) * (x.ndim - 2))
    return out


def conv_transpose(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    output_padding: tuple[int, ...] = (),
    output_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Array:
    """Transposed convolution; `output_shape`, if given, decides the padding."""
    if kernel_shape and kernel_shape != w.shape[2:]:
        raise ModelError(f"kernel_shape is {kernel_shape}, the weight's is {w.shape[2:]}")
    ndim = x.ndim - 2
    strides, dilations = strides or (1,) * ndim, dilations or (1,) * ndim
    extra = output_padding or (0,) * ndim
    full = [
        s * (i - 1) + p + (k - 1) * d + 1
        for s, i, p, k, d in zip(strides, x.shape[2:], extra, w.shape[2:], dilations, strict=True)
    ]
    output: tuple[int, ...]
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        same = tuple(i * s for i, s in zip(x.shape[2:], strides, strict=True))
        output = tuple(output_shape)[-ndim:] or same
        missing = [max(0, f - o) for f, o in zip(full, output, strict=True)]
        less = tuple(m // 2 for m in missing)
        more = tuple(m - m // 2 for m in missing)
        begin = less if auto_pad == "SAME_UPPER" else more
        if auto_pad == "NOTSET" and pads:
            raise UnsupportedOperatorError("pads and output_shape at the same time")
    else:
        ends = pads if auto_pad == "NOTSET" and pads else (0,) * (2 * ndim)
        begin = tuple(ends[:ndim])
        output = tuple(f - b - e for f, b, e in zip(full, begin, ends[ndim:], strict=True))
    out = linear.conv_transpose(x, w, strides, dilations, begin, output, group)
    if bias is not None:
        out += bias.reshape(-1, *(1,) * ndim)
    return out


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """`alpha * a @ b + beta * c`."""
    out = np.matmul(a.T if transA else a, b.T if transB else b)
    if alpha != 1.0:
        out = out * out.dtype.type(alpha)
    if c is not None:
        out = out + (c if beta == 1.0 else c.dtype.type(beta) * c)
    return np.asarray(out)


def matmul(a: Array, b: Array) -> Array:
    """`a @ b`, batched."""
    return np.asarray(np.matmul(a, b))


def matmul_integer(
    a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
) -> Array:
    """`(a - a_zero_point) @ (b - b_zero_point)`: codes in, int32 out, batched.

    The zero points have one element.

    Raises:
        OverflowError: A sum may leave int32.
    """
    units = [_units(a, a_zero_point), _units(b, b_zero_point)]
    reach = [max(abs(int(u.min(initial=0))), abs(int(u.max(initial=0)))) for u in units]
    kind = linear.exact_dtype(a.shape[-1] * reach[0] * reach[1])
    return np.matmul(*(u.astype(kind) for u in units)).astype(np.int32)


def _units(codes: Array, zero_point: Array | None) -> Array:
    zero = 0 if zero_point is None else int(zero_point.reshape(()))
    return codes.astype(np.int16) - np.int16(zero)


def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Array:
    """`x * k + (bias - mean * k)` with `k = scale / sqrt(variance + epsilon)`, as at inference."""
    del momentum
    if training_mode:
        raise UnsupportedOperatorError("training_mode = 1")
    shape = (-1, *(1,) * (x.ndim - 2))
    k = scale * (scale.dtype.type(1) / np.sqrt(variance + variance.dtype.type(epsilon)))
    return np.asarray(x * k.reshape(shape) + (bias - mean * k).reshape(shape))
