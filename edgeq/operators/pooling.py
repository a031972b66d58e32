"""Pools: windows reduced element by element, row-major; a mean is one sum and one division."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.windows import AutoPad, Windows, at, pad, windows

Array = NDArray[Any]


def max_pool(
    x: Array,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    storage_order: int = 0,
    strides: tuple[int, ...] = (),
) -> Array:
    """The largest element of each window; `storage_order` concerns the indices only."""
    del storage_order
    layout = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = pad(x, layout, lowest)
    first, *others = layout.offsets()
    out = at(padded, first).copy()
    for offset in others:
        np.maximum(out, at(padded, offset), out=out)
    return out


def average_pool(
    x: Array,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Array:
    """The sum of each window, divided by how many of its elements count."""
    layout = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    padded = pad(x, layout)
    first, *others = layout.offsets()
    out = at(padded, first).copy()
    for offset in others:
        out += at(padded, offset)
    out /= window_counts(layout, bool(count_include_pad)).astype(x.dtype)
    return out


def window_counts(layout: Windows, include_pad: bool) -> Array:
    """Return how many elements of each window count: padding that the user gave, if included.

    What a ceiled window needs beyond that padding never counts.
    """
    counts = np.ones((), np.int64)
    for k, s, d, b, e, size, out in zip(
        layout.kernel,
        layout.strides,
        layout.dilations,
        layout.begin,
        layout.end,
        layout.input,
        layout.output,
        strict=True,
    ):
        places = np.arange(out)[:, None] * s + np.arange(k) * d - b
        low, high = (-b, size + e) if include_pad else (0, size)
        inside = ((places >= low) & (places < high)).sum(axis=1)
        counts = np.multiply.outer(counts, inside)
    return counts


def global_average_pool(x: Array) -> Array:
    """The sum over all spatial axes, then one division."""
    axes = tuple(range(2, x.ndim))
    count = int(np.prod(x.shape[2:]))
    out: Array = np.add.reduce(x, axis=axes, keepdims=True) / x.dtype.type(count)
    return out


def global_max_pool(x: Array) -> Array:
    """The largest element over all spatial axes."""
    out: Array = np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)
    return out
