"""Depthwise Conv: vectors of channels, which do not meet.

A vector of channels that would end behind the last begins earlier instead, and computes some
channels twice: both write the same. Several filters for a channel: the copy of x repeats it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.tvm import emit
from edgeq.tvm.dot import Isa
from edgeq.tvm.emit import Buffer, Expr
from edgeq.tvm.linear_problem import LinearProblem
from edgeq.tvm.lowered_linear import LoweredLinear, in_one_step
from edgeq.tvm.packing import fold, per_channel, stays_inside
from edgeq.tvm.padding import PaddedCopy
from edgeq.tvm.requantize import requantize, store_first

Array = NDArray[Any]


def lower_depthwise(
    symbol: str, problem: LinearProblem, weight: Array, bias: Array, multiplier: Array, isa: Isa
) -> LoweredLinear:
    """Return the kernel of a problem with a group for each channel of x.

    Args:
        symbol: Its name in C.
        problem: What is computed.
        weight: int8, `(out_c, 1, kernel_h, kernel_w)`.
        bias: int32, `(out_c,)`.
        multiplier: float32, `(out_c,)` or `(1,)`.
        isa: How; with vectors.
    """
    kernel = _Depthwise(problem, weight, bias, isa)
    constants = {
        "weight": np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0)).ravel(),
        "bias": kernel.bias,
        "multiplier": per_channel(multiplier, problem.out_c),
    }
    scratch = {} if kernel.is_direct else {"padded": (kernel.copy.dtype, kernel.copy.elements)}
    return in_one_step(symbol, problem, constants, scratch, kernel.emit)


class _Depthwise:
    """The writer of one kernel."""

    def __init__(self, problem: LinearProblem, weight: Array, bias: Array, isa: Isa) -> None:
        self.problem = problem
        repeat = problem.out_c // problem.in_c
        self.is_direct = repeat == 1 and not any(problem.pads)
        self.copy = PaddedCopy(problem, problem.x_dtype, repeat, isa.core.bytes)
        folded = fold(weight, bias, problem.x_zero)
        limits = np.iinfo(problem.x_dtype)
        is_folded = stays_inside(weight, folded, limits.min, limits.max)
        self.zero = 0 if is_folded else problem.x_zero
        self.bias = folded if is_folded else bias
        self.lanes = min(isa.lanes, 1 << (problem.out_c.bit_length() - 1))
        self.columns = min(4, problem.out_w)

    def emit(self, buffers: Mapping[str, Buffer]) -> None:
        problem = self.problem
        source = buffers["x" if self.is_direct else "padded"]
        with emit.loop(problem.batch) as sample:
            start = sample * (problem.in_h * problem.in_w * problem.in_c)
            if not self.is_direct:
                self.copy.emit(buffers["x"], source, sample)
                start = 0
            with (
                emit.tiles(problem.out_h, 1) as y,
                emit.tiles(problem.out_w, self.columns) as x,
                emit.tiles(problem.out_c, self.lanes) as channel,
            ):
                row = problem.strides[0] * problem.padded_w * problem.out_c
                column = problem.strides[1] * problem.out_c
                corner = emit.bind_index(start + y * row + x * column + channel)
                sums = self._products(buffers, source, corner, channel)
                multiplier = emit.bind(emit.load(buffers["multiplier"], channel, self.lanes))
                for j, acc in enumerate(sums):
                    value = emit.load(acc, 0, self.lanes)
                    value = requantize(value, multiplier, problem.y, self.lanes)
                    pixel = (sample * problem.out_h + y) * problem.out_w + x + j
                    at = pixel * problem.out_c + channel
                    store_first(buffers["y"], at, [value], self.lanes, self.lanes)

    def _products(
        self, buffers: Mapping[str, Buffer], source: Buffer, corner: Expr, channel: Expr
    ) -> list[Buffer]:
        problem, lanes = self.problem, self.lanes
        sums = [emit.local("int32", lanes) for _ in range(self.columns)]
        bias = emit.bind(emit.load(buffers["bias"], channel, lanes))
        for acc in sums:
            emit.store(acc, 0, bias, lanes)
        row = problem.dilations[0] * problem.padded_w * problem.out_c
        column = problem.dilations[1] * problem.out_c
        step = problem.strides[1] * problem.out_c
        with emit.loop(problem.kernel_h) as i, emit.loop(problem.kernel_w) as j:
            taps = (i * problem.kernel_w + j) * problem.out_c + channel
            weight = emit.bind(emit.cast(emit.load(buffers["weight"], taps, lanes), "int32", lanes))
            element = corner + i * row + j * column
            for index, acc in enumerate(sums):
                codes = emit.load(source, element + index * step, lanes)
                wide = emit.cast(codes, "int32", lanes)
                if self.zero:
                    wide = wide - emit.constant(self.zero, "int32", lanes)
                emit.store(acc, 0, emit.load(acc, 0, lanes) + wide * weight, lanes)
        return sums
