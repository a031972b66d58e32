"""Products of matrices that are values: packed when they are known, then multiplied in registers.

    sum((a - za) * (b - zb)) = sum(a' * b') + da * sum(b') + db * sum(a') + depth * da * db

a' and b' are the codes as the CPU multiplies them. int16: without zero points, da = db = 0. 8 bits:
the codes themselves, or shifted by 128 into the other 8-bit type, and da, db what is missing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from edgeq.tvm import emit
from edgeq.tvm.dot import Isa
from edgeq.tvm.emit import Buffer, Expr
from edgeq.tvm.packing import blocks
from edgeq.tvm.views import View, stride_of

_SHIFT = {"uint8": 0, "int8": -128}  # of codes as the other type holds them
_LARGEST = 8000  # products in a sum: all four terms stay within int32


@dataclass(frozen=True, eq=False)
class Matrices:
    """Matrices of codes, one for each index of the leading axes.

    Attributes:
        view: Where they lie; each axis has a constant step.
        zero: Their zero point.
    """

    view: View
    zero: int

    @property
    def dtype(self) -> str:
        """Of the codes."""
        return self.view.buffer.dtype

    @property
    def steps(self) -> list[int]:
        """From element to element along each axis."""
        return [stride_of(axis) or 0 for axis in self.view.axes]

    def taken_off(self, dtype: str) -> int:
        """Return what is subtracted from a code to hold it in `dtype`."""
        return self.zero if dtype == "int16" else _SHIFT[self.dtype] - _SHIFT[dtype]

    def load(self, buffers: Mapping[str, Buffer], at: Expr, dtype: str) -> Expr:
        """Return the code at a place of the buffer, in `dtype`."""
        code = emit.cast(buffers[self.view.buffer.name][at], "int32", 1)
        off = self.taken_off(dtype)
        return emit.cast(code - off if off else code, dtype, 1)


def is_tiled(isa: Isa, *views: View) -> bool:
    """Whether products of these operands can be made so; the first is the left one."""
    regular = all(stride_of(axis) is not None for view in views for axis in view.axes)
    codes = all(view.buffer.dtype in _SHIFT for view in views)
    return not isa.is_scalar and regular and codes and views[0].shape[-1] <= _LARGEST


class TiledProduct:
    """The writer of one kernel: `y = finish(sum((a - za) * (b - zb)))` over the last axes.

    Attributes:
        scratch: dtype and number of elements of the memory that the kernel needs, by name.
    """

    def __init__(
        self, isa: Isa, a: Matrices, b: Matrices, y: View, finish: Callable[[Expr], Expr]
    ) -> None:
        self.isa, self.a, self.b, self.y, self.finish = isa, a, b, y, finish
        *self.lead, self.rows, self.depth = a.view.shape
        self.columns = b.view.shape[-1]
        self.steps = blocks(self.depth, isa.step)
        self.vectors = blocks(self.columns, isa.lanes)
        self.right = "int16" if isa.operand == "int16" else "int8"
        self.da, self.db = (
            0 if isa.operand == "int16" else m.taken_off(dtype) - m.zero
            for m, dtype in ((a, isa.operand), (b, self.right))
        )
        self.width, self.tile = _tile(isa, self.vectors, self.rows, self.db != 0)
        whole = self.depth % isa.step == 0 and a.steps[-1] == 1
        self.is_direct = whole and a.dtype == isa.operand
        padded = self.steps * isa.step
        self.scratch = {"packed": (self.right, self.vectors * isa.lanes * padded)}
        if not self.is_direct:
            self.scratch["left"] = (isa.operand, self.rows * padded)
        if self.da:
            self.scratch["offsets"] = ("int32", self.vectors * isa.lanes)

    def function(self, symbol: str, parameters: Mapping[str, tuple[str, int]]) -> PrimFunc:
        """Return the TIR; scratch has the names of `scratch`, operands those of their buffers."""
        return emit.function(symbol, parameters, self._emit)

    def _emit(self, buffers: Mapping[str, Buffer]) -> None:
        count = self.tile * self.width
        sums = [emit.local("int32", self.isa.lanes) for _ in range(count)]
        of_rows = [emit.local("int32", self.isa.lanes) for _ in range(self.tile if self.db else 0)]
        out = T.alloc_buffer((count * self.isa.lanes,), "int32")
        with _loops(self.lead) as index:
            self._pack_right(buffers, _start(self.b, index))
            start, row = _start(self.a, index), self.a.steps[-2]
            source = buffers[self.a.view.buffer.name]
            if not self.is_direct:
                self._pack_left(buffers, start)
                source, start, row = buffers["left"], 0, self.steps * self.isa.step
            with (
                emit.tiles(self.rows, self.tile) as first,
                emit.loop(self.vectors // self.width) as panel,
            ):
                self._multiply(buffers, (source, start + first * row, row), panel, sums, of_rows)
                for number, acc in enumerate(sums):
                    value = emit.load(acc, 0, self.isa.lanes)
                    emit.store(out, number * self.isa.lanes, value, self.isa.lanes)
                self._leave(buffers, index, (first, panel), out, of_rows)

    def _pack_right(self, buffers: Mapping[str, Buffer], start: Expr) -> None:
        """Write b', panel by panel: `[panel][step][vector][part][lane][group]`; zeros behind it."""
        isa, down, across = self.isa, *self.b.steps[-2:]
        count = isa.lanes * isa.group
        with (
            emit.loop(self.vectors // self.width) as panel,
            emit.loop(self.width) as vector,
            emit.loop(self.steps) as step,
            emit.loop(isa.step // isa.group) as part,
            emit.loop(isa.lanes) as lane,
        ):
            at = ((panel * self.steps + step) * self.width + vector) * (isa.step * isa.lanes)
            j = (panel * self.width + vector) * isa.lanes + lane
            j = tirx.min(j, self.columns - 1) if self.columns % isa.lanes else j
            for g in range(isa.group):
                k = step * isa.step + part * isa.group + g
                inside = tirx.min(k, self.depth - 1) if self.depth % isa.step else k
                code = self.b.load(buffers, start + inside * down + j * across, self.right)
                if self.depth % isa.step:
                    code = tirx.Select(k < self.depth, code, emit.constant(0, self.right))
                emit.store(buffers["packed"], at + part * count + lane * isa.group + g, code, 1)
        if self.da:
            self._sum_columns(buffers)

    def _sum_columns(self, buffers: Mapping[str, Buffer]) -> None:
        isa = self.isa
        ones = emit.constant(1, isa.operand, isa.lanes * isa.group)
        acc = emit.local("int32", isa.lanes)
        size = isa.step * isa.lanes
        with emit.loop(self.vectors // self.width) as panel, emit.loop(self.width) as vector:
            emit.store(acc, 0, emit.constant(0, "int32", isa.lanes), isa.lanes)
            with emit.loop(self.steps) as step:
                at = ((panel * self.steps + step) * self.width + vector) * size
                codes = isa.load_weights(buffers["packed"], at)
                old = emit.load(acc, 0, isa.lanes)
                emit.store(acc, 0, isa.multiply(old, ones, codes), isa.lanes)
            factor = emit.constant(self.da, "int32", isa.lanes)
            rest = emit.constant(self.depth * self.da * self.db, "int32", isa.lanes)
            total = emit.load(acc, 0, isa.lanes) * factor + rest
            place = (panel * self.width + vector) * isa.lanes
            emit.store(buffers["offsets"], place, total, isa.lanes)

    def _pack_left(self, buffers: Mapping[str, Buffer], start: Expr) -> None:
        """Write a', row by row; zeros behind each."""
        (down, across), padded = self.a.steps[-2:], self.steps * self.isa.step
        with emit.loop(self.rows) as i:
            with emit.loop(self.depth) as k:
                code = self.a.load(buffers, start + i * down + k * across, self.isa.operand)
                emit.store(buffers["left"], i * padded + k, code, 1)
            for k in range(self.depth, padded):
                zero = emit.constant(0, self.isa.operand)
                emit.store(buffers["left"], i * padded + k, zero, 1)

    def _multiply(
        self,
        buffers: Mapping[str, Buffer],
        source: tuple[Buffer, Expr, int],
        panel: Expr,
        sums: Sequence[Buffer],
        of_rows: Sequence[Buffer],
    ) -> None:
        """Write the sums of a tile of rows and a panel of columns."""
        isa, size = self.isa, self.isa.step * self.isa.lanes
        left, start, row = source
        ones = [emit.constant(1, self.right, isa.lanes * isa.group)]
        for acc in (*sums, *of_rows):
            emit.store(acc, 0, emit.constant(0, "int32", isa.lanes), isa.lanes)
        with emit.loop(self.steps) as step:
            at = (panel * self.steps + step) * (self.width * size)
            loaded = [isa.load_weights(buffers["packed"], at + v * size) for v in range(self.width)]
            for r in range(self.tile):
                codes = isa.load_activations(left, start + r * row + step * isa.step)
                mine = [*sums[r * self.width : (r + 1) * self.width], *of_rows[r : r + 1]]
                for acc, right in zip(mine, [*loaded, ones], strict=False):
                    old = emit.load(acc, 0, isa.lanes)
                    emit.store(acc, 0, isa.multiply(old, codes, right), isa.lanes)

    def _leave(
        self,
        buffers: Mapping[str, Buffer],
        index: Sequence[Expr],
        place: tuple[Expr, Expr],
        out: Buffer,
        of_rows: Sequence[Buffer],
    ) -> None:
        """Write what `finish` makes of a tile of sums."""
        first, panel = place
        span = self.width * self.isa.lanes
        y, steps = Matrices(self.y, 0), Matrices(self.y, 0).steps
        used = tirx.min(self.columns - panel * span, span) if self.columns % span else span
        for r in range(self.tile):
            start = _start(y, index) + (first + r) * steps[-2] + panel * span * steps[-1]
            extra = self.db * of_rows[r][0] if self.db else None
            with T.serial(0, used) as j:
                acc = out[r * span + j]
                if self.da:
                    acc = acc + buffers["offsets"][panel * span + j]
                acc = acc if extra is None else acc + extra
                emit.store(buffers[self.y.buffer.name], start + j * steps[-1], self.finish(acc), 1)


def _tile(isa: Isa, vectors: int, rows: int, has_row_sums: bool) -> tuple[int, int]:
    """Return vectors and rows that are computed together: the most products for each load."""
    registers = max(1, isa.lanes * 4 // isa.core.bytes)

    def height(width: int) -> int:
        free = isa.core.registers // registers - width - 2
        return max(1, min(rows, free // (width + has_row_sums)))

    widths = [width for width in (1, 2, 3, 4) if vectors % width == 0]
    return max(
        ((width, height(width)) for width in widths),
        key=lambda tile: tile[0] * tile[1] / (tile[0] + tile[1]),
    )


def _start(matrices: Matrices, index: Sequence[Expr]) -> Expr:
    """Return where a matrix starts."""
    places = zip(index, matrices.steps, strict=False)
    return matrices.view.base + sum(i * step for i, step in places if step)


@contextmanager
def _loops(extents: Sequence[int]) -> Iterator[list[Expr]]:
    """Open a loop for each extent and give their variables."""
    if not extents:
        yield []
        return
    with emit.loop(extents[0]) as index, _loops(extents[1:]) as others:
        yield [index, *others]
