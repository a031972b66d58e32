"""How many results a kernel holds in registers at once, by a small model of the CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

from edgeq.tvm.dot import Isa
from edgeq.tvm.linear_problem import LinearProblem
from edgeq.tvm.packing import blocks, runs

_LATENCY = 4  # cycles from one product to the next that adds to the same accumulator
_LEAVE = 8  # cycles to requantize and store a vector, or to fetch its bias


@dataclass(frozen=True)
class Tile:
    """What is computed together.

    Attributes:
        rows: Of y.
        columns: Of y.
        width: Vectors of channels.
    """

    rows: int
    columns: int
    width: int


def choose_tile(problem: LinearProblem, isa: Isa) -> Tile:
    """Return the tile of the least estimated time; the first of equals."""
    return min(_tiles(problem, isa), key=lambda tile: _cycles(tile, problem, isa))


def _tiles(problem: LinearProblem, isa: Isa) -> Iterator[Tile]:
    for width in range(1, min(4, blocks(problem.out_c, isa.lanes)) + 1):
        for rows in range(1, min(4, problem.out_h) + 1):
            for columns in range(1, problem.out_w + 1):
                if rows * columns * width + width - 1 > isa.accumulators:
                    break
                yield Tile(rows, columns, width)


def _cycles(tile: Tile, problem: LinearProblem, isa: Isa) -> float:
    rows, per_row, length = runs(problem)
    steps = rows * per_row * blocks(length, isa.step)
    vectors = blocks(problem.out_c, isa.lanes)
    full, rest = divmod(vectors, tile.width)
    pixels = tile.rows * tile.columns

    def panel(width: int) -> float:
        parts = isa.step // isa.group
        dots = pixels * width * parts / isa.dots
        loads = (pixels + width * parts) / isa.loads
        return steps * max(dots, loads, _LATENCY * parts) + _LEAVE * pixels * width

    tiles = blocks(problem.out_h, tile.rows) * blocks(problem.out_w, tile.columns)
    return tiles * (full * panel(tile.width) + (panel(rest) if rest else 0.0))
