"""What is known about the bits of a value, without running the model.

A value is on a `Grid` when every element is an integer multiple of a power of two and lies between
known bounds. While no magnitude exceeds 2**24 steps, float32 holds every such number, and sums and
products of them that stay within that limit are exact: in any order, with or without FMA, on every
CPU. For float64 the same is true of 2**53 steps, for integers of their range. The functions below
give the grid of an exact result; `held` says whether a type has room for it. A value off any grid
may still be `DETERMINED`: made by single IEEE operations from values that are. `UNPROVEN` says that
neither is known.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_PART = 2**18  # elements of a constant that are examined at a time

# How many steps a float type counts without a gap, and its smallest normal number: some CPUs flush
# smaller ones to zero. Bounds are float64 themselves, so that 2**53 may be a rounded 2**53 + 1.
_FLOATS: Mapping[ir.DataType, tuple[int, float]] = MappingProxyType(
    {ir.DataType.FLOAT: (2**24, 2.0**-126), ir.DataType.DOUBLE: (2**53 - 1, 2.0**-1022)}
)
# The largest magnitude of an integer type; for int64, half of it, since bounds are float64.
_INTEGERS: Mapping[ir.DataType, int] = MappingProxyType(
    {
        ir.DataType.INT8: 2**7 - 1,
        ir.DataType.INT16: 2**15 - 1,
        ir.DataType.INT32: 2**31 - 1,
        ir.DataType.INT64: 2**62,
    }
)


@dataclass(frozen=True)
class Grid:
    """Every element is an integer multiple of `step` and lies in [low, high].

    Attributes:
        step: A power of two.
        low: Lower bound.
        high: Upper bound.
    """

    step: float
    low: float
    high: float

    @property
    def magnitude(self) -> float:
        """Largest magnitude that an element can have."""
        return max(abs(self.low), abs(self.high))

    @property
    def steps(self) -> float:
        """The magnitude in steps."""
        return self.magnitude / self.step

    def fits(self, dtype: ir.DataType | None) -> bool:
        """Whether `dtype` (float32 if unknown) holds every element, and every sum within bounds."""
        dtype = dtype or ir.DataType.FLOAT
        if dtype in _INTEGERS:
            return self.step >= 1 and self.magnitude <= _INTEGERS[dtype]
        count, smallest = _FLOATS.get(dtype, (0, math.inf))
        return self.steps <= count and self.step >= smallest


@dataclass(frozen=True)
class Determined:
    """The bits are the same on every IEEE machine, but no grid is known."""


@dataclass(frozen=True)
class Unproven:
    """The bits may depend on the CPU."""


DETERMINED: Final = Determined()
UNPROVEN: Final = Unproven()
Fact = Grid | Determined | Unproven


def held(fact: Fact, dtype: ir.DataType | None) -> Fact:
    """Return what holds for a value of type `dtype` whose exact result would be on a grid."""
    return DETERMINED if isinstance(fact, Grid) and not fact.fits(dtype) else fact


def is_power_of_two(value: float) -> bool:
    """Whether `value` is a positive power of two.

    >>> [is_power_of_two(v) for v in (0.25, 1.0, 3.0, 0.0)]
    [True, True, False, False]
    """
    return value > 0 and math.isfinite(value) and math.frexp(value)[0] == 0.5


def grid_of(array: NDArray[Any]) -> Fact:
    """Return the coarsest grid that holds a constant.

    >>> grid_of(np.array([0.5, -3.0], np.float32))
    Grid(step=0.5, low=-3.0, high=0.5)
    """
    if array.dtype.kind in "iub":
        if not array.size:
            return Grid(1.0, 0.0, 0.0)
        return Grid(1.0, float(array.min()), float(array.max()))
    values = array.reshape(-1)
    parts = (values[start : start + _PART] for start in range(0, values.size, _PART))
    return grid_of_parts(parts, ir.DataType.from_numpy(array.dtype))


def grid_of_parts(parts: Iterable[NDArray[Any]], dtype: ir.DataType = ir.DataType.FLOAT) -> Fact:
    """Return the coarsest grid that holds all of several float arrays.

    They are read one at a time, and not beyond the first that no exact grid can hold.
    """
    step, low, high = math.inf, math.inf, -math.inf
    for part in parts:
        values = np.asarray(part, np.float64).reshape(-1)
        if not values.size:
            continue
        if not np.all(np.isfinite(values)):
            return DETERMINED
        step = min(step, _step(values[values != 0]))
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if math.isfinite(step) and not Grid(step, low, high).fits(dtype):
            return DETERMINED
    return Grid(step, low, high) if math.isfinite(step) else Grid(1.0, 0.0, 0.0)


def _step(nonzero: NDArray[np.float64]) -> float:
    """Return the largest power of two that divides all of `nonzero`; infinity if there is none."""
    if not nonzero.size:
        return math.inf
    fraction, exponent = np.frexp(nonzero)
    digits = np.abs(np.ldexp(fraction, 53)).astype(np.int64)
    lowest = np.log2((digits & -digits).astype(np.float64)).astype(np.int64)
    return 2.0 ** int((exponent + lowest - 53).min())


def join(*facts: Fact) -> Fact:
    """Return what holds for a value that takes its elements from several."""
    if any(isinstance(f, Unproven) for f in facts):
        return UNPROVEN
    grids = [f for f in facts if isinstance(f, Grid)]
    if len(grids) < len(facts) or not grids:
        return DETERMINED
    step = min(g.step for g in grids)
    return Grid(step, min(g.low for g in grids), max(g.high for g in grids))


def add(a: Fact, b: Fact) -> Fact:
    """Return the fact of one addition."""
    if isinstance(a, Grid) and isinstance(b, Grid):
        return Grid(min(a.step, b.step), a.low + b.low, a.high + b.high)
    return join(a, b)


def negate(a: Fact) -> Fact:
    """Return the fact of a negation."""
    return Grid(a.step, -a.high, -a.low) if isinstance(a, Grid) else a


def multiply(a: Fact, b: Fact) -> Fact:
    """Return the fact of one multiplication."""
    if isinstance(a, Grid) and isinstance(b, Grid):
        corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        return Grid(a.step * b.step, min(corners), max(corners))
    return join(a, b)


def divide(a: Fact, b: Fact) -> Fact:
    """Return the fact of one IEEE division: exact by one power of two, else only determined."""
    one = isinstance(b, Grid) and b.low == b.high and is_power_of_two(b.low)
    if one and isinstance(a, Grid) and isinstance(b, Grid):
        return Grid(a.step / b.low, a.low / b.low, a.high / b.low)
    return UNPROVEN if isinstance(join(a, b), Unproven) else DETERMINED


def clip(a: Fact, low: float, high: float, bounds: Fact) -> Fact:
    """Return the fact of limiting `a` to [low, high], where `bounds` is that of the limits."""
    joined = join(a, bounds)
    if not isinstance(a, Grid) or not isinstance(joined, Grid):
        return joined
    return Grid(joined.step, min(max(a.low, low), high), max(min(a.high, high), low))


def sum_of(a: Grid, count: int) -> Grid:
    """Return the grid of a sum of up to `count` elements, partial sums included; maybe inexact."""
    return Grid(a.step, min(a.low * count, a.low, 0.0), max(a.high * count, a.high, 0.0))
