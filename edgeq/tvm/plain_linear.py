"""Conv of any kind as plain loops: for CPUs without vectors, for C source, for odd groups.

Nothing is copied or packed, so it needs no memory but the codes and the weights. Positions in the
pads add nothing and are skipped.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgeq.tvm import emit
from edgeq.tvm.emit import Buffer, Expr
from edgeq.tvm.linear_problem import LinearProblem
from edgeq.tvm.lowered_linear import LoweredLinear, in_one_step
from edgeq.tvm.packing import fold, stays_inside
from edgeq.tvm.requantize import requantize, store_first

Array = NDArray[Any]
_TOGETHER = 4  # channels that share what is loaded of x


def lower_plain(
    symbol: str, problem: LinearProblem, weight: Array, bias: Array, multiplier: Array
) -> LoweredLinear:
    """Return the kernel as loops over scalars.

    Args:
        symbol: Its name in C.
        problem: What is computed.
        weight: int8, `(out_c, in_c / groups, kernel_h, kernel_w)`.
        bias: int32, `(out_c,)`.
        multiplier: float32, `(out_c,)` or `(1,)`.
    """
    problem = problem.flat()
    folded = fold(weight, bias, problem.x_zero)
    limits = np.iinfo(problem.x_dtype)
    is_folded = not any(problem.pads) and stays_inside(weight, folded, limits.min, limits.max)
    constants = {
        "weight": np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).ravel(),
        "bias": folded if is_folded else bias,
        "multiplier": multiplier,
    }
    kernel = _Loops(problem, 0 if is_folded else problem.x_zero, multiplier.size == 1)
    return in_one_step(symbol, problem, constants, {}, kernel.emit)


class _Loops:
    """The writer of one kernel."""

    def __init__(self, problem: LinearProblem, zero: int, is_per_tensor: bool) -> None:
        self.problem = problem
        self.zero = zero
        self.is_per_tensor = is_per_tensor

    def emit(self, buffers: Mapping[str, Buffer]) -> None:
        problem = self.problem
        of_group = problem.out_c // problem.groups
        sums = [emit.local("int32", 1) for _ in range(min(_TOGETHER, of_group))]
        with (
            emit.loop(problem.batch, "sample") as sample,
            emit.loop(problem.out_h, "y_row") as y,
            emit.loop(problem.out_w, "y_column") as x,
            emit.loop(problem.groups, "group") as group,
            emit.tiles(of_group, len(sums), "channels") as first,
        ):
            channel = group * of_group + first
            for i, acc in enumerate(sums):
                emit.store(acc, 0, emit.load(buffers["bias"], channel + i, 1), 1)
            self._products(buffers, sums, (sample, y, x), group, channel)
            pixel = (sample * problem.out_h + y) * problem.out_w + x
            for i, acc in enumerate(sums):
                which = 0 if self.is_per_tensor else channel + i
                multiplier = emit.load(buffers["multiplier"], which, 1)
                value = requantize(emit.load(acc, 0, 1), multiplier, problem.y, 1)
                store_first(buffers["y"], pixel * problem.out_c + channel + i, [value], 1, 1)

    def _products(
        self,
        buffers: Mapping[str, Buffer],
        sums: list[Buffer],
        pixel: tuple[Expr, Expr, Expr],
        group: Expr,
        channel: Expr,
    ) -> None:
        problem = self.problem
        sample, y, x = pixel
        top, left, bottom, right = problem.pads
        size = problem.kernel_h * problem.kernel_w * problem.depth
        with emit.loop(problem.kernel_h, "row") as i:
            row = emit.bind_index(y * problem.strides[0] + i * problem.dilations[0] - top)
            with (
                emit.when(_inside(row, problem.in_h, top or bottom)),
                emit.loop(problem.kernel_w, "column") as j,
            ):
                column = emit.bind_index(x * problem.strides[1] + j * problem.dilations[1] - left)
                with (
                    emit.when(_inside(column, problem.in_w, left or right)),
                    emit.loop(problem.depth, "k") as k,
                ):
                    at = (sample * problem.in_h + row) * problem.in_w + column
                    element = at * problem.in_c + group * problem.depth + k
                    code = emit.cast(emit.load(buffers["x"], element, 1), "int32", 1)
                    code = emit.bind(code - self.zero)
                    place = channel * size + (i * problem.kernel_w + j) * problem.depth + k
                    for index, acc in enumerate(sums):
                        weight = emit.load(buffers["weight"], place + index * size, 1)
                        product = code * emit.cast(weight, "int32", 1)
                        emit.store(acc, 0, emit.load(acc, 0, 1) + product, 1)


def _inside(index: Expr, extent: int, has_pads: int) -> Expr:
    """Return whether `index` is in `[0, extent)`; True where it always is."""
    return tirx.all(index >= 0, index < extent) if has_pads else True
