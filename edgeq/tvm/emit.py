"""Writing TIR: functions, vectors, loops and accumulators.

TVM's builder (`tvm.tirx.script.builder.ir`) appends statements to the open frame; these are the few
forms that the kernels use.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

Expr = Any  # tvm.ir.Expr, or int
Buffer = Any  # tvm.tirx.Buffer


def function(
    symbol: str,
    parameters: Mapping[str, tuple[str, int]],
    body: Callable[[Mapping[str, Buffer]], None],
) -> tirx.PrimFunc:
    """Return the function whose body `body` writes.

    Args:
        symbol: Its name in C.
        parameters: dtype and number of elements by name, in order.
        body: Gets the buffers by name.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"tirx.noalias": True})
        buffers = {
            name: T.arg(name, T.buffer((elements,), dtype))
            for name, (dtype, elements) in parameters.items()
        }
        body(buffers)
    return builder.get()


@contextmanager
def loop(extent: int, name: str = "i") -> Iterator[Expr]:
    """Open a loop and give its variable; no loop and 0 where it runs once."""
    if extent == 1:
        yield 0
        return
    with T.serial(0, extent) as variable:
        yield IRBuilder.name(name, variable)


@contextmanager
def tiles(extent: int, size: int, name: str = "tile") -> Iterator[Expr]:
    """Open a loop over tiles and give the first element of each; the last ends at `extent`.

    Where `size` does not divide `extent`, the last lies over the one before it.
    """
    with loop(-(-extent // size), name) as index:
        start = index * size
        yield bind_index(tirx.Min(start, extent - size)) if extent % size else start


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Open a block that runs where `condition` holds."""
    if condition is True:
        yield
        return
    with T.If(condition), T.Then():
        yield


def bind(value: Expr) -> Expr:
    """Name `value`, so that it is computed once, here."""
    return T.Bind(value)


def bind_index(value: Expr) -> Expr:
    """Name an index; a number needs no name."""
    return value if isinstance(value, int) else T.Bind(value)


def load(buffer: Buffer, start: Expr, lanes: int) -> Expr:
    """Return `lanes` elements from `start` on; a scalar for 1."""
    return buffer[start] if lanes == 1 else buffer[tirx.Ramp(start, 1, lanes)]


def store(buffer: Buffer, start: Expr, value: Expr, lanes: int) -> None:
    """Write `lanes` elements from `start` on."""
    T.buffer_store(buffer, value, [start if lanes == 1 else tirx.Ramp(start, 1, lanes)])


def vector(dtype: str, lanes: int) -> str:
    """Return TVM's name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def constant(value: float, dtype: str, lanes: int = 1) -> Expr:
    """Return `value` in every lane."""
    scalar = tirx.const(value, dtype)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    """Return `value` converted as C does."""
    return value.astype(vector(dtype, lanes))


def reinterpret(value: Expr, dtype: str, lanes: int) -> Expr:
    """Return the bits of `value` as another type."""
    return T.reinterpret(vector(dtype, lanes), value)


def minimum(a: Expr, b: Expr) -> Expr:
    """Return the smaller, lane by lane."""
    return tirx.Min(a, b)


def maximum(a: Expr, b: Expr) -> Expr:
    """Return the larger, lane by lane."""
    return tirx.Max(a, b)


def part(value: Expr, start: int, count: int) -> Expr:
    """Return `count` lanes of a vector from `start` on."""
    return tirx.Shuffle([value], [tirx.const(start + i, "int32") for i in range(count)])


def joined(values: Sequence[Expr], lanes: int) -> Expr:
    """Return vectors of `lanes` lanes, one behind the other, as one."""
    return tirx.Shuffle(values, [tirx.const(i, "int32") for i in range(lanes * len(values))])


def local(dtype: str, lanes: int) -> Buffer:
    """Return a new accumulator; always accessed whole, it becomes a register."""
    return IRBuilder.name("acc", T.alloc_buffer((lanes,), dtype))


def pieces(count: int, largest: int) -> Sequence[tuple[int, int]]:
    """Return starts and powers of two not above `largest` that cover `count` in order."""
    found = []
    start = 0
    size = largest
    while start < count:
        while size > count - start:
            size //= 2
        found.append((start, size))
        start += size
    return found
