"""Linear operators, pools, reductions and normalisations, in torch.

On integers held in float32 they are exact while sums stay below 2**24.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgeq.errors import UnsupportedOperatorError
from edgeq.learning.operators_layout import integers
from edgeq.numerics.windows import AutoPad, Windows, windows
from edgeq.operators.pooling import window_counts

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def conv(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """Convolution over 1, 2 or 3 spatial axes."""
    del kernel_shape
    layout = windows(tuple(x.shape[2:]), tuple(w.shape[2:]), strides, dilations, pads, auto_pad)
    padding = layout.begin
    if layout.begin != layout.end:
        x, padding = _padded(x, layout, 0.0), (0,) * len(layout.begin)
    return _CONV[x.ndim - 2](x, w, bias, layout.strides, padding, layout.dilations, group)


def _padded(x: Tensor, layout: Windows, fill: float) -> Tensor:
    """Return `x` with the padding that the windows need."""
    behind = [p - i - b for p, i, b in zip(layout.padded, layout.input, layout.begin, strict=True)]
    pairs = zip(reversed(layout.begin), reversed(behind), strict=True)
    return functional.pad(x, [width for pair in pairs for width in pair], value=fill)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: Literal["NOTSET"] = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    output_padding: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """Transposed convolution."""
    del auto_pad, kernel_shape
    ndim = x.ndim - 2
    ones, zeros = (1,) * ndim, (0,) * ndim
    begin, end = pads[:ndim] or zeros, pads[ndim:] or zeros
    out = _CONV_TRANSPOSE[ndim](
        x, w, bias, strides or ones, zeros, output_padding or zeros, group, dilations or ones
    )
    cut = [slice(b, size - e) for b, e, size in zip(begin, end, out.shape[2:], strict=True)]
    return out[(slice(None), slice(None), *cut)]


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """`alpha * a @ b + beta * c`."""
    out = torch.matmul(a.T if transA else a, b.T if transB else b)
    out = out if alpha == 1.0 else alpha * out
    return out if c is None else out + (c if beta == 1.0 else beta * c)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, with broadcasting."""
    return torch.matmul(a, b)


def matmul_integer(
    a: Tensor, b: Tensor, zero_a: Tensor | None = None, zero_b: Tensor | None = None
) -> Tensor:
    """The product of codes of 8 bits, exact: held in float64 where float32 might round."""
    wide = torch.float32 if a.shape[-1] * 255 * 255 < 2**24 else torch.float64
    a = a if zero_a is None else a - zero_a
    b = b if zero_b is None else b - zero_b
    return torch.matmul(a.to(wide), b.to(wide))


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: Literal[0] = 0,
) -> Tensor:
    """Normalisation by constants."""
    del momentum, training_mode
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def max_pool(
    x: Tensor,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    storage_order: int = 0,
    strides: tuple[int, ...] = (),
) -> Tensor:
    """The largest element of each window."""
    del storage_order
    layout = windows(
        tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode)
    )
    padded = _padded(x, layout, -torch.inf) if layout.needs_padding else x
    pool = _MAX_POOL[x.ndim - 2]
    return pool(padded, layout.kernel, layout.strides, 0, layout.dilations)


def average_pool(
    x: Tensor,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """The sum of each window, divided by how many of its elements count."""
    layout = windows(
        tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode)
    )
    ones = torch.ones((1, 1, *layout.kernel), dtype=x.dtype, device=x.device)
    flat = _padded(x, layout, 0.0).flatten(0, 1).unsqueeze(1)
    sums = _CONV[x.ndim - 2](flat, ones, None, layout.strides, 0, layout.dilations)
    counts = torch.as_tensor(
        window_counts(layout, bool(count_include_pad)), dtype=x.dtype, device=x.device
    )
    return sums.reshape(*x.shape[:2], *layout.output) / counts


def global_average_pool(x: Tensor) -> Tensor:
    """The sum over all spatial axes, then one division."""
    return x.sum(tuple(range(2, x.ndim)), keepdim=True) / x[0, 0].numel()


def global_max_pool(x: Tensor) -> Tensor:
    """The largest element over all spatial axes."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def _axes(x: Tensor, axes: Tensor | None, noop: int) -> tuple[int, ...]:
    if axes is not None and axes.numel():
        return tuple(a % x.ndim for a in integers(axes))
    return () if noop else tuple(range(x.ndim))


def reduce_sum(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The sum."""
    over = _axes(x, axes, noop_with_empty_axes)
    return x.sum(over, keepdim=bool(keepdims)) if over else x


def reduce_mean(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The sum divided by the number of elements, once."""
    over = _axes(x, axes, noop_with_empty_axes)
    if not over:
        return x
    count = 1
    for axis in over:
        count *= x.shape[axis]
    return x.sum(over, keepdim=bool(keepdims)) / count


def reduce_max(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The largest element."""
    over = _axes(x, axes, noop_with_empty_axes)
    return x.amax(over, keepdim=bool(keepdims)) if over else x


def reduce_min(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The smallest element."""
    over = _axes(x, axes, noop_with_empty_axes)
    return x.amin(over, keepdim=bool(keepdims)) if over else x


def reduce_sum_square(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The sum of squares."""
    return reduce_sum(x * x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """The place of the largest element, the first of equals."""
    if select_last_index:
        raise UnsupportedOperatorError("ArgMax with select_last_index cannot be learned through")
    return torch.argmax(x, axis, keepdim=bool(keepdims))


def cumulative_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sums along one axis."""
    along = int(axis)
    x = x.flip(along) if reverse else x
    out = torch.cumsum(x, along)
    out = out - x if exclusive else out
    return out.flip(along) if reverse else out


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """`exp(x) / sum(exp(x))` along one axis."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """The logarithm of the softmax."""
    return torch.log_softmax(x, axis)


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Normalise over the axes from `axis` on."""
    del stash_type
    sizes = tuple(x.shape[axis % x.ndim :])
    normal = functional.layer_norm(x, sizes, None, None, epsilon) * scale
    return normal if bias is None else normal + bias


def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    """Normalise each channel of each sample: `x` is (N, C, ...)."""
    return functional.group_norm(x, x.shape[1], scale, bias, epsilon)


def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Normalise each group of channels of each sample: `x` is (N, C, ...), `scale` is (C,)."""
    del stash_type
    return functional.group_norm(x, num_groups, scale, bias, epsilon)
