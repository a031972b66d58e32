"""Reading a buffer in another shape and order, without moving anything.

Every operator that only moves elements (Transpose, Reshape, Slice, Split, Expand, DepthToSpace,
Resize by pixels, ...) says which element lies where. The simulator's own definition says it: it is
run on the places of the elements instead of their values. Where the place of an element is a sum of
one number for each axis, which is checked for every element, the operator costs nothing: whoever
reads computes the places.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.tvm.program import Buffer, Tensor

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class View:
    """Elements of a buffer as a tensor.

    Attributes:
        buffer: Where they lie.
        base: The place of the first.
        axes: For each axis, how far its elements are from the first.
    """

    buffer: Buffer
    base: int
    axes: tuple[Places, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "View":
        """Return the view of a whole tensor."""
        layout = tensor.layout
        steps = zip(layout.shape, layout.strides, strict=True)
        return cls(tensor.buffer, 0, tuple(np.arange(size) * stride for size, stride in steps))

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes."""
        return tuple(len(axis) for axis in self.axes)

    @cached_property
    def places(self) -> Places:
        """The place of every element."""
        total = np.full((1,) * len(self.axes), self.base, np.int64)
        for number, axis in enumerate(self.axes):
            shape = [1] * len(self.axes)
            shape[number] = -1
            total = total + axis.reshape(shape)
        return total.reshape(self.shape)

    def moved(self, move: Callable[[Places], NDArray[Any]]) -> "View | None":
        """Return what `move` makes of the tensor; None if it is not a view."""
        return separated(self.buffer, move(self.places))

    def broadcast(self, shape: tuple[int, ...]) -> "View":
        """Return the view repeated along axes of size 1, as ONNX broadcasts."""
        axes = [np.zeros(1, np.int64)] * (len(shape) - len(self.axes)) + list(self.axes)
        pairs = zip(axes, shape, strict=True)
        wide = tuple(
            np.broadcast_to(axis, size) if len(axis) == 1 else axis for axis, size in pairs
        )
        return View(self.buffer, self.base, wide)


def separated(buffer: Buffer, places: NDArray[Any]) -> View | None:
    """Return the view of the elements at `places`; None if these are no sum over the axes."""
    if not places.size:
        return None
    base = int(places[(0,) * places.ndim])
    axes = []
    for number in range(places.ndim):
        index: list[int | slice] = [0] * places.ndim
        index[number] = slice(None)
        axes.append(np.asarray(places[tuple(index)] - base, np.int64))
    found = View(buffer, base, tuple(axes))
    return found if np.array_equal(found.places, places) else None


def stride_of(axis: Places) -> int | None:
    """Return the constant step of an axis; None if there is none."""
    if len(axis) == 1:
        return 0
    step = int(axis[1] - axis[0])
    return step if np.array_equal(axis, np.arange(len(axis)) * step) else None


def blocks_of(axis: Places) -> tuple[int, int, int] | None:
    """Return (b, p, q) with `axis[i] = i // b * p + i % b * q`; None if there are none."""
    steps = np.diff(axis)
    changes = np.flatnonzero(steps != steps[0])
    b = int(changes[0]) + 1 if len(changes) else len(axis)
    if b >= len(axis):
        return None
    index = np.arange(len(axis))
    p, q = int(axis[b]), int(steps[0]) if b > 1 else 0
    return (b, p, q) if np.array_equal(axis, index // b * p + index % b * q) else None
