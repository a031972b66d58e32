"""Where the pixels of a resized image come from: coordinates, nearest pixels, linear weights.

All coordinates are float32, in the order that ONNX Runtime computes them: a pixel that lies on a
tie is picked by the last bit.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Coordinates = Literal[
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"
]
Nearest = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def source_coordinates(mode: Coordinates, size: int, output: int, scale: float) -> Float32:
    """Return, for each of `output` pixels, its place on an axis of `size` pixels.

    Args:
        mode: ONNX's `coordinate_transformation_mode`.
        size: Length of the input axis.
        output: Length of the output axis.
        scale: Enlargement, float32; not exactly `output / size` when the user gave it.
    """
    x, one, half = np.arange(output, dtype=np.float32), np.float32(1), np.float32(0.5)
    factor = np.float32(scale)
    if factor == one:
        return x
    if mode == "asymmetric":
        return x / factor
    if mode == "align_corners":
        if output == 1:
            return np.zeros(1, np.float32)
        return x * np.float32(size - 1) / np.float32(output - 1)
    if mode == "pytorch_half_pixel" and output == 1:
        return np.zeros(1, np.float32)
    if mode == "half_pixel_symmetric":
        adjustment = np.float32(output) / (factor * np.float32(size))
        center = np.float32(size) / np.float32(2)
        offset = center * (one - adjustment)
        return offset + (x + half) / factor - half
    return (x + half) / factor - half


def nearest_pixels(places: Float32, mode: Nearest, size: int) -> Array:
    """Return the index of the nearest pixel for each place."""
    if mode == "floor":
        near = np.floor(places)
    elif mode == "ceil":
        near = np.ceil(places)
    elif mode == "round_prefer_ceil":
        near = np.floor(places + np.float32(0.5))
    else:
        near = np.ceil(places - np.float32(0.5))
    return np.clip(near.astype(np.int64), 0, size - 1)


def linear_pixels(
    places: Float32, size: int
) -> tuple[tuple[Array, Float32], tuple[Array, Float32]]:
    """Return the two neighbours of each place: their indices and weights."""
    inside = np.clip(places, np.float32(0), np.float32(size - 1))
    left = np.minimum(inside.astype(np.int64), size - 1)
    right = np.minimum(left + 1, size - 1)
    to_left = np.abs(inside - left.astype(np.float32))
    to_right = np.abs(inside - right.astype(np.float32))
    # At the far edge both neighbours are the same pixel: half of it, twice.
    to_left[left == right] = 0.5
    to_right[left == right] = 0.5
    return (left, to_right), (right, to_left)


def interpolate(
    x: Array, axes: Sequence[int], pixels: Sequence[tuple[tuple[Array, Float32], ...]]
) -> Array:
    """Return the weighted sum of the neighbours along `axes`, corners in row-major order."""
    out: Array | None = None
    for corner in product(*pixels):
        picked, weight = x, np.ones((), np.float32)
        for axis, (index, share) in zip(axes, corner, strict=True):
            picked = np.take(picked, index, axis=axis)
            shape = [1] * x.ndim
            shape[axis] = -1
            weight = weight * share.reshape(shape)
        term = weight * picked
        out = term if out is None else np.add(out, term, out=out)
    assert out is not None
    return out
