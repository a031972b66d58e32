"""Elements at indices that are values, and elements of constant tables."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr

from edgeq.graph import int_attribute
from edgeq.operators import OPERATORS
from edgeq.operators.binding import bind
from edgeq.tvm.arithmetic import clip, const
from edgeq.tvm.loops import Nest, nested
from edgeq.tvm.operands import Rule, source
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.views import View

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering

Array = NDArray[Any]


def _gather(to: "Lowering", node: ir.Node) -> None:
    """Slices by indices that are values: `y[..., i, ...] = x[..., index[i], ...]`."""
    of, output = source(node), node.outputs[0]
    shape = to.shape(of)
    axis = int_attribute(node, "axis", 0) % len(shape)
    index = to.pointwise(source(node, 1))
    x = View.of(to.stored(of))
    y = View.of(to.new(output, tuple(range(len(to.shape(output))))))
    end = axis + len(index.shape)
    _indexed(
        to, node, x, index, y, shape[axis],
        lambda i: i[axis:end], lambda i, place: [*i[:axis], place, *i[end:]],
    )  # fmt: skip


def _gather_elements(to: "Lowering", node: ir.Node) -> None:
    of, output = source(node), node.outputs[0]
    shape = to.shape(of)
    axis = int_attribute(node, "axis", 0) % len(shape)
    index = to.pointwise(source(node, 1))
    if len(shape) == 1 and str(of.name) in to.constants:
        table = to.constants[str(of.name)]
        kernel = bind(node, OPERATORS)
        to.keep(output, looked_up(index, table, lambda i: kernel(table, i)[0]))
        return
    x = View.of(to.stored(of))
    y = View.of(to.new(output, tuple(range(len(shape)))))
    _indexed(
        to, node, x, index, y, shape[axis],
        lambda i: i, lambda i, place: [*i[:axis], place, *i[axis + 1 :]],
    )  # fmt: skip


def look_up(to: "Lowering", node: ir.Node, index: ir.Value, output: ir.Value) -> None:
    """Make `output` the elements of a table of one axis, by `index`; `node` is GatherElements."""
    table = to.constants[str(source(node).name)]
    kernel = bind(node, OPERATORS)

    def evaluate(places: Array) -> Array:
        return kernel(table, places.reshape(-1))[0].reshape(places.shape)

    to.keep(output, looked_up(to.pointwise(index), table, evaluate))


def looked_up(index: Pointwise, table: Array, evaluate: Callable[[Array], Array]) -> Pointwise:
    """Return the elements of a constant table, by position."""
    inner = index

    def compute(elements: Sequence[Expr], look_up: Callable[[Array, Expr], Expr]) -> Expr:
        at = inner.compute(elements, look_up).astype("int32")
        if not all(view.buffer.dtype.startswith("uint") for view in inner.views):
            at = tirx.Select(at < 0, at + table.size, at)
        if any(_may_leave(view, table.size) for view in inner.views):
            at = _inside(at, table.size)
        return look_up(table, at)

    return Pointwise(
        inner.shape, table.dtype.name, inner.views, compute,
        lambda arrays: evaluate(inner.evaluate(arrays)), inner.cost + 2,
    )  # fmt: skip


def _indexed(
    to: "Lowering",
    node: ir.Node,
    x: View,
    index: Pointwise,
    y: View,
    size: int,
    index_of: Callable[[Sequence[Expr]], Sequence[Expr]],
    place_of: Callable[[Sequence[Expr], Expr], Sequence[Expr]],
) -> None:
    nest = Nest(to.builder.constant)

    def body(i: Sequence[Expr]) -> tirx.Stmt:
        at = nest.value(index, index_of(i)).astype("int32")
        at = tirx.Select(at < 0, at + size, at)
        return nest.store(y, i, nest.load(x, place_of(i, _inside(at, size))))

    function = nest.function(nested(y.shape, body))
    to.builder.add(function, nest.arguments, y.buffer, f"{node.op_type} {node.outputs[0].name}")


def _may_leave(view: View, size: int) -> bool:
    """Whether a user may give an index that a table of `size` elements does not have."""
    return view.buffer.kind == "input" and (view.buffer.dtype != "uint8" or size < 256)


def _inside(at: Expr, size: int) -> Expr:
    """Return an index within `[0, size)`: memory is safe whatever indices a user gives."""
    return clip(at, const(0, "int32"), const(size - 1, "int32"))


GATHERS: Mapping[str, Rule] = MappingProxyType(
    {"Gather": _gather, "GatherElements": _gather_elements}
)
