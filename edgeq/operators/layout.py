"""Operators that move elements and compute nothing; any dtype."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import ModelError

Array = NDArray[Any]


def identity(x: Array) -> Array:
    """`x`."""
    return x


def concat(*parts: Array, axis: int) -> Array:
    """The parts side by side."""
    return np.concatenate(parts, axis=axis)


def split(
    x: Array, sizes: Array | None = None, *, axis: int = 0, num_outputs: int = 0, outputs: int
) -> tuple[Array, ...]:
    """Cut `x` into parts of the given sizes, or equal ones, the last perhaps smaller."""
    if sizes is None:
        part = -(-x.shape[axis] // (num_outputs or outputs))
        cuts = [min(part * i, x.shape[axis]) for i in range(1, num_outputs or outputs)]
    else:
        cuts = [int(c) for c in np.cumsum(sizes)[:-1]]
    return tuple(np.split(x, cuts, axis=axis))


def slice_(
    x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    """`x[start:end:step]` along each named axis, clamped to the axis."""
    picked = [slice(None)] * x.ndim
    which = range(len(starts)) if axes is None else [int(a) % x.ndim for a in axes]
    strides = [1] * len(starts) if steps is None else [int(s) for s in steps]
    for axis, start, end, step in zip(which, starts, ends, strides, strict=True):
        size = x.shape[axis]
        begin, stop = (int(p) + size if p < 0 else int(p) for p in (start, end))
        if step > 0:
            picked[axis] = slice(min(max(begin, 0), size), min(max(stop, 0), size), step)
        else:
            begin, stop = min(max(begin, 0), size - 1), min(max(stop, -1), size - 1)
            picked[axis] = slice(begin, None if stop < 0 else stop, step)
    return x[tuple(picked)]


def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Whole slices of `x` by index."""
    return np.take(x, _inside(indices, x.shape[axis]), axis=axis)


def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Single elements of `x` by index along one axis."""
    index = _inside(indices, x.shape[axis])
    return np.take(x, index) if x.ndim == 1 else np.take_along_axis(x, index, axis)


def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Elements or slices of `x` by index tuples."""
    lead = indices.shape[:batch_dims]
    grids = np.ix_(*(np.arange(n) for n in lead)) if lead else ()
    extra = indices.ndim - 1 - batch_dims
    batch = tuple(g.reshape(*g.shape, *(1,) * extra) for g in grids)
    return np.asarray(x[(*batch, *np.moveaxis(indices, -1, 0))])


def _inside(indices: Array, size: int) -> Array:
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise ModelError(f"an index lies outside [-{size}, {size})")
    return indices


def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """`x` in another shape; 0 keeps a size (unless `allowzero`), -1 is the rest."""
    sizes = [int(s) for s in shape]
    if not allowzero:
        sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    try:
        return x.reshape(sizes)
    except ValueError as error:
        raise ModelError(str(error)) from None


def transpose(x: Array, *, perm: tuple[int, ...] = ()) -> Array:
    """`x` with its axes in another order (reversed by default)."""
    return np.ascontiguousarray(np.transpose(x, perm or None))


def flatten(x: Array, *, axis: int = 1) -> Array:
    """`x` as a matrix, cut before `axis`."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


def squeeze(x: Array, axes: Array | None = None) -> Array:
    """`x` without axes of size 1."""
    if axes is None:
        return np.squeeze(x)
    return np.squeeze(x, axis=tuple(int(a) for a in axes.reshape(-1)))


def unsqueeze(x: Array, axes: Array) -> Array:
    """`x` with new axes of size 1."""
    return np.expand_dims(x, tuple(int(a) for a in axes.reshape(-1)))


def expand(x: Array, shape: Array) -> Array:
    """`x` repeated along axes of size 1, to a shape broadcast with its own."""
    target = np.broadcast_shapes(x.shape, tuple(int(s) for s in shape))
    return np.ascontiguousarray(np.broadcast_to(x, target)).reshape(target)


def tile(x: Array, repeats: Array) -> Array:
    """`x` repeated along each axis."""
    return np.tile(x, [int(r) for r in repeats])


def trilu(x: Array, diagonal: Array | None = None, *, upper: int = 1) -> Array:
    """The upper or lower triangle of the last two axes from a diagonal on, 0 elsewhere."""
    k = 0 if diagonal is None else int(diagonal.reshape(()))
    return np.triu(x, k) if upper else np.tril(x, k)


def pad(
    x: Array,
    pads: Array,
    value: Array | None = None,
    axes: Array | None = None,
    *,
    mode: Literal["constant", "reflect", "edge", "wrap"] = "constant",
) -> Array:
    """`x` with a border; a negative pad cuts."""
    which = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
    widths = [(0, 0)] * x.ndim
    for place, axis in enumerate(which):
        widths[axis] = (int(pads[place]), int(pads[place + len(pads) // 2]))
    cut = tuple(
        slice(max(0, -b), size - max(0, -e)) for (b, e), size in zip(widths, x.shape, strict=True)
    )
    added = [(max(0, b), max(0, e)) for b, e in widths]
    if mode == "constant":
        fill = x.dtype.type(0) if value is None else value.reshape(())
        kept = x[cut]
        shape = [size + b + e for size, (b, e) in zip(kept.shape, added, strict=True)]
        out = np.full(shape, fill, x.dtype)  # np.pad is many times slower
        out[tuple(slice(b, b + size) for size, (b, _) in zip(kept.shape, added, strict=True))] = (
            kept
        )
        return out
    return np.pad(x[cut], added, mode=mode)


def depth_to_space(x: Array, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR") -> Array:
    """Channels laid out as blocks of pixels."""
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        out = x.reshape(n, b, b, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        out = x.reshape(n, depth, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return out.reshape(n, depth, h * b, w * b)


def space_to_depth(x: Array, *, blocksize: int) -> Array:
    """Blocks of pixels laid out as channels."""
    n, c, h, w = x.shape
    b = blocksize
    out = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return out.reshape(n, c * b * b, h // b, w // b)
