"""Exact integer accumulators of Conv, Gemm and MatMul, computed by float BLAS where it is exact.

A float sum of integers is exact, in any order, while every partial sum stays below 2**24 (float32)
or 2**53 (float64). The bound `sum |w| * max |x| + |bias|` of each output channel covers all partial
sums, so it proves, from the weights alone, which dtype a node may use. numpy's own integer matmul is
a hundred times slower.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.parallel import for_each
from edgeq.numerics.windows import Windows, pad, view

Array = NDArray[Any]
FLOAT32_EXACT = 2**24
FLOAT64_EXACT = 2**53
INT32_MAX = 2**31 - 1
_BLOCK = 1 << 16  # elements of a depthwise block: 256 kB of float32, half of a usual L2 cache


def accumulator_bound(
    w: Array, x_max: int, bias: Array | None = None, *, channel_axis: int = 0
) -> int:
    """Return the largest magnitude that any (partial) accumulator can reach.

    Args:
        w: Integer weights, zero point subtracted.
        x_max: Largest `|x - zero_point|` of the other operand.
        bias: Integers, one per channel, or broadcastable to that.
        channel_axis: The axis of `w` that counts output channels; all others are summed over.

    >>> accumulator_bound(np.array([[-128, 3]]), 255, np.array([7]))
    33412
    """
    axes = tuple(a for a in range(w.ndim) if a != channel_axis % w.ndim)
    sums = np.abs(w.astype(np.int64)).sum(axis=axes) * x_max
    if bias is not None:
        sums = sums + np.abs(bias.astype(np.int64))
    return int(sums.max(initial=0))


def exact_dtype(bound: int) -> type[np.float32] | type[np.float64]:
    """Return the fastest float dtype whose sums below `bound` are exact.

    >>> exact_dtype(2**24 - 1).__name__, exact_dtype(2**24).__name__
    ('float32', 'float64')

    Raises:
        OverflowError: The accumulator may leave int32.
    """
    if bound > INT32_MAX:
        raise OverflowError(f"an accumulator may reach {bound}, beyond int32")
    return np.float32 if bound < FLOAT32_EXACT else np.float64


def conv_weights(w: Array, groups: int) -> Array:
    """Return Conv weights `(O, C/groups, *kernel)` as matrices `(groups, O/groups, C/groups*K)`."""
    return np.ascontiguousarray(w.reshape(groups, w.shape[0] // groups, -1))


def conv_sample(x: Array, matrices: Array, layout: Windows) -> Array:
    """Convolve one sample, in its dtype.

    Args:
        x: `(C, *layout.input)` float, padding outside is 0.
        matrices: The weights, from `conv_weights`, same dtype.
        layout: Where the windows lie.

    Returns:
        `(O, P)`, `P` the number of windows.
    """
    groups, per_group, depth = matrices.shape
    points = int(np.prod(layout.output))
    taps = int(np.prod(layout.kernel))
    if depth == taps and groups > 1 and per_group <= 4:
        return _depthwise_sample(pad(x, layout), matrices, layout)
    if taps == 1 and set(layout.strides) <= {1} and not layout.needs_padding:
        columns = x.reshape(groups, depth, points)
    else:
        columns = view(pad(x, layout), layout).reshape(groups, depth, points)
    return np.matmul(matrices, columns).reshape(groups * per_group, points)


def _depthwise_sample(padded: Array, matrices: Array, layout: Windows) -> Array:
    """One input channel per group: shifted multiply-add, a few channels at a time."""
    groups, per_group, _ = matrices.shape
    out = np.empty((groups * per_group, *layout.output), padded.dtype)
    offsets = layout.offsets()
    ndim = len(layout.output)
    size = max(1, int(np.prod(layout.output)))
    step = max(1, _BLOCK // (2 * size))
    for multiple in range(per_group):
        for start in range(0, groups, step):
            x = padded[start : start + step]
            w = matrices[start : start + step, multiple].reshape(len(x), -1, *(1,) * ndim)
            acc = np.multiply(x[(slice(None), *offsets[0])], w[:, 0])
            product = np.empty_like(acc)
            for index, offset in enumerate(offsets[1:], 1):
                np.multiply(x[(slice(None), *offset)], w[:, index], out=product)
                acc += product
            rows = slice(start * per_group + multiple, (start + len(x)) * per_group, per_group)
            out[rows] = acc
    return out.reshape(groups * per_group, size)


def conv(x: Array, w: Array, layout: Windows, groups: int = 1) -> Array:
    """Return the convolution of `x` `(N, C, *spatial)` and `w` `(O, C/groups, *kernel)`.

    In the dtype of `x`, which must be float and that of `w`.
    """
    matrices = conv_weights(w, groups)
    out = np.empty((len(x), len(w), int(np.prod(layout.output))), x.dtype)

    def one(n: int) -> None:
        out[n] = conv_sample(x[n], matrices, layout)

    for_each(len(x), one, worthwhile=out.size > 1 << 14)
    return out.reshape(len(x), len(w), *layout.output)


def conv_transpose(
    x: Array,
    w: Array,
    strides: Sequence[int],
    dilations: Sequence[int],
    begin: Sequence[int],
    output: Sequence[int],
    groups: int = 1,
) -> Array:
    """Return the transposed convolution, in the dtype of `x`.

    Args:
        x: `(N, C, *spatial)`.
        w: `(C, O/groups, *kernel)`.
        strides: One per axis.
        dilations: One per axis.
        begin: How many elements are cut in front.
        output: Spatial sizes of the result.
        groups: Groups of channels.
    """
    kernel, spatial = w.shape[2:], x.shape[2:]
    per_group = w.shape[1]
    columns = np.matmul(
        w.reshape(groups, w.shape[0] // groups, -1).swapaxes(1, 2),
        x.reshape(len(x), groups, w.shape[0] // groups, -1),
    ).reshape(len(x), groups * per_group, *kernel, *spatial)
    whole = [
        max((i - 1) * s + (k - 1) * d + 1, b + o)
        for i, s, k, d, b, o in zip(spatial, strides, kernel, dilations, begin, output, strict=True)
    ]
    out = np.zeros((len(x), groups * per_group, *whole), x.dtype)
    for index in np.ndindex(*kernel):
        target = tuple(
            slice(k * d, k * d + (i - 1) * s + 1, s)
            for k, d, i, s in zip(index, dilations, spatial, strides, strict=True)
        )
        out[(..., *target)] += columns[(slice(None), slice(None), *index)]
    inside = tuple(slice(b, b + o) for b, o in zip(begin, output, strict=True))
    return np.ascontiguousarray(out[(..., *inside)])
