"""Loop nests as TIR, and the kernel that writes a tensor element by element."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.program import Buffer
from edgeq.tvm.views import View, blocks_of, stride_of

Array = NDArray[Any]
Constant = Callable[[Array], Buffer]


class Nest:
    """Builds one kernel: its buffers, loops and accesses.

    Attributes:
        arguments: The buffers of the kernel, in the order of its parameters.
    """

    def __init__(self, constant: Constant) -> None:
        """Start; `constant` stores an array and returns the buffer that holds it."""
        self.arguments: list[Buffer] = []
        self._constant = constant
        self._declared: dict[str, Any] = {}

    def declared(self, buffer: Buffer) -> tirx.Buffer:
        """Return the parameter that stands for `buffer`."""
        if buffer.name not in self._declared:
            self.arguments.append(buffer)
            self._declared[buffer.name] = tirx.decl_buffer(
                (buffer.elements,), buffer.dtype, buffer.name
            )
        return self._declared[buffer.name]

    def function(self, body: tirx.Stmt) -> PrimFunc:
        """Return the function; its parameters are the buffers that it was found to use."""
        parameters = [self._declared[buffer.name] for buffer in self.arguments]
        return PrimFunc(parameters, body).with_attr("tirx.noalias", True).with_attr("s_tir", True)

    def look_up(self, table: Array, index: Expr) -> Expr:
        """Return an element of a constant table."""
        return tirx.BufferLoad(self.declared(self._constant(table)), [index])

    def load(self, view: View, index: Sequence[Expr]) -> Expr:
        """Return the element of `view` at `index`."""
        return tirx.BufferLoad(self.declared(view.buffer), [self.place(view, index)])

    def store(self, view: View, index: Sequence[Expr], value: Expr) -> tirx.Stmt:
        """Return the statement that writes an element of `view`."""
        buffer = self.declared(view.buffer)
        return tirx.BufferStore(buffer, value, [self.place(view, index)])

    def value(self, x: Pointwise, index: Sequence[Expr]) -> Expr:
        """Return the element of `x` at `index`."""
        return x.compute([self.load(view, index) for view in x.views], self.look_up)

    def place(self, view: View, index: Sequence[Expr]) -> Expr:
        """Return where the element of `view` at `index` lies."""
        total: Expr = tirx.const(view.base, "int32")
        for axis, i in zip(view.axes, index, strict=True):
            stride = stride_of(axis)
            if stride == 0:
                continue
            if stride is not None:
                total = total + i * stride
            elif (blocks := blocks_of(axis)) is not None:
                size, outer, inner = blocks
                total = total + tirx.floordiv(i, size) * outer
                total = total + tirx.floormod(i, size) * inner if inner else total
            else:
                total = total + self.look_up(axis.astype(np.int32), i)
        return total


def nested(sizes: Sequence[int], body: Callable[[Sequence[Expr]], tirx.Stmt]) -> tirx.Stmt:
    """Return loops around `body`, the last size innermost; loops of one step are none."""
    variables = [tirx.Var(f"i{axis}", "int32") for axis in range(len(sizes))]
    index = [
        tirx.const(0, "int32") if size == 1 else var
        for var, size in zip(variables, sizes, strict=True)
    ]
    statement = body(index)
    for var, size in reversed(list(zip(variables, sizes, strict=True))):
        if size > 1:
            statement = tirx.For(var, 0, size, tirx.ForKind.SERIAL, statement)
    return statement


def merged(views: Sequence[View], order: Sequence[int]) -> list[View]:
    """Return the views with their axes in `order`, and neighbours that run on joined to one."""
    axes = [[view.axes[axis] for axis in order] for view in views]
    groups: list[list[int]] = []
    for axis in range(len(order)):
        if groups and all(_runs_on([mine[a] for a in groups[-1]], mine[axis]) for mine in axes):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    joined = []
    for view, mine in zip(views, axes, strict=True):
        wide = []
        for group in groups:
            size = int(np.prod([len(mine[axis]) for axis in group]))
            step = next((s for axis in reversed(group) if (s := _step(mine[axis]))), 0)
            wide.append(mine[group[0]] if len(group) == 1 else np.arange(size) * step)
        joined.append(View(view.buffer, view.base, tuple(wide)))
    return joined


def _step(axis: Array) -> int:
    return (stride_of(axis) or 0) if len(axis) > 1 else 0


def _runs_on(outer: Sequence[Array], inner: Array) -> bool:
    """Whether a step of the outer axes is the length of the inner one; axes of size 1 have none."""
    if any(stride_of(axis) is None for axis in (*outer, inner)):
        return False
    long = [axis for axis in outer if len(axis) > 1]
    return not long or len(inner) == 1 or _step(long[-1]) == _step(inner) * len(inner)


def outermost_first(view: View) -> list[int]:
    """Return the axes by how far their steps go in memory, the longest first."""
    reach = [int(np.abs(axis).max(initial=0)) // max(1, len(axis) - 1) for axis in view.axes]
    return sorted(range(len(reach)), key=lambda axis: (-reach[axis], axis))


def pointwise_kernel(nest: Nest, x: Pointwise, y: View) -> PrimFunc:
    """Return the kernel that writes `x` to `y`."""
    *views, target = merged([*x.views, y], outermost_first(y))

    def body(index: Sequence[Expr]) -> tirx.Stmt:
        elements = [nest.load(view, index) for view in views]
        return nest.store(target, index, x.compute(elements, nest.look_up))

    return nest.function(nested(target.shape, body))
