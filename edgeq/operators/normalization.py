"""Normalisations, computed in float64 and rounded once.

ONNX does not say how their sums are rounded, so no two runtimes agree on the last bit; exact forms
for deployment are made of other operators (ReduceSum, Sqrt, Div).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Return `(x - mean) / sqrt(variance + epsilon)` over `axes`, in float64."""
    wide = x.astype(np.float64)
    wide = wide - wide.mean(axis=axes, keepdims=True)
    variance = np.square(wide).mean(axis=axes, keepdims=True)
    return np.asarray(wide / np.sqrt(variance + epsilon))


def _affine(y: Array, scale: Array, bias: Array | None, dtype: np.dtype[Any]) -> Array:
    y = y * scale.astype(np.float64)
    return np.asarray(y if bias is None else y + bias, dtype)


def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Array:
    """Normalise over the axes from `axis` on; `stash_type` does not matter in float64."""
    del stash_type
    axes = tuple(range(axis % x.ndim, x.ndim))
    return _affine(_normalized(x, axes, epsilon), scale, bias, x.dtype)


def instance_normalization(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5) -> Array:
    """Normalise each channel of each sample: `x` is (N, C, ...)."""
    channels = (-1, *(1,) * (x.ndim - 2))
    y = _normalized(x, tuple(range(2, x.ndim)), epsilon)
    return _affine(y, scale.reshape(channels), bias.reshape(channels), x.dtype)


def group_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Array:
    """Normalise each group of channels of each sample: `x` is (N, C, ...), `scale` is (C,)."""
    del stash_type
    size = x.shape[1] // num_groups
    grouped = x.reshape(x.shape[0], num_groups, size, *x.shape[2:])
    y = _normalized(grouped, tuple(range(2, grouped.ndim)), epsilon).reshape(x.shape)
    channels = (-1, *(1,) * (x.ndim - 2))
    return _affine(y, scale.reshape(channels), bias.reshape(channels), x.dtype)
