"""Exact integer accumulators of Conv, Gemm and MatMul, computed by float BLAS where it is exact.

A float sum of integers is exact, in any order, while every partial sum stays below 2**24 (float32)
or 2**53 (float64). The bound `sum |w| * max |x|` of each output channel covers all partial sums, so
it proves, from the weights alone, which dtype a node may use. numpy's own integer matmul is
a hundred times slower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics import rows as by_rows
from edgeq.numerics.parallel import GRAIN, blocks, for_each, parts
from edgeq.numerics.scratch import scratch
from edgeq.numerics.windows import Windows, at, deal, planes

Array = NDArray[Any]
Finish = Callable[[slice, slice, slice, Array], None]
_Done = Callable[[slice, slice, Array], None]
FLOAT32_EXACT = 2**24
INT32_MAX = 2**31 - 1


def product_bound(w: Array, x_max: int, channel_axis: int = 0) -> Array:
    """Return, for each output channel, the largest magnitude of any (partial) sum of products.

    Args:
        w: Integer weights, zero point subtracted.
        x_max: Largest `|x - zero_point|` of the other operand.
        channel_axis: The axis of `w` that counts output channels; all others are summed over.

    >>> product_bound(np.array([[-128, 3]]), 255)
    array([33405])
    """
    axes = tuple(a for a in range(w.ndim) if a != channel_axis % w.ndim)
    return np.asarray(np.abs(w.astype(np.int64)).sum(axis=axes) * x_max)


def exact_dtype(products: int, bias: int = 0) -> type[np.float32] | type[np.float64]:
    """Return the fastest float dtype that sums the products exactly.

    The bias is not part of the choice: `add_bias` rounds `products + bias` once, as the definition
    `float32(acc)` does, however large the bias is.

    Args:
        products: Largest magnitude of a sum of products.
        bias: Largest magnitude of the accumulator beyond that.

    >>> exact_dtype(2**24 - 1).__name__, exact_dtype(2**24).__name__
    ('float32', 'float64')

    Raises:
        OverflowError: The accumulator may leave int32.
    """
    if products + bias > INT32_MAX:
        raise OverflowError(f"an accumulator may reach {products + bias}, beyond int32")
    return np.float32 if products < FLOAT32_EXACT else np.float64


@dataclass(frozen=True, eq=False)
class Bias:
    """An integer bias per output channel, prepared to be added to float accumulators.

    A float32 sum of two float32 numbers is their exact sum, rounded once. So a bias that float32
    can represent is added in float32; the channels of any other go through float64.

    Attributes:
        values: int64, one per channel.
        near: The values in the dtype of the accumulators, 0 where that would round them.
        far: The channels where it would.
    """

    values: NDArray[np.int64]
    near: Array
    far: NDArray[np.bool_]

    @classmethod
    def of(cls, bias: Array, dtype: type[np.floating[Any]]) -> "Bias":
        """Prepare `bias` for accumulators of `dtype`."""
        values = bias.astype(np.int64).reshape(-1)
        near = values.astype(dtype)
        far = near.astype(np.int64) != values
        near[far] = 0
        return cls(values, near, far)

    def add_to(self, acc: Array, channels: slice = slice(None)) -> None:
        """Add to `acc` `(channels, ...)`, in place; the slice says which channels it has."""
        shape = (-1,) + (1,) * (acc.ndim - 1)
        acc += self.near[channels].reshape(shape)
        (far,) = np.nonzero(self.far[channels])
        if far.size:
            acc[far] = acc[far].astype(np.float64) + self.values[channels][far].reshape(shape)


def conv_weights(w: Array, groups: int) -> Array:
    """Return Conv weights `(O, C/groups, *kernel)` as matrices `(groups, O/groups, K*C/groups)`.

    The elements of the kernel come first, then the channels: the order of `conv_blocks`'s columns.
    """
    matrices = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1).swapaxes(2, 3)
    return np.ascontiguousarray(matrices.reshape(groups, w.shape[0] // groups, -1))


def conv_blocks(
    x: Array, zero_point: int, matrices: Array, layout: Windows, finish: Finish
) -> None:
    """Convolve, block by block, and hand each block of accumulators to `finish`, in threads.

    Args:
        x: `(N, C, *layout.input)`: codes, or floats already in the dtype of `matrices`.
        zero_point: Subtracted from `x`; also what padding is, so that it counts as 0.
        matrices: The weights, from `conv_weights`, in the dtype that carries the sums.
        layout: Where the windows lie.
        finish: Called with slices of samples, of output channels and along the first spatial
            axis, and the accumulators `(channels, samples, rows, *rest)`, in any order in memory,
            which it may destroy but not keep; spatial axes may be longer than the output: what
            lies beyond is meaningless.
    """
    groups, per_group, depth = matrices.shape
    target = planes(layout)
    depthwise = depth == len(target.taps) and groups > 1 and per_group <= 4
    width = max(x.shape[1], groups * per_group) * target.area
    # Depthwise blocks are some channels of several samples: rows of memory as long as possible.
    samples = parts(len(x), GRAIN // 8 if depthwise else width)

    def one(index: int) -> None:
        part = x[samples[index]]

        def done(channels: slice, rows: slice, acc: Array) -> None:
            finish(samples[index], channels, rows, acc)

        def flat(channels: slice, rows: slice, acc: Array) -> None:
            done(channels, rows, acc.reshape(len(acc), len(part), -1, *target.sizes[1:]))

        if not depthwise and by_rows.suits(layout, len(part)):
            _row_product(part, zero_point, matrices, layout, done)
            return
        work = _depthwise if depthwise else _product
        work(deal(part, layout, zero_point), zero_point, matrices, layout, flat)

    for_each(len(samples), one, worthwhile=len(x) * width > GRAIN // 8)


def _units(codes: Array, zero_point: int, dtype: np.dtype[Any]) -> Array:
    """Return codes `(..., C, N, *spatial)` as units, their last axes one: `(..., C, N * area)`."""
    units = scratch("units", codes.shape, dtype)
    np.copyto(units, codes)
    if zero_point:
        units -= dtype.type(zero_point)
    return units


def _product(dealt: Array, zero_point: int, matrices: Array, layout: Windows, done: _Done) -> None:
    """Windows as columns of a matrix; of a pointwise convolution the input itself."""
    groups, per_group, depth = matrices.shape
    target = planes(layout)
    samples, channels = dealt.shape[2], dealt.shape[1] // groups
    everything = slice(0, layout.output[0])
    width = max(per_group, channels) * target.row
    # Stretches run on from one sample to the next, so only a single one is cut into rows.
    cuts = blocks(layout.output[0], width) if samples == 1 else [everything]
    for group in range(groups):
        members = slice(group * channels, (group + 1) * channels)
        outputs = slice(group * per_group, (group + 1) * per_group)
        for rows in cuts:
            if target.pointwise:
                piece = dealt[0, members, :, rows]
                length = valid = samples * (rows.stop - rows.start) * target.row
                columns = _units(piece, zero_point, matrices.dtype).reshape(depth, length)
            else:
                reach = rows.stop + target.sizes[0] - layout.output[0]
                piece = dealt[:, members, :, rows.start : reach]
                units = _units(piece, zero_point, matrices.dtype)
                units = units.reshape(len(dealt), channels, -1)
                valid = units.shape[2] - target.reach
                length = units.shape[2]
                columns = scratch("columns", (len(target.taps), channels, valid), matrices.dtype)
                for tap, (plane, shift) in enumerate(target.taps):
                    columns[tap] = units[plane, :, shift : shift + valid]
                columns = columns.reshape(depth, valid)
            acc = scratch("acc", (per_group, length), matrices.dtype)
            np.matmul(matrices[group], columns, out=acc[:, :valid])
            acc[:, valid:] = 0
            done(outputs, rows, acc)


def _row_product(x: Array, zero_point: int, matrices: Array, layout: Windows, done: _Done) -> None:
    """One matrix product per output row, of operands that overlap in memory."""
    groups, per_group, depth = matrices.shape
    channels, length = x.shape[1] // groups, len(x) * int(np.prod(layout.output[1:]))
    # Few pieces, even if beyond a cache: each copies again the rows that it shares with the last.
    width = depth // layout.kernel[0] * layout.strides[0] * length // 4
    for group in range(groups):
        members = x[:, group * channels : (group + 1) * channels]
        outputs = slice(group * per_group, (group + 1) * per_group)
        for rows in blocks(layout.output[0], width):
            columns = by_rows.columns(members, layout, rows, zero_point, matrices.dtype)
            acc = scratch("acc", (len(columns), per_group, length), matrices.dtype)
            np.matmul(matrices[group], columns, out=acc)
            acc = acc.reshape(*acc.shape[:2], len(x), *layout.output[1:])
            done(outputs, rows, np.moveaxis(acc, 0, 2))


def _depthwise(
    dealt: Array, zero_point: int, matrices: Array, layout: Windows, done: _Done
) -> None:
    """One input channel per group: shifted multiply-add, some channels at a time."""
    groups, per_group, _ = matrices.shape
    target = planes(layout)
    length = dealt.shape[2] * target.area
    valid = length - target.reach
    for channels in blocks(groups, length):
        x = _units(dealt[:, channels], zero_point, matrices.dtype)
        x = x.reshape(len(dealt), -1, length)
        product = scratch("product", (x.shape[1], valid), matrices.dtype)
        for multiple in range(per_group):
            w = matrices[channels, multiple, :, None]
            acc = scratch("acc", x.shape[1:], matrices.dtype)
            acc[:, valid:] = 0
            sums = acc[:, :valid]
            for tap, (plane, shift) in enumerate(target.taps):
                stretch = x[plane, :, shift : shift + valid]
                np.multiply(stretch, w[:, tap], out=product if tap else sums)
                if tap:
                    sums += product
            first, last = channels.start * per_group + multiple, channels.stop * per_group
            done(slice(first, last, per_group), slice(0, layout.output[0]), acc)


def conv(x: Array, w: Array, layout: Windows, groups: int = 1) -> Array:
    """Return the convolution of `x` `(N, C, *spatial)` and `w` `(O, C/groups, *kernel)`.

    In the dtype of `x`, which must be float and that of `w`.
    """
    out = np.empty((len(x), len(w), *layout.output), x.dtype)

    def store(samples: slice, channels: slice, rows: slice, acc: Array) -> None:
        put(out, samples, channels, rows, acc)

    conv_blocks(x, 0, conv_weights(w, groups), layout, store)
    return out


def put(out: Array, samples: slice, channels: slice, rows: slice, block: Array) -> None:
    """Store a block of `conv_blocks` at its place in `out` `(N, O, *output)`, cast to its dtype."""
    inside = tuple(slice(0, size) for size in (rows.stop - rows.start, *out.shape[3:]))
    source = at(block, inside).swapaxes(0, 1)
    np.copyto(out[samples, channels, rows], source, casting="unsafe")


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
        visited = at(out, target)
        visited += columns[(slice(None), slice(None), *index)]
    inside = tuple(slice(b, b + o) for b, o in zip(begin, output, strict=True))
    return np.ascontiguousarray(at(out, inside))
