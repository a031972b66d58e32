"""Conv and Gemm where each channel of y sees every channel of x: products of vectors.

A tile of pixels times channels stays in registers while all elements under the filter pass. Tiles
at the right and lower edge lie over their neighbours: both write the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgeq.tvm import emit
from edgeq.tvm.dot import Isa
from edgeq.tvm.emit import Buffer, Expr
from edgeq.tvm.linear_problem import LinearProblem
from edgeq.tvm.lowered_linear import LoweredLinear, in_one_step
from edgeq.tvm.packing import blocks, fold, pack_dense, per_channel, runs
from edgeq.tvm.padding import PaddedCopy
from edgeq.tvm.requantize import requantize, store_first
from edgeq.tvm.tile import Tile, choose_tile

Array = NDArray[Any]


def lower_dense(
    symbol: str, problem: LinearProblem, weight: Array, bias: Array, multiplier: Array, isa: Isa
) -> LoweredLinear:
    """Return the kernel of a problem with one group.

    Args:
        symbol: Its name in C.
        problem: What is computed.
        weight: int8, `(out_c, in_c, kernel_h, kernel_w)`.
        bias: int32, `(out_c,)`.
        multiplier: float32, `(out_c,)` or `(1,)`.
        isa: How; with vectors.
    """
    problem = problem.flat()
    kernel = _Dense(problem, isa, choose_tile(problem, isa))
    channels = blocks(problem.out_c, isa.lanes) * isa.lanes
    constants = {
        "weight": pack_dense(weight, problem, isa, kernel.tile.width),
        "bias": per_channel(fold(weight, bias, kernel.copy.zero), channels),
        "multiplier": per_channel(multiplier, channels),
    }
    scratch = {} if kernel.is_direct else {"padded": (kernel.copy.dtype, kernel.copy.elements)}
    return in_one_step(symbol, problem, constants, scratch, kernel.emit)


@dataclass(frozen=True)
class _Panel:
    """Channels whose weights lie together: the first, vectors, and lanes used of the last."""

    channel: Expr
    width: int
    last: int


class _Dense:
    """The writer of one kernel."""

    def __init__(self, problem: LinearProblem, isa: Isa, tile: Tile) -> None:
        self.problem = problem
        self.isa = isa
        self.tile = tile
        self.accumulators: list[Buffer] = []
        self.copy = PaddedCopy(problem, isa.operand, bytes=isa.core.bytes)
        self.rows, self.per_row, self.length = runs(problem)
        self.steps = blocks(self.length, isa.step)
        is_whole = self.length % isa.step == 0 and not any(problem.pads)
        self.is_direct = is_whole and problem.x_dtype == isa.operand

    def emit(self, buffers: Mapping[str, Buffer]) -> None:
        problem, tile = self.problem, self.tile
        count = tile.rows * tile.columns * tile.width
        self.accumulators = [emit.local("int32", self.isa.lanes) for _ in range(count)]
        source = buffers["x" if self.is_direct else "padded"]
        with emit.loop(problem.batch) as sample:
            start = sample * (problem.in_h * problem.in_w * problem.in_c)
            if not self.is_direct:
                self.copy.emit(buffers["x"], buffers["padded"], sample)
                start = 0
            for first, count, width, last in self._panels():
                with emit.loop(count) as index:
                    panel = _Panel((first + index) * self.tile.width * self.isa.lanes, width, last)
                    self._emit_panel(buffers, source, start, sample, panel)

    def _panels(self) -> list[tuple[int, int, int, int]]:
        """Return first panel, panels, their width, and lanes used of the last vector."""
        lanes, width = self.isa.lanes, self.tile.width
        full, rest = divmod(blocks(self.problem.out_c, lanes), width)
        last = self.problem.out_c % lanes or lanes
        groups = [(0, full, width, lanes), (full, int(rest > 0), rest, last)]
        if not rest:
            groups = [(0, full - 1, width, lanes), (full - 1, 1, width, last)]
            if last == lanes:
                groups = [(0, full, width, lanes)]
        return [group for group in groups if group[1]]

    def _emit_panel(
        self,
        buffers: Mapping[str, Buffer],
        source: Buffer,
        start: Expr,
        sample: Expr,
        panel: _Panel,
    ) -> None:
        """Write the tiles of all pixels for one panel of channels."""
        problem, tile = self.problem, self.tile
        with (
            emit.tiles(problem.out_h, tile.rows) as y,
            emit.tiles(problem.out_w, tile.columns) as x,
        ):
            pixels = [(y + i, x + j) for i in range(tile.rows) for j in range(tile.columns)]
            row = problem.strides[0] * problem.padded_w * problem.in_c
            column = problem.strides[1] * problem.in_c
            corner = emit.bind_index(start + y * row + x * column)
            offsets = [i * row + j * column for i in range(tile.rows) for j in range(tile.columns)]
            sums = self._products(buffers, source, corner, offsets, panel)
            for (out_y, out_x), of_pixel in zip(pixels, sums, strict=True):
                pixel = (sample * problem.out_h + out_y) * problem.out_w + out_x
                self._leave(buffers, of_pixel, pixel, panel)

    def _products(
        self,
        buffers: Mapping[str, Buffer],
        source: Buffer,
        corner: Expr,
        offsets: list[int],
        panel: _Panel,
    ) -> list[list[Buffer]]:
        """Write the sums of a tile and return their accumulators by pixel and vector."""
        problem, isa = self.problem, self.isa
        width = panel.width
        sums = [self.accumulators[i * width : (i + 1) * width] for i in range(len(offsets))]
        for vector in range(width):
            first = panel.channel + vector * isa.lanes
            bias = emit.bind(emit.load(buffers["bias"], first, isa.lanes))
            for of_pixel in sums:
                emit.store(of_pixel[vector], 0, bias, isa.lanes)
        row = problem.dilations[0] * problem.padded_w * problem.in_c
        column = problem.dilations[1] * problem.in_c
        size = isa.step * isa.lanes  # weights of one step and one vector
        weights = panel.channel * (self.rows * self.per_row * self.steps * isa.step)
        with (
            emit.loop(self.rows) as i,
            emit.loop(self.per_row) as j,
            emit.loop(self.steps) as step,
        ):
            at = weights + ((i * self.per_row + j) * self.steps + step) * (width * size)
            loaded = [isa.load_weights(buffers["weight"], at + v * size) for v in range(width)]
            element = corner + i * row + j * column + step * isa.step
            for offset, of_pixel in zip(offsets, sums, strict=True):
                activations = isa.load_activations(source, element + offset)
                for of_vector, acc in zip(loaded, of_pixel, strict=True):
                    old = emit.load(acc, 0, isa.lanes)
                    emit.store(acc, 0, isa.multiply(old, activations, of_vector), isa.lanes)
        return sums

    def _leave(
        self, buffers: Mapping[str, Buffer], of_pixel: list[Buffer], pixel: Expr, panel: _Panel
    ) -> None:
        """Write the requantizing and storing of the accumulators of one pixel."""
        problem, lanes = self.problem, self.isa.lanes
        values = []
        for vector, acc in enumerate(of_pixel):
            multiplier = emit.load(buffers["multiplier"], panel.channel + vector * lanes, lanes)
            values.append(requantize(emit.load(acc, 0, lanes), multiplier, problem.y, lanes))
        used = (panel.width - 1) * lanes + panel.last
        store_first(buffers["y"], pixel * problem.out_c + panel.channel, values, lanes, used)
