"""Depthwise Conv by dot products down the columns of a filter.

The codes of a channel that lie above each other are put side by side into the 32 bits of a lane,
`x0 | x1 << 8 | x2 << 16 | x3 << 24`, which is what an instruction multiplies for one accumulator.
A column made so serves every result that sees it. All is unrolled; no loop runs over the filter.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgeq.tvm import emit
from edgeq.tvm.dot import Isa
from edgeq.tvm.emit import Buffer, Expr
from edgeq.tvm.linear_problem import LinearProblem
from edgeq.tvm.lowered_linear import LoweredLinear, in_one_step
from edgeq.tvm.packing import blocks, fold, per_channel, stays_inside
from edgeq.tvm.padding import PaddedCopy
from edgeq.tvm.requantize import requantize, store_first

Array = NDArray[Any]
_MOST_TAPS = 50  # that are unrolled
_TOGETHER = 16  # channels that are narrowed and stored together
_LEAVE = 8  # cycles to requantize a vector, in those of a product


def lower_depthwise_dot(
    symbol: str, problem: LinearProblem, weight: Array, bias: Array, multiplier: Array, isa: Isa
) -> LoweredLinear | None:
    """Return the kernel of a problem with a group for each channel of x, or None: not this way.

    Args:
        symbol: Its name in C.
        problem: What is computed.
        weight: int8, `(out_c, 1, kernel_h, kernel_w)`.
        bias: int32, `(out_c,)`.
        multiplier: float32, `(out_c,)` or `(1,)`.
        isa: How; with an instruction for dot products.
    """
    kernel = _Columns(problem, isa)
    folded = fold(weight, bias, kernel.copy.zero)
    limits = np.iinfo(kernel.copy.dtype)
    wraps = isa.form == "accumulate"
    if not wraps and not stays_inside(weight, folded, limits.min, limits.max):
        return None
    if problem.kernel_h * problem.kernel_w > _MOST_TAPS or problem.out_c < kernel.channels:
        return None
    constants = {
        "weight": _packed(weight, isa),
        "bias": folded,
        "multiplier": per_channel(multiplier, problem.out_c),
    }
    scratch = {} if kernel.is_direct else {"padded": (kernel.copy.dtype, kernel.copy.elements)}
    return in_one_step(symbol, problem, constants, scratch, kernel.emit)


def _packed(weight: Array, isa: Isa) -> Array:
    """Return the weights as `[rows of a dot product][column][channel][row]`."""
    channels, _, height, width = weight.shape
    filled = np.zeros((channels, blocks(height, isa.group) * isa.group, width), isa.weights)
    filled[:, :height] = weight[:, 0]
    return filled.reshape(channels, -1, isa.group, width).transpose(1, 3, 0, 2).ravel()


class _Columns:
    """The writer of one kernel."""

    def __init__(self, problem: LinearProblem, isa: Isa) -> None:
        self.problem = problem
        self.isa = isa
        repeat = problem.out_c // problem.in_c
        dtype = isa.operand if isa.operand != "int16" else problem.x_dtype
        self.copy = PaddedCopy(problem, dtype, repeat, isa.core.bytes)
        self.is_direct = repeat == 1 and not any(problem.pads) and dtype == problem.x_dtype
        most = min(problem.out_w, isa.core.registers // 4)
        pair = _TOGETHER // isa.lanes
        widths = [pair] if pair > 1 and pair * isa.lanes <= problem.out_c else []
        widths.append(1)
        choices = [(width, columns) for width in widths for columns in range(1, most + 1)]
        self.width, self.columns = min(choices, key=lambda choice: self._cost(*choice))
        self.channels = self.width * isa.lanes

    def _cost(self, width: int, columns: int) -> tuple[int, int]:
        problem = self.problem
        rows = blocks(problem.kernel_h, self.isa.group)
        seen = len({at for _, _, at in self._meetings(columns)})
        each = seen * 2 * problem.kernel_h + columns * (rows * problem.kernel_w + _LEAVE)
        vectors = blocks(problem.out_c, width * self.isa.lanes) * width
        return vectors * blocks(problem.out_w, columns) * each, -width

    def _meetings(self, columns: int) -> Iterator[tuple[int, int, int]]:
        """Give each result of a tile, column of the filter, and column of x where they meet."""
        for result in range(columns):
            for tap in range(self.problem.kernel_w):
                at = result * self.problem.strides[1] + tap * self.problem.dilations[1]
                yield result, tap, at

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
                emit.tiles(problem.out_c, self.channels) as channel,
            ):
                row = problem.strides[0] * problem.padded_w * problem.out_c
                column = problem.strides[1] * problem.out_c
                corner = emit.bind_index(start + y * row + x * column + channel)
                pixel = (sample * problem.out_h + y) * problem.out_w + x
                self._tile(buffers, source, corner, pixel, channel)

    def _tile(
        self,
        buffers: Mapping[str, Buffer],
        source: Buffer,
        corner: Expr,
        pixel: Expr,
        channel: Expr,
    ) -> None:
        lanes = self.isa.lanes
        by_vector = []
        for vector in range(self.width):
            first = channel + vector * lanes
            sums = self._products(buffers, source, corner + vector * lanes, first)
            multiplier = emit.bind(emit.load(buffers["multiplier"], first, lanes))
            by_vector.append([requantize(acc, multiplier, self.problem.y, lanes) for acc in sums])
        for result in range(self.columns):
            at = (pixel + result) * self.problem.out_c + channel
            values = [of_vector[result] for of_vector in by_vector]
            store_first(buffers["y"], at, values, lanes, self.channels)

    def _products(
        self, buffers: Mapping[str, Buffer], source: Buffer, corner: Expr, channel: Expr
    ) -> list[Expr]:
        """Return the sums of one vector of channels, for each result of the tile."""
        problem, isa = self.problem, self.isa
        sums = [emit.bind(emit.load(buffers["bias"], channel, isa.lanes))] * self.columns
        meetings = sorted(self._meetings(self.columns), key=lambda meeting: meeting[2])
        for top in range(0, problem.kernel_h, isa.group):
            rows = min(isa.group, problem.kernel_h - top)
            index = top // isa.group * problem.kernel_w
            places = [
                ((index + tap) * problem.out_c + channel) * isa.group
                for tap in range(problem.kernel_w)
            ]
            weights = [isa.load_weights(buffers["weight"], place) for place in places]
            codes: dict[int, Expr] = {}
            for result, tap, at in meetings:
                if at not in codes:
                    codes[at] = self._column(source, corner + at * problem.out_c, top, rows)
                sums[result] = emit.bind(isa.multiply(sums[result], codes[at], weights[tap]))
        return sums

    def _column(self, source: Buffer, place: Expr, top: int, rows: int) -> Expr:
        """Return codes that lie above each other, side by side in each lane."""
        problem, isa = self.problem, self.isa
        bits = 32 // isa.group
        row = problem.dilations[0] * problem.padded_w * problem.out_c
        word = None
        for i in range(rows):
            code = emit.load(source, place + (top + i) * row, isa.lanes)
            if self.copy.dtype == "int8" and i < isa.group - 1:  # the last may fill what is above
                code = emit.cast(code, f"uint{bits}", isa.lanes)
            code = emit.cast(code, "int32", isa.lanes)
            if i:
                code = tirx.shift_left(code, emit.constant(i * bits, "int32", isa.lanes))
            word = code if word is None else tirx.bitwise_or(word, code)
        return emit.bind(emit.reinterpret(word, f"int{bits}", isa.lanes * isa.group))
