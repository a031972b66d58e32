"""Operators that move elements, and those on shapes and types, in torch."""

from itertools import product
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgeq.errors import UnsupportedOperatorError
from edgeq.learning.operators_elementwise import integral
from edgeq.learning.straight_through import look_up
from edgeq.numerics import resize as pixels
from edgeq.numerics.resize import Coordinates, Nearest

_FLOATS = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


def integers(x: Tensor) -> list[int]:
    """Return the elements of a list of integers, such as a shape."""
    return [int(v) for v in x.reshape(-1).tolist()]


def identity(x: Tensor) -> Tensor:
    """`x`."""
    return x


def concat(*parts: Tensor, axis: int) -> Tensor:
    """The parts side by side."""
    return torch.cat(parts, axis)


def split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int = 0, outputs: int
) -> tuple[Tensor, ...]:
    """Cut `x` into parts of the given sizes, or equal ones, the last perhaps smaller."""
    if sizes is not None:
        return tuple(torch.split(x, integers(sizes), axis))
    return tuple(torch.split(x, -(-x.shape[axis] // (num_outputs or outputs)), axis))


def slice_(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """`x[start:end:step]` along each named axis, clamped to the axis."""
    first, last = integers(starts), integers(ends)
    which = range(len(first)) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    for axis, start, end, step in zip(which, first, last, strides, strict=True):
        picked = range(x.shape[axis])[start:end:step]
        if step > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(picked.start, picked.stop, step)
            x = x[tuple(index)]
        else:
            x = torch.index_select(x, axis, torch.tensor(list(picked), device=x.device))
    return x


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Whole slices of `x` by index; of a table by codes, with the slope of the table."""
    if indices.is_floating_point():
        if x.ndim == 1:
            return look_up(x, indices)
        indices = indices.detach().long()
    index = indices.remainder(x.shape[axis])
    found = torch.index_select(x, axis, index.reshape(-1).to(x.device))
    along = axis % x.ndim
    return found.reshape(*x.shape[:along], *index.shape, *x.shape[along + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Single elements of `x` by index along one axis; of a table by codes, with its slope."""
    if indices.is_floating_point():
        if x.ndim == 1:
            return look_up(x, indices)
        indices = indices.detach().long()
    return torch.gather(x, axis, indices.remainder(x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Elements or slices of `x` by index tuples."""
    if batch_dims:
        raise UnsupportedOperatorError("GatherND with batch_dims cannot be learned through")
    return x[tuple(indices.detach().long().moveaxis(-1, 0))]


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """`x` in another shape; 0 keeps a size (unless `allowzero`), -1 is the rest."""
    sizes = integers(shape)
    if not allowzero:
        sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return x.reshape(sizes)


def transpose(x: Tensor, *, perm: tuple[int, ...] = ()) -> Tensor:
    """`x` with its axes in another order (reversed by default)."""
    return x.permute(perm or tuple(reversed(range(x.ndim)))).contiguous()


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """`x` as a matrix, cut before `axis`."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """`x` without axes of size 1."""
    return x.squeeze() if axes is None else x.squeeze(tuple(integers(axes)))


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """`x` with new axes of size 1."""
    places = integers(axes)
    ndim = x.ndim + len(places)
    for axis in sorted(a % ndim for a in places):
        x = x.unsqueeze(axis)
    return x


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """`x` repeated along axes of size 1, to a shape broadcast with its own."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """`x` repeated along each axis."""
    return x.repeat(integers(repeats))


def trilu(x: Tensor, diagonal: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle of the last two axes from a diagonal on, 0 elsewhere."""
    k = 0 if diagonal is None else int(diagonal)
    return torch.triu(x, k) if upper else torch.tril(x, k)


def pad(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: Literal["constant"] = "constant",
) -> Tensor:
    """`x` with a constant border; a negative pad cuts."""
    del mode
    sizes = integers(pads)
    which = range(x.ndim) if axes is None else [a % x.ndim for a in integers(axes)]
    widths = [0] * (2 * x.ndim)
    for place, axis in enumerate(which):
        after = 2 * (x.ndim - 1 - axis)  # torch counts from the last axis
        widths[after], widths[after + 1] = sizes[place], sizes[place + len(sizes) // 2]
    return functional.pad(x, widths, value=0.0 if value is None else value.item())


def depth_to_space(x: Tensor, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR") -> Tensor:
    """Channels laid out as blocks of pixels."""
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        out = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        out = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return out.reshape(n, depth, h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Blocks of pixels laid out as channels."""
    n, c, h, w = x.shape
    b = blocksize
    out = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return out.reshape(n, c * b * b, h // b, w // b)


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of `x`, from axis `start` to `end`."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def size(x: Tensor) -> Tensor:
    """The number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """`x` in another float dtype, or cut towards zero where integers are asked for.

    Integers that come from floats stay in a float dtype, which holds them exactly.
    """
    del saturate
    target = ir.DataType(to)
    if target in _FLOATS:
        return x.to(_FLOATS[target])
    if target == ir.DataType.BOOL:
        return x != 0
    return x.long() if x.dtype == torch.bool else integral(x)


def cast_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the dtype of `like`."""
    return x.to(like.dtype)


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """`start, start + delta, ...` below `limit`."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
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
) -> Tensor:
    """`x` with other sizes, one axis after the other."""
    del roi, cubic_coeff_a, extrapolation_value, keep_aspect_ratio_policy
    if antialias or exclude_outside:
        raise UnsupportedOperatorError("antialias and exclude_outside must be 0")
    given = [a % x.ndim for a in axes] or list(range(x.ndim))
    factors, targets = [1.0] * x.ndim, list(x.shape)
    if scales is not None and scales.numel():
        for axis, scale in zip(given, scales.tolist(), strict=True):
            factors[axis] = scale
            targets[axis] = int(np.floor(np.float32(x.shape[axis]) * np.float32(scale)))
    elif sizes is not None:
        for axis, wanted in zip(given, integers(sizes), strict=True):
            targets[axis] = wanted
            factors[axis] = float(np.float32(wanted) / np.float32(x.shape[axis]))
    changed = [a for a in range(x.ndim) if factors[a] != 1.0 or targets[a] != x.shape[a]]
    places = {
        a: pixels.source_coordinates(
            coordinate_transformation_mode, x.shape[a], targets[a], factors[a]
        )
        for a in changed
    }
    if mode == "nearest":
        for a in changed:
            x = _picked(x, a, pixels.nearest_pixels(places[a], nearest_mode, x.shape[a]))
        return x
    return _interpolated(x, {a: pixels.linear_pixels(places[a], x.shape[a]) for a in changed})


def _picked(x: Tensor, axis: int, index: NDArray[Any]) -> Tensor:
    return torch.index_select(x, axis, torch.as_tensor(index, device=x.device))


def _interpolated(x: Tensor, neighbours: dict[int, tuple[tuple[NDArray[Any], ...], ...]]) -> Tensor:
    """Return the weighted sum of the neighbours along some axes, corners in row-major order."""
    terms = []
    for corner in product(*neighbours.values()):
        picked, weight = x, torch.ones((), dtype=x.dtype, device=x.device)
        for axis, (index, share) in zip(neighbours, corner, strict=True):
            picked = _picked(picked, axis, index)
            shape = [-1 if a == axis else 1 for a in range(x.ndim)]
            weight = weight * torch.as_tensor(share, device=x.device).reshape(shape)
        terms.append(weight * picked)
    return sum(terms[1:], terms[0])
