"""The rows of an image as operands of a matrix product: a convolution that copies little.

A convolution as one product copies each element of the input once per element of the window. Held
as `(rows, the window's other axes, C, N, the output's other axes)`, the rows that a window reaches
follow each other in memory, and are the matrix of one output row as they lie: only the other axes
are copied out. All samples are side by side in one row, which makes it long.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgeq.numerics.scratch import scratch
from edgeq.numerics.windows import Windows

Array = NDArray[Any]
_Index = tuple[Any, ...]
_ALL = slice(None)
# Below this many columns a product does not reach its speed (measured).
COLUMNS = 32


def suits(layout: Windows, samples: int) -> bool:
    """Whether the windows reach rows that follow each other, and the rows are long enough."""
    close = layout.dilations[0] == 1 or layout.kernel[0] == 1
    wide = samples * int(np.prod(layout.output[1:])) >= COLUMNS
    return close and wide and max(layout.kernel) > 1


@dataclass(frozen=True)
class _Plan:
    """Which part of the input goes where, for some output rows.

    Attributes:
        count: How many rows of the padded input the windows reach.
        taps: How many elements a window has in a row.
        inner: Sizes of the output's other axes.
        margins: What is padding, in `(rows, taps, C, N, *inner)`.
        copies: What is copied there, and from where in `(rows of the input, C, N, *rest)`.
        shifts: What is copied within, as stretches of memory, before the margins are written: rows,
            to which element, from which element, and how far that one reads ahead of it.
    """

    count: int
    taps: int
    inner: tuple[int, ...]
    margins: tuple[_Index, ...]
    copies: tuple[tuple[_Index, _Index], ...]
    shifts: tuple[tuple[slice, int, int, int], ...]


@lru_cache(maxsize=1024)
def _plan(layout: Windows, start: int, stop: int) -> _Plan:
    stride, inner = layout.strides[0], layout.output[1:]
    count = (stop - start - 1) * stride + layout.kernel[0]
    begin = layout.begin[0] - start * stride  # the place of the input's first row
    first, last = max(0, min(count, begin)), max(0, min(count, begin + layout.input[0]))
    rows, source = slice(first, last), slice(first - begin, last - begin)
    margins: list[_Index] = [(cut,) for cut in (slice(0, first), slice(last, count))]
    copies: list[tuple[_Index, _Index]] = []
    shifts: list[tuple[slice, int, int, int]] = []
    base = _unmoved(layout)
    for place, tap in enumerate(product(*map(range, layout.kernel[1:]))):
        inside, seen, origin = [], [], 0
        for axis, k in enumerate(tap, 1):
            low, high, step = _visible(layout, axis, k)
            before = (rows, place, *[_ALL] * (axis + 1))
            margins += [(*before, slice(0, low)), (*before, slice(high, layout.output[axis]))]
            inside.append(slice(low, high))
            origin = k * layout.dilations[axis] - layout.begin[axis]
            seen.append(slice(origin + low * step, max(0, origin + high * step), step))
        if base is not None and place != base and abs(origin) < layout.input[1]:
            shifts.append((rows, place, base, origin))
        else:
            copies.append(((rows, place, _ALL, _ALL, *inside), (source, _ALL, _ALL, *seen)))
    kept = (index for index in margins if first < last or len(index) == 1)
    kept = (index for index in kept if index[-1].start < index[-1].stop)
    taps = len(copies) + len(shifts)
    return _Plan(count, taps, inner, tuple(kept), tuple(copies), tuple(shifts))


def _unmoved(layout: Windows) -> int | None:
    """Return which element of a row of a window sees the input as it is, if the others shift it."""
    if layout.strides[1:] != (1,) or layout.output[1:] != layout.input[1:]:
        return None
    place, rest = divmod(layout.begin[1], layout.dilations[1])
    return None if rest or place >= layout.kernel[1] else place


def _visible(layout: Windows, axis: int, k: int) -> tuple[int, int, int]:
    """Return between which windows their element `k` lies within the input, and the stride."""
    stride, size, output = layout.strides[axis], layout.input[axis], layout.output[axis]
    origin = k * layout.dilations[axis] - layout.begin[axis]
    low = min(output, max(0, -(origin // stride)))
    return low, max(low, min(output, -((origin - size) // stride))), stride


def columns(x: Array, layout: Windows, rows: slice, value: int, dtype: DTypeLike) -> Array:
    """Return the operands of some output rows, `(rows, K * C, N * rest)`; they overlap in memory.

    The elements of the window come first, then the channels: the order of `conv_weights`.

    Args:
        x: `(N, C, *layout.input)`, any type.
        layout: Where the windows lie; `suits` says whether this works.
        rows: Which windows along the first axis.
        value: What padding is; subtracted from everything.
        dtype: Float type of the result. It is scratch memory, valid until this thread calls again.
    """
    plan = _plan(layout, rows.start, rows.stop)
    samples, channels = x.shape[:2]
    held = scratch("rows", (plan.count, plan.taps, channels, samples, *plan.inner), dtype)
    source = x.transpose(2, 1, 0, *range(3, x.ndim))
    for target, seen in plan.copies:
        held[target] = source[seen]
    flat = held.reshape(plan.count, plan.taps, -1)
    for inside, to, base, ahead in plan.shifts:
        late, early, size = max(0, -ahead), max(0, ahead), flat.shape[2]
        flat[inside, to, late : size - early] = flat[inside, base, early : size - late]
    for index in plan.margins:
        held[index] = value
    if value:
        held -= held.dtype.type(value)

    depth, step = layout.kernel[0] * plan.taps * channels, layout.strides[0] * held.strides[0]
    length, item = held.strides[2] // held.itemsize, held.itemsize
    shape = (rows.stop - rows.start, depth, length)
    return np.ndarray(shape, held.dtype, held, strides=(step, length * item, item))
