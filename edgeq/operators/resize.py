"""Resize, nearest and linear, and the deprecated Upsample."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import ModelError, UnsupportedOperatorError
from edgeq.numerics.resize import (
    Coordinates,
    Nearest,
    interpolate,
    linear_pixels,
    nearest_pixels,
    source_coordinates,
)

Array = NDArray[Any]


def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] = (),
    coordinate_transformation_mode: Coordinates = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: Literal["stretch"] = "stretch",
    mode: Literal["nearest", "linear"] = "nearest",
    nearest_mode: Nearest = "round_prefer_floor",
) -> Array:
    """`x` with other sizes; `roi`, cubic and extrapolation settings concern refused modes only."""
    del roi, cubic_coeff_a, extrapolation_value, keep_aspect_ratio_policy
    if antialias or exclude_outside:
        raise UnsupportedOperatorError("antialias and exclude_outside must be 0")
    given = [a % x.ndim for a in axes] or list(range(x.ndim))
    factors, targets = [1.0] * x.ndim, list(x.shape)
    if scales is not None and scales.size:
        for axis, scale in zip(given, scales, strict=True):
            factors[axis] = float(scale)
            targets[axis] = int(np.floor(np.float32(x.shape[axis]) * np.float32(scale)))
    elif sizes is not None and sizes.size:
        for axis, size in zip(given, sizes, strict=True):
            targets[axis] = int(size)
            factors[axis] = float(np.float32(size) / np.float32(x.shape[axis]))
    else:
        raise ModelError("Resize has neither scales nor sizes")
    changed = [a for a in range(x.ndim) if factors[a] != 1.0 or targets[a] != x.shape[a]]
    if mode == "linear" and x.ndim == 4 and changed and set(changed) <= {2, 3}:
        changed = [2, 3]  # an image is interpolated along both axes even if one keeps its size
    places = {
        a: source_coordinates(coordinate_transformation_mode, x.shape[a], targets[a], factors[a])
        for a in changed
    }
    if mode == "nearest":
        for a in changed:
            x = np.take(x, nearest_pixels(places[a], nearest_mode, x.shape[a]), axis=a)
        return x
    if not changed:
        return x
    if x.dtype.kind != "f":
        raise UnsupportedOperatorError(f"linear interpolation of {x.dtype}")
    return interpolate(x, changed, [linear_pixels(places[a], x.shape[a]) for a in changed])
