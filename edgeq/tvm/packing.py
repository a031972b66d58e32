"""Weights in the order in which kernels read them, and biases with the zero points folded in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.tvm.dot import Isa
from edgeq.tvm.linear_problem import LinearProblem

Array = NDArray[Any]


def runs(problem: LinearProblem) -> tuple[int, int, int]:
    """Return how the elements under a filter lie: rows, runs in a row, elements of a run.

    Columns that touch make one run.
    """
    if problem.dilations[1] == 1:
        return problem.kernel_h, 1, problem.kernel_w * problem.in_c
    return problem.kernel_h, problem.kernel_w, problem.in_c


def blocks(channels: int, lanes: int) -> int:
    """Return how many vectors hold `channels`."""
    return -(-channels // lanes)


def pack_dense(weight: Array, problem: LinearProblem, isa: Isa, width: int) -> Array:
    """Return the weights of a dense filter as its kernel reads them.

    Panels of `width` vectors of channels, and a last one of what is left; in a panel
    `[run][step][vector][part][lane][group]`.

    Args:
        weight: int8, `(out_c, in_c, kernel_h, kernel_w)`.
        problem: What is computed.
        isa: How.
        width: Vectors of channels in one panel.
    """
    rows, per_row, length = runs(problem)
    channels = blocks(problem.out_c, isa.lanes) * isa.lanes
    steps = -(-length // isa.step)
    flat = weight.transpose(0, 2, 3, 1).reshape(problem.out_c, rows * per_row, length)
    filled = np.zeros((channels, rows * per_row, steps * isa.step), np.int8)
    filled[: problem.out_c, :, :length] = flat
    shape = (-1, isa.lanes, rows * per_row, steps, isa.step // isa.group, isa.group)
    vectors = filled.reshape(shape).transpose(0, 2, 3, 4, 1, 5)  # [vector][run][step][part]...
    panels = [
        vectors[first : first + width].transpose(1, 2, 0, 3, 4, 5).ravel()
        for first in range(0, len(vectors), width)
    ]
    return np.concatenate(panels).astype(isa.weights)


def per_channel(values: Array, channels: int) -> Array:
    """Return `values`, one or one for each channel, filled up with zeros to `channels`."""
    if values.size == 1:
        return np.repeat(values, channels)
    return np.pad(values, (0, channels - values.size))


def fold(weight: Array, bias: Array, zero: int) -> Array:
    """Return `bias - zero * sum(weight)`, modulo 2**32 as accumulators are.

    Args:
        weight: int8, `(out_c, ...)`.
        bias: int32, `(out_c,)`.
        zero: What stands for the real 0 in the activations as they are multiplied.
    """
    sums = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.int64)
    folded: Array = bias.astype(np.int64) - zero * sums
    return folded.astype(np.int32)


def stays_inside(weight: Array, folded: Array, low: int, high: int) -> bool:
    """Whether no sum in any order leaves int32, with activations in `[low, high]`."""
    magnitude = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1)
    bound = magnitude * max(abs(low), abs(high)) + np.abs(folded.astype(np.int64))
    return bool((bound < 2**31).all())
