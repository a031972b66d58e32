"""A copy of x with its pads, in the type in which it is multiplied.

A sample lies there as `padded_h` rows of `padded_w` columns of channels. Pads between rows are one
piece: behind a row and before the next.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from tvm import tirx

from edgeq.tvm import emit
from edgeq.tvm.emit import Buffer, Expr
from edgeq.tvm.linear_problem import LinearProblem


@dataclass(frozen=True)
class PaddedCopy:
    """How x is copied.

    Attributes:
        problem: What x is.
        dtype: Of the copy. int16: the zero point is taken away. int8 or uint8 that x is not: the
            codes are shifted by 128.
        repeat: How often each channel stands there.
        bytes: In a register.
    """

    problem: LinearProblem
    dtype: str
    repeat: int = 1
    bytes: int = 64

    @property
    def zero(self) -> int:
        """The zero point of the copy."""
        if self.dtype == "int16":
            return 0
        shift = {"uint8": 0, "int8": -128}
        return self.problem.x_zero + shift[self.dtype] - shift[self.problem.x_dtype]

    @property
    def elements(self) -> int:
        """Of one sample, and of the pads that are written behind the last row."""
        problem = self.problem
        pixels = problem.padded_h * problem.padded_w + problem.pads[1]
        return pixels * problem.in_c * self.repeat

    def emit(self, x: Buffer, copy: Buffer, sample: Expr) -> None:
        """Write the copying of one sample."""
        problem = self.problem
        top, left, bottom, right = problem.pads
        channels = problem.in_c * self.repeat
        row = problem.padded_w * channels
        self._fill(copy, 0, top * row + left * channels)
        if left + right == 0:
            whole = problem.in_h * problem.in_w * problem.in_c
            self._copy(x, sample * whole, copy, top * row, whole)
        else:
            with emit.loop(problem.in_h) as y:
                source = (sample * problem.in_h + y) * problem.in_w * problem.in_c
                target = (top + y) * row + left * channels
                self._copy(x, source, copy, target, problem.in_w * problem.in_c)
                behind = target + problem.in_w * channels
                self._fill(copy, behind, (left + right) * channels)
        self._fill(copy, (top + problem.in_h) * row, bottom * row)

    def _fill(self, copy: Buffer, start: Expr, count: int) -> None:
        for at, lanes in _spans(count, self.bytes):
            with at as offset:
                value = emit.constant(self.zero, self.dtype, lanes)
                emit.store(copy, start + offset, value, lanes)

    def _copy(self, x: Buffer, source: Expr, copy: Buffer, target: Expr, count: int) -> None:
        if self.repeat > 1:
            with emit.loop(count) as offset:
                value = emit.bind(self._converted(emit.load(x, source + offset, 1), 1))
                with emit.loop(self.repeat) as again:
                    at = target + offset * self.repeat + again
                    emit.store(copy, at, value, 1)
            return
        for span, lanes in _spans(count, self.bytes):
            with span as offset:
                value = self._converted(emit.load(x, source + offset, lanes), lanes)
                emit.store(copy, target + offset, value, lanes)

    def _converted(self, value: Expr, lanes: int) -> Expr:
        if self.dtype == "int16":
            wide = emit.cast(value, "int16", lanes)
            return wide - emit.constant(self.problem.x_zero, "int16", lanes)
        if self.dtype == self.problem.x_dtype:
            return value
        bits = emit.cast(value, "uint8", lanes)
        flipped = tirx.bitwise_xor(bits, emit.constant(128, "uint8", lanes))
        return emit.cast(flipped, self.dtype, lanes)


def _spans(count: int, lanes: int) -> list[tuple[AbstractContextManager[Expr], int]]:
    """Return pieces that cover `count` elements: loops, and how many lanes each step has.

    Where a piece is left, it lies over the one before it: both write the same.
    """
    if count == 0:
        return []
    while lanes > count:
        lanes //= 2
    spans: list[tuple[AbstractContextManager[Expr], int]]
    spans = [(_every(lanes, count // lanes), lanes)]
    if count % lanes:
        spans.append((nullcontext(count - lanes), lanes))
    return spans


@contextmanager
def _every(step: int, times: int) -> Iterator[Expr]:
    with emit.loop(times) as index:
        yield index * step
