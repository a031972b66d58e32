"""Reductions: sums, means and extremes over axes.

Integers may be summed in any order, and so may the floats of a certified model, whose sums are
exact. So several elements are taken at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from edgeq.graph import int_attribute
from edgeq.operators import OPERATORS
from edgeq.operators.binding import bind
from edgeq.tvm.arithmetic import const, highest, lowest
from edgeq.tvm.elementwise import combined
from edgeq.tvm.loops import Nest, merged, nested, outermost_first
from edgeq.tvm.operands import Rule, constant_input, source
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.program import Layout
from edgeq.tvm.scalars import SCALARS
from edgeq.tvm.views import View

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering

_LANES = 16  # elements at a time, on CPUs with vectors
Combine = Callable[[Expr, Expr], Expr]


def _reduction(first: Callable[[str], Expr], combine: Combine, mean: bool = False) -> Rule:
    """Return the rule of a reduction; a mean is one sum and one division."""

    def rule(to: "Lowering", node: ir.Node) -> None:
        output, x = node.outputs[0], to.pointwise(source(node))
        axes = constant_input(to, node, 1)
        if axes is None or not axes.size:
            if int_attribute(node, "noop_with_empty_axes", 0):
                to.keep(output, x)
                return
            axes = np.arange(len(x.shape))
        over = sorted(int(axis) % len(x.shape) for axis in axes)
        if not over:  # a scalar
            to.keep(output, x)
            return
        _reduce(to, node, x, over, first(x.dtype), combine, mean=mean)

    return rule


def _reduce(
    to: "Lowering",
    node: ir.Node,
    x: Pointwise,
    over: Sequence[int],
    first: Expr,
    combine: Combine,
    *,
    mean: bool = False,
) -> None:
    output = node.outputs[0]
    kept = tuple(1 if axis in over else size for axis, size in enumerate(x.shape))
    total = to.new(output) if not mean else None
    if total is None:
        total = to.builder.tensor(f"{output.name}_sum", x.dtype, Layout.plain(to.shape(output)))
    # The same memory with the axes that are gone as axes of size 1.
    view = View.of(total).moved(lambda places: places.reshape(kept))
    assert view is not None
    nest = Nest(to.builder.constant)
    lanes = 1 if to.isa.is_scalar else _LANES
    function = reduction_kernel(nest, x, view, over, first, combine, lanes)
    does = f"{node.op_type} {output.name}"
    to.builder.add(function, nest.arguments, view.buffer, does)
    if mean:
        count = const(np.prod([x.shape[axis] for axis in over]), x.dtype)
        kernel = bind(node, OPERATORS)
        to.keep(
            output,
            combined(
                [Pointwise.of(total)], to.shape(output), x.dtype,
                lambda v: SCALARS["Div"](node, (v[0], count)),
                lambda *a: kernel(*a)[0], 4,
            ),
        )  # fmt: skip


def _global_average_pool(to: "Lowering", node: ir.Node) -> None:
    x = to.pointwise(source(node))
    over = list(range(2, len(x.shape)))
    _reduce(to, node, x, over, const(0, x.dtype), tirx.Add, mean=True)


def _global_max_pool(to: "Lowering", node: ir.Node) -> None:
    x = to.pointwise(source(node))
    _reduce(to, node, x, list(range(2, len(x.shape))), lowest(x.dtype), tirx.max)


def reduction_kernel(
    nest: Nest,
    x: Pointwise,
    y: View,
    axes: Sequence[int],
    first: Expr,
    combine: Combine,
    lanes: int,
) -> PrimFunc:
    """Return the kernel that reduces axes of `x`, which has views.

    `y` has the axes that are left, and size 1 where axes are gone.
    """
    order = outermost_first(max(x.views, key=lambda view: np.ptp(view.places)))
    kept = merged([*x.views, y], [axis for axis in order if axis not in axes])
    gone = merged(x.views, [axis for axis in order if axis in axes])
    target = kept.pop()
    views = [View(k.buffer, k.base, (*k.axes, *g.axes)) for k, g in zip(kept, gone, strict=True)]
    left, over = target.shape, gone[0].shape
    long = [axis for axis in order if x.shape[axis] > 1]
    is_inner = not long or long[-1] in axes

    def value(index: Sequence[Expr]) -> Expr:
        return x.compute([nest.load(view, index) for view in views], nest.look_up)

    if not is_inner:
        return nest.function(_side_by_side(nest, target, left, over, first, combine, value))
    if over[-1] < 2 * lanes:
        lanes = over[-1] if lanes > 1 and len(over) > 1 else 1
    return nest.function(_in_lanes(nest, target, (left, over), first, combine, value, lanes))


def _side_by_side(
    nest: Nest,
    y: View,
    left: Sequence[int],
    over: Sequence[int],
    first: Expr,
    combine: Combine,
    value: Callable[[Sequence[Expr]], Expr],
) -> tirx.Stmt:
    """Return loops that reduce neighbours side by side, in `y` itself."""

    def body(outer: Sequence[Expr]) -> tirx.Stmt:
        def clear(inner: Sequence[Expr]) -> tirx.Stmt:
            return nest.store(y, [*outer, *inner], first)

        def step(index: Sequence[Expr]) -> tirx.Stmt:
            *gone, inner = index
            where = [*outer, inner]
            return nest.store(y, where, combine(nest.load(y, where), value([*where, *gone])))

        return tirx.SeqStmt([nested(left[-1:], clear), nested([*over, left[-1]], step)])

    return nested(left[:-1], body)


def _in_lanes(
    nest: Nest,
    y: View,
    sizes: tuple[Sequence[int], Sequence[int]],
    first: Expr,
    combine: Combine,
    value: Callable[[Sequence[Expr]], Expr],
    lanes: int,
) -> tirx.Stmt:
    """Return loops that reduce a row in several totals."""
    left, over = sizes
    totals = tirx.decl_buffer((lanes,), str(first.ty.dtype), "totals")
    whole, rest = divmod(over[-1], lanes)

    def body(outer: Sequence[Expr]) -> tirx.Stmt:
        def clear(index: Sequence[Expr]) -> tirx.Stmt:
            return tirx.BufferStore(totals, first, [index[0]])

        def add(gone: Sequence[Expr], lane: Expr) -> tirx.Stmt:
            return tirx.BufferStore(totals, combine(totals[lane], value([*outer, *gone])), [lane])

        def step(index: Sequence[Expr]) -> tirx.Stmt:
            *gone, block, lane = index
            return add([*gone, block * lanes + lane], lane)

        def end(index: Sequence[Expr]) -> tirx.Stmt:
            *gone, lane = index
            return add([*gone, whole * lanes + lane], lane)

        return tirx.SeqStmt(
            [
                tirx.AllocBuffer(totals),
                nested([lanes], clear),
                nested([*over[:-1], whole, lanes], step),
                *([nested([*over[:-1], rest], end)] if rest else []),
                nest.store(y, outer, reduce(combine, [totals[lane] for lane in range(lanes)])),
            ]
        )

    return nested(left, body)


REDUCTIONS: Mapping[str, Rule] = MappingProxyType(
    {
        "GlobalAveragePool": _global_average_pool,
        "GlobalMaxPool": _global_max_pool,
        "ReduceMax": _reduction(lowest, tirx.max),
        "ReduceMean": _reduction(lambda dtype: const(0, dtype), tirx.Add, mean=True),
        "ReduceMin": _reduction(highest, tirx.min),
        "ReduceSum": _reduction(lambda dtype: const(0, dtype), tirx.Add),
    }
)
