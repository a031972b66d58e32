"""Sliding windows: where they lie on the input, how the input is padded, and views of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.scratch import scratch

Array = NDArray[Any]
AutoPad = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]


@dataclass(frozen=True)
class Windows:
    """The windows of a convolution or pool over an input of known size, one entry per axis.

    Attributes:
        kernel: Window sizes.
        strides: Steps between windows.
        dilations: Steps between the elements of a window.
        begin: Padding in front.
        end: Padding behind, as the user gave it.
        input: Sizes of the unpadded input.
        output: How many windows there are.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    input: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def covered(self) -> tuple[int, ...]:
        """Sizes that the windows need, counted from the first padded element."""
        return tuple(
            (o - 1) * s + (k - 1) * d + 1
            for o, s, k, d in zip(
                self.output, self.strides, self.kernel, self.dilations, strict=True
            )
        )

    @property
    def padded(self) -> tuple[int, ...]:
        """Sizes of the padded input: the given padding, and what a ceiled window adds."""
        given = (i + b + e for i, b, e in zip(self.input, self.begin, self.end, strict=True))
        return tuple(max(g, c) for g, c in zip(given, self.covered, strict=True))

    @property
    def needs_padding(self) -> bool:
        """Whether any element lies outside the input."""
        return self.padded != self.input

    def offsets(self) -> list[tuple[slice, ...]]:
        """For each element of the window, row-major, the slices of the padded input it visits."""
        axes = [
            [slice(k * d, k * d + (o - 1) * s + 1, s) for k in range(kernel)]
            for kernel, d, o, s in zip(
                self.kernel, self.dilations, self.output, self.strides, strict=True
            )
        ]
        return list(product(*axes))


def windows(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: bool = False,
) -> Windows:
    """Lay windows over an input, as ONNX specifies for Conv and the pools.

    Args:
        sizes: Spatial sizes of the input.
        kernel: Window sizes.
        strides: Defaults to ones.
        dilations: Defaults to ones.
        pads: All begins, then all ends; defaults to zeros; only with `auto_pad` NOTSET.
        auto_pad: `SAME_*` gives `ceil(size / stride)` windows, the odd element behind (UPPER) or
            in front (LOWER).
        ceil_mode: Round the number of windows up; a window that would start behind the input and
            its front padding is dropped.

    >>> windows((5,), (3,), (2,), auto_pad="SAME_UPPER").output
    (3,)

    Raises:
        ValueError: A window is larger than the padded input.
    """
    ndim = len(kernel)
    strides, dilations = tuple(strides) or (1,) * ndim, tuple(dilations) or (1,) * ndim
    begin, end = (0,) * ndim, (0,) * ndim
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (-(-size // s) - 1) * s + e - size)
            for size, s, e in zip(sizes, strides, extent, strict=True)
        ]
        less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    elif auto_pad == "NOTSET" and pads:
        begin, end = tuple(pads[:ndim]), tuple(pads[ndim:])
    output = []
    for size, b, e, reach, stride in zip(sizes, begin, end, extent, strides, strict=True):
        room = size + b + e - reach
        if room < 0:
            raise ValueError(f"a window of {reach} does not fit into {size} + {b} + {e}")
        count = room // stride + 1
        if ceil_mode and room % stride and count * stride < size + b:
            count += 1
        output.append(count)
    return Windows(tuple(kernel), strides, dilations, begin, end, tuple(sizes), tuple(output))


def at(x: Array, places: tuple[slice, ...]) -> Array:
    """Return a view of `x` whose last axes are picked by `places`."""
    index: Any = (..., *places)
    view: Array = x[index]
    return view


def pad(x: Array, layout: Windows, value: complex = 0) -> Array:
    """Return `x`, whose last axes are spatial, padded with `value`."""
    if not layout.needs_padding:
        return x
    lead = x.shape[: x.ndim - len(layout.input)]
    padded = np.full(lead + layout.padded, value, x.dtype)
    inside = tuple(slice(b, b + i) for b, i in zip(layout.begin, layout.input, strict=True))
    at(padded, inside)[...] = x
    return padded


@dataclass(frozen=True)
class Planes:
    """A padded input dealt out so that each element of a window visits one contiguous stretch.

    The elements that a window's element sees lie a stride apart. Dealing the input out by position
    modulo the stride brings them together, and reading on through the ends of rows and samples
    makes them one stretch of memory: long inner loops, whatever the size of the image.

    Attributes:
        phases: For each plane, its position modulo the strides.
        sizes: Spatial sizes of a plane.
        taps: For each element of the window, row-major: its plane, and where its stretch begins.
        row: Length of one step along the first spatial axis.
    """

    phases: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    taps: tuple[tuple[int, int], ...]
    row: int

    @property
    def area(self) -> int:
        """Elements of a plane."""
        return self.sizes[0] * self.row

    @property
    def reach(self) -> int:
        """The latest begin of a stretch: so much earlier must all of them end."""
        return max(start for _, start in self.taps)

    @property
    def pointwise(self) -> bool:
        """Whether a window has one element."""
        return len(self.taps) == 1


@lru_cache(maxsize=256)
def planes(layout: Windows) -> Planes:
    """Return how to deal out an input for these windows."""
    sizes = [-(-c // s) for c, s in zip(layout.covered, layout.strides, strict=True)]
    steps = [int(np.prod(sizes[i + 1 :])) for i in range(len(sizes))]
    phases: dict[tuple[int, ...], int] = {}
    taps = []
    for index in np.ndindex(*layout.kernel):
        places = [k * d for k, d in zip(index, layout.dilations, strict=True)]
        phase = tuple(p % s for p, s in zip(places, layout.strides, strict=True))
        start = sum(p // s * t for p, s, t in zip(places, layout.strides, steps, strict=True))
        taps.append((phases.setdefault(phase, len(phases)), start))
    return Planes(tuple(phases), tuple(sizes), tuple(taps), steps[0])


def deal(x: Array, layout: Windows, value: complex = 0) -> Array:
    """Deal out `x` `(N, C, *layout.input)` as planes `(phases, C, N, *sizes)`.

    What lies outside the input is `value`. The result is a view of `x` or scratch memory, valid
    until this thread calls again.
    """
    target = planes(layout)
    x = x.swapaxes(0, 1)
    if target.sizes == layout.input and target.pointwise and not layout.needs_padding:
        return x[None]
    out = scratch("deal", (len(target.phases), *x.shape[:2], *target.sizes), x.dtype)
    out.fill(value)
    for plane, phase in zip(out, target.phases, strict=True):
        source: list[slice] = []
        inside: list[slice] = []
        for p, s, b, i, q in zip(
            phase, layout.strides, layout.begin, layout.input, target.sizes, strict=True
        ):
            first = max(0, -(-(b - p) // s))
            start = p + s * first - b
            count = max(0, min(q - first, -(-(i - start) // s)))
            source.append(slice(start, start + (count - 1) * s + 1, s) if count else slice(0, 0))
            inside.append(slice(first, first + count))
        at(plane, tuple(inside))[...] = at(x, tuple(source))
    return out
