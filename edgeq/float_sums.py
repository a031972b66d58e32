"""Bounds of float sums: which grid a Conv, a pool or an interpolation accumulates on.

`total` covers every partial sum, in any order: `sum |w| * max |x| + |bias|`. A mean divides the
exact sum by an integer, once.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.exactness import Fact, Grid, is_power_of_two, multiply, sum_of
from edgeq.graph import (
    constant,
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from edgeq.longest import longest, most_elements
from edgeq.pool_counts import pool_counts
from edgeq.qdq import constant_reals, float8_constant

NO_GRID = "its inputs are on no known grid, so the bits of the sum depend on the order of additions"
NO_LENGTH = "the number of elements summed is not known, so the sum has no bound"


@dataclass(frozen=True)
class Sum:
    """A float sum and what divides it.

    Attributes:
        total: Grid of all partial sums; `total.fits` says whether a type holds them.
        divisors: The counts of a mean; empty for a sum, None where a count is known at run time.
        known: Whether how many elements are summed is known, not only bounded by `max_dim`.
    """

    total: Grid
    divisors: tuple[int, ...] | None = ()
    known: bool = True


def sum_of_products(node: ir.Node, inputs: list[Fact | None], max_dim: int) -> Sum | str:
    """Return the sum that a Conv, ConvTranspose, Gemm or MatMul makes, or why it is unknown.

    No axis that the model leaves open is longer than `max_dim`.
    """
    a, w = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    if not isinstance(a, Grid) or not isinstance(w, Grid):
        return NO_GRID
    if bias is not None and not isinstance(bias, Grid):
        return NO_GRID
    if node.op_type == "Gemm" and not _plain(node):
        return "alpha and beta of this Gemm are not 1"
    weights = _weights_per_output(node, w, max_dim)
    if weights is None:
        return NO_LENGTH
    step, bound = a.step * w.step, weights * a.magnitude
    if bias is not None:
        step, bound = min(step, bias.step), bound + bias.magnitude
    return Sum(Grid(step, -bound, bound))


def _plain(node: ir.Node) -> bool:
    return all(float_attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))


def _weights_per_output(node: ir.Node, w: Grid, max_dim: int) -> float | None:
    """Return the largest `sum |w|` of an output."""
    array = _weight(node.inputs[1])
    if array is None:
        value = node.inputs[1]
        shape = None if value is None else value.shape
        if node.op_type not in ("MatMul", "Gemm") or shape is None or len(shape) < 2:
            return None
        axis = -1 if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else -2
        return w.magnitude * longest(shape[axis], max_dim)
    size = np.abs(array.astype(np.float64))
    if node.op_type == "Conv":
        return float(size.reshape(len(size), -1).sum(1).max())
    if node.op_type == "ConvTranspose":
        # Every input channel of the group and every tap may meet in one output.
        groups = size.reshape(int_attribute(node, "group", 1), -1, *size.shape[1:])
        return float(groups.sum(axis=(1, *range(3, groups.ndim))).max())
    if node.op_type == "Gemm":
        return float(size.sum(1 if int_attribute(node, "transB", 0) else 0).max())
    return float(size.sum(-2).max() if size.ndim > 1 else size.sum())


def _weight(value: ir.Value | None) -> np.ndarray | None:
    """Return a constant weight, also behind a DequantizeLinear with constants."""
    array = constant_reals(value)
    if array is not None or value is None:
        return array
    return float8_constant(value.producer())


def sum_of_window(node: ir.Node, inputs: list[Fact | None], max_dim: int) -> Sum | str:
    """Return the sum that a pool, a reduction or a linear Resize makes, or why it is unknown.

    No axis that the model leaves open is longer than `max_dim`.
    """
    a = inputs[0]
    if not isinstance(a, Grid):
        return NO_GRID
    if node.op_type == "Resize":
        return _resize(node, a)
    if node.op_type == "AveragePool":
        counts = pool_counts(node)
        return Sum(sum_of(a, math.prod(ints_attribute(node, "kernel_shape", ()))), counts)
    over = _reduced(node)
    if over is None:
        return NO_LENGTH
    count, known = most_elements(over, max_dim), all(isinstance(dim, int) for dim in over)
    if node.op_type == "ReduceSumSquare":
        squares = multiply(Grid(a.step, -a.magnitude, a.magnitude), a)
        return Sum(sum_of(squares, count), (), known) if isinstance(squares, Grid) else NO_GRID
    if node.op_type not in ("GlobalAveragePool", "ReduceMean"):
        return Sum(sum_of(a, count), (), known)
    return Sum(sum_of(a, count), (count,) if known else None, known)


def _reduced(node: ir.Node) -> list[int | ir.SymbolicDim] | None:
    """Return the axes that each result of a reduction or global pool sums over, if known."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    shape = list(value.shape)
    if node.op_type == "GlobalAveragePool":
        return shape[2:]
    axes_value = node.inputs[1] if len(node.inputs) > 1 else None
    if axes_value is not None:
        array = constant(axes_value)
        if array is None:
            return None
        axes = [int(axis) for axis in array.reshape(-1)]
    else:
        axes = list(ints_attribute(node, "axes", ()))
    if not axes and not int_attribute(node, "noop_with_empty_axes", 0):
        return shape
    return [shape[axis] for axis in axes]


_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric")


def _resize(node: ir.Node, a: Grid) -> Sum | str:
    """Return the grid of a linear interpolation by powers of two: its weights are dyadic."""
    mode = string_attribute(node, "mode", "nearest")
    coordinates = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode != "linear" or coordinates not in _COORDINATES or int_attribute(node, "antialias", 0):
        return f"Resize with mode {mode}, {coordinates} has weights that are not dyadic"
    factors = _resize_factors(node)
    if factors is None or not all(is_power_of_two(f) for f in factors):
        return "Resize interpolates by a factor that is no known power of two"
    step = a.step
    for factor in factors:
        if factor != 1:
            # Half-pixel coordinates are odd multiples of 1 / (2 * factor), or halves below 1.
            step *= min(1 / (2 * factor), 0.5)
    return Sum(Grid(step, -a.magnitude, a.magnitude))


def _resize_factors(node: ir.Node) -> list[float] | None:
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size:
        return [float(s) for s in scales.reshape(-1)]
    value, output = node.inputs[0], node.outputs[0]
    if value is None or value.shape is None or output.shape is None:
        return None
    factors = []
    for old, new in zip(value.shape, output.shape, strict=True):
        if isinstance(old, int) and isinstance(new, int):
            factors.append(new / old)
        elif isinstance(old, int) or isinstance(new, int) or old.value != new.value:
            return None
        else:
            factors.append(1.0)
    return factors
