"""Products of two values, batched and broadcast: which kernel, and the plain one."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from edgeq.tvm.loops import Nest, nested
from edgeq.tvm.tiled_product import Matrices, TiledProduct, is_tiled
from edgeq.tvm.views import View, stride_of

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering


def write_product(
    to: "Lowering",
    operands: tuple[ir.Value, ir.Value],
    output: ir.Value,
    zeros: tuple[int, int],
    finish: Callable[[Expr], Expr],
    *,
    transposed: bool = False,
) -> None:
    """Write `finish(sum((a - za) * (b - zb)))`, as MatMul multiplies; `transposed`: b is.

    Sums of codes are int32; sums of floats are exact, in any order.
    """
    left, right = (View.of(to.stored(value)) for value in operands)
    tensor = to.new(output, tuple(range(len(to.shape(output)))))
    y = View.of(tensor)
    if len(left.shape) == 1:
        left, y = _with_axis(left, 0), _with_axis(y, len(y.shape) - 1)
    if len(right.shape) == 1:
        right, y = _with_axis(right, 1), _with_axis(y, len(y.shape))
    if transposed:
        right = View(right.buffer, right.base, (*right.axes[:-2], right.axes[-1], right.axes[-2]))
    lead = y.shape[:-2]
    left = left.broadcast((*lead, *left.shape[-2:]))
    right = right.broadcast((*lead, *right.shape[-2:]))
    does = f"MatMul {output.name}"
    if not is_tiled(to.isa, left, right):
        nest = Nest(to.builder.constant)
        function = product_kernel(nest, left, right, y, zeros, finish)
        to.builder.add(function, nest.arguments, y.buffer, does)
        return
    a, b = (Matrices(view, zero) for view, zero in zip((left, right), zeros, strict=True))
    made = TiledProduct(to.isa, a, b, y, finish)
    arguments = {view.buffer.name: view.buffer for view in (left, right, y)}
    scratch = {role: to.builder.buffer(*what) for role, what in made.scratch.items()}
    arguments |= scratch
    parameters = {name: (buffer.dtype, buffer.elements) for name, buffer in arguments.items()}
    function = made.function(to.builder.symbol(does), parameters)
    to.builder.add(
        function, list(arguments.values()), y.buffer, does, scratch=list(scratch.values())
    )


def _with_axis(view: View, axis: int) -> View:
    """Return the view with an axis of size 1."""
    steps = list(view.axes)
    steps.insert(axis, np.zeros(1, np.int64))
    return View(view.buffer, view.base, tuple(steps))


def product_kernel(
    nest: Nest,
    a: View,
    b: View,
    y: View,
    zeros: tuple[int, int],
    finish: Callable[[Expr], Expr],
) -> PrimFunc:
    """Return the kernel of `y[..., i, j] = finish(sum((a[..., i, k] - za) * (b[..., k, j] - zb)))`.

    A row of sums is held at a time, and b is read row by row, where its rows lie side by side.
    """
    *lead, rows, depth = a.shape
    columns = b.shape[-1]
    by_rows = stride_of(b.axes[-1]) in (0, 1)
    width = columns if by_rows else 1
    dtype = a.buffer.dtype if a.buffer.dtype.startswith("float") else "int32"
    sums = tirx.decl_buffer((width,), dtype, "sums")

    def units(view: View, index: Sequence[Expr], zero: int) -> Expr:
        code = nest.load(view, index).astype(dtype)
        return code - tirx.const(zero, dtype) if zero else code

    def row(index: Sequence[Expr]) -> tirx.Stmt:
        *outer, i, first = index

        def clear(inner: Sequence[Expr]) -> tirx.Stmt:
            return tirx.BufferStore(sums, tirx.const(0, dtype), [inner[0]])

        def add(inner: Sequence[Expr]) -> tirx.Stmt:
            k, j = inner
            left = units(a, [*outer, i, k], zeros[0])
            right = units(b, [*outer, k, j if by_rows else first], zeros[1])
            return tirx.BufferStore(sums, sums[j] + left * right, [j])

        def put(inner: Sequence[Expr]) -> tirx.Stmt:
            (j,) = inner
            return nest.store(y, [*outer, i, j if by_rows else first], finish(sums[j]))

        return tirx.SeqStmt(
            [
                tirx.AllocBuffer(sums),
                nested([width], clear),
                nested([depth, width], add),
                nested([width], put),
            ]
        )

    return nest.function(nested([*lead, rows, columns // width], row))
