"""How many results a kernel holds in registers at once, by a small model of the CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

from edgeq.tvm.dot import Isa
from edgeq.tvm.linear_problem import LinearProblem
from edgeq.tvm.packing import blocks, runs

_LATENCY = 4  # cycles from one product to the next that adds to the same accumulator
_MOVING = 0.1  # cycles that a load costs where others are the limit
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
    yield Tile(1, 1, 1)
    for width in range(1, min(4, blocks(problem.out_c, isa.lanes)) + 1):
        for rows in range(1, min(4, problem.out_h) + 1):
            for columns in range(1, problem.out_w + 1):
                if _registers(rows * columns, width, isa) > isa.core.registers:
                    break
                yield Tile(rows, columns, width)


def _registers(pixels: int, width: int, isa: Isa) -> int:
    accumulators = pixels * width * (4 * isa.lanes // isa.core.bytes or 1)
    parts = isa.step // isa.group
    weights = width * parts
    return accumulators + weights + (1 if isa.form == "accumulate" else 2)


def _cycles(tile: Tile, problem: LinearProblem, isa: Isa) -> float:
    rows, per_row, length = runs(problem)
    steps = rows * per_row * blocks(length, isa.step)
    full, rest = divmod(blocks(problem.out_c, isa.lanes), tile.width)
    pixels = tile.rows * tile.columns
    parts = isa.step // isa.group

    def panel(width: int) -> float:
        dots = pixels * width * parts * (4 * isa.lanes // isa.core.bytes or 1)
        loads = pixels + width * parts
        sums = dots if isa.form == "add" else 0
        conversions = width * parts if isa.widens_weights else 0
        issued = (dots + loads + sums + conversions) / isa.core.issue
        step = max(dots / isa.core.dots, loads / isa.core.loads, issued, _LATENCY * parts)
        each = step + _MOVING * loads  # equal steps: the one that moves less
        return steps * each + _LEAVE * pixels * width / isa.core.dots

    tiles = blocks(problem.out_h, tile.rows) * blocks(problem.out_w, tile.columns)
    return tiles * (full * panel(tile.width) + (panel(rest) if rest else 0.0))
