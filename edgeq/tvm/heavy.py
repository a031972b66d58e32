"""Operators that are kernels of their own: one rule each."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr

from edgeq.errors import UnsupportedOperatorError
from edgeq.graph import int_attribute, ints_attribute, string_attribute
from edgeq.numerics.qtype import QTYPES, qtype_of
from edgeq.numerics.windows import Windows, windows
from edgeq.operators import OPERATORS, pooling
from edgeq.operators.binding import bind, describe
from edgeq.tvm.arithmetic import const
from edgeq.tvm.elementwise import combined
from edgeq.tvm.loops import Nest, nested
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.products import write_product
from edgeq.tvm.program import Layout
from edgeq.tvm.quantization import quantized
from edgeq.tvm.scalars import SCALARS
from edgeq.tvm.views import View

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering

Array = NDArray[Any]
Rule = Callable[["Lowering", ir.Node], None]


def _source(node: ir.Node, number: int = 0) -> ir.Value:
    value = node.inputs[number]
    assert value is not None
    return value


def _constant(to: "Lowering", node: ir.Node, number: int) -> Array | None:
    if len(node.inputs) <= number or node.inputs[number] is None:
        return None
    name = str(node.inputs[number].name)  # type: ignore[union-attr]
    if name not in to.constants:
        raise UnsupportedOperatorError(f"{describe(node)}: input {number} is not constant")
    return to.constants[name]


def _lowest(dtype: str) -> Expr:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return tirx.min_value(dtype)
    return const(np.iinfo(kind).min, dtype)


def _highest(dtype: str) -> Expr:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return tirx.max_value(dtype)
    return const(np.iinfo(kind).max, dtype)


def _reduction(
    first: Callable[[str], Expr], combine: Callable[[Expr, Expr], Expr], mean: bool = False
) -> Rule:
    """Return the rule of a reduction; a mean is one sum and one division."""

    def rule(to: "Lowering", node: ir.Node) -> None:
        source, output = _source(node), node.outputs[0]
        x = to.pointwise(source)
        axes = _constant(to, node, 1)
        if axes is None or not axes.size:
            if int_attribute(node, "noop_with_empty_axes", 0):
                to.keep(output, x)
                return
            axes = np.arange(len(x.shape))
        over = sorted(int(axis) % len(x.shape) for axis in axes)
        _reduce(to, node, x, over, first(x.dtype), combine, mean=mean)

    return rule


def _reduce(
    to: "Lowering",
    node: ir.Node,
    x: Pointwise,
    over: Sequence[int],
    first: Expr,
    combine: Callable[[Expr, Expr], Expr],
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
    to.builder.reduce(x, view, over, first, combine, f"{node.op_type} {output.name}")
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
    x = to.pointwise(_source(node))
    over = list(range(2, len(x.shape)))
    _reduce(to, node, x, over, const(0, x.dtype), lambda a, b: a + b, mean=True)


def _global_max_pool(to: "Lowering", node: ir.Node) -> None:
    x = to.pointwise(_source(node))
    _reduce(to, node, x, list(range(2, len(x.shape))), _lowest(x.dtype), tirx.max)


def _windows(to: "Lowering", node: ir.Node) -> Windows:
    shape = to.shape(_source(node))
    kernel = ints_attribute(node, "kernel_shape", ())
    pads, strides, dilations = (
        ints_attribute(node, name, ()) for name in ("pads", "strides", "dilations")
    )
    auto_pad: Any = string_attribute(node, "auto_pad", "NOTSET")
    ceil = bool(int_attribute(node, "ceil_mode", 0))
    return windows(shape[2:], kernel, strides, dilations, pads, auto_pad, ceil)


def _padded(to: "Lowering", source: ir.Value, found: Windows, fill: Expr) -> View:
    """Return the input of a pool with its padding, in memory."""
    tensor = to.stored(source)
    if not found.needs_padding:
        return View.of(tensor)
    layout = tensor.layout
    shape = (*layout.shape[:2], *found.padded)
    padded = to.builder.tensor(
        f"{source.name}_padded", tensor.buffer.dtype, Layout(shape, layout.order)
    )
    whole = View.of(padded)
    to.builder.write(
        Pointwise(shape, tensor.buffer.dtype, (), lambda v, t: fill, lambda a: a[0]),
        whole,
        f"Pad {source.name}",
    )
    inner = whole.moved(
        lambda places: places[
            (..., *(slice(b, b + n) for b, n in zip(found.begin, found.input, strict=True)))
        ]
    )
    assert inner is not None
    to.builder.write(Pointwise.of(tensor), inner, f"Pad {source.name}")
    return whole


def _pool(
    to: "Lowering", node: ir.Node, fill: Expr, finish: Callable[[Sequence[Expr]], Expr]
) -> Pointwise:
    """Return a pool as a function of as many views as a window has elements."""
    found = _windows(to, node)
    whole = _padded(to, _source(node), found, fill)
    parts = []
    for offset in found.offsets():
        view = whole.moved(lambda places, o=offset: places[(..., *o)])  # type: ignore[misc]
        assert view is not None
        parts.append(Pointwise.of_view(view))
    output = node.outputs[0]
    kernel = bind(node, OPERATORS)
    return combined(
        parts, to.shape(output), to.dtype(output), finish, lambda *a: kernel(*a)[0], len(parts)
    )


def _max_pool(to: "Lowering", node: ir.Node) -> None:
    if len([v for v in node.outputs if v.name]) > 1:
        raise UnsupportedOperatorError(f"{describe(node)}: indices of maxima")
    dtype = to.dtype(node.outputs[0])
    to.keep(node.outputs[0], _pool(to, node, _lowest(dtype), lambda v: reduce(tirx.max, v)))


def _average_pool(to: "Lowering", node: ir.Node) -> None:
    dtype = to.dtype(node.outputs[0])
    sums = _pool(to, node, const(0, dtype), lambda v: reduce(lambda a, b: a + b, v))
    counts = pooling.window_counts(
        _windows(to, node), bool(int_attribute(node, "count_include_pad", 0))
    )
    shares = to.parameter(counts.astype(dtype) if np.unique(counts).size > 1 else
                          np.asarray(counts.flat[0], dtype))  # fmt: skip
    x = combined([sums, shares], sums.shape, dtype, lambda v: v[0] / v[1], lambda a, b: a / b, 4)
    to.keep(node.outputs[0], x)


def _concat(to: "Lowering", node: ir.Node) -> None:
    output = node.outputs[0]
    axis = int_attribute(node, "axis", 0) % len(to.shape(output))
    tensor = to.new(output)
    whole, start = View.of(tensor), 0
    for value in node.inputs:
        assert value is not None
        size = to.shape(value)[axis]
        part = (slice(None),) * axis + (slice(start, start + size),)
        view = whole.moved(lambda places, p=part: places[p])  # type: ignore[misc]
        if view is not None:
            x = to.pointwise(value)
            if not x.shape:
                x = combined([x], view.shape, x.dtype, lambda v: v[0], lambda a: a, 0)
            to.builder.write(x, view, f"Concat {output.name}")
        start += size


def _pad(to: "Lowering", node: ir.Node) -> None:
    mode = string_attribute(node, "mode", "constant")
    output, source = node.outputs[0], _source(node)
    kernel = bind(node, OPERATORS)
    rest = [_constant(to, node, number) for number in range(1, len(node.inputs))]
    if mode != "constant":
        x = to.pointwise(source).moved(lambda places: kernel(places, *rest)[0])
        if x is None:
            raise UnsupportedOperatorError(f"{describe(node)}: mode {mode}")
        to.keep(output, x)
        return
    x = Pointwise.of(to.stored(source))
    tensor = to.new(output)
    value = rest[1] if len(rest) > 1 and rest[1] is not None else np.zeros((), x.dtype)
    fill = const(value.reshape(())[()], x.dtype)
    to.builder.write(
        Pointwise(to.shape(output), x.dtype, (), lambda v, t: fill, lambda a: a[0]),
        View.of(tensor), f"Pad {output.name}",
    )  # fmt: skip
    # Where each element comes from, -1 for the border.
    (view,) = x.views
    marked = kernel(np.arange(int(np.prod(x.shape))).reshape(x.shape) + 1, *_filled(rest))[0] - 1
    inside = np.argwhere(marked >= 0)
    low, high = inside.min(0), inside.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    kept = np.unravel_index(marked[box].reshape(-1), x.shape)
    cut = tuple(slice(int(k.min()), int(k.max()) + 1) for k in kept)
    target, inner = View.of(tensor).moved(lambda p: p[box]), view.moved(lambda p: p[cut])
    assert target is not None and inner is not None
    to.builder.write(Pointwise.of_view(inner), target, f"Pad {output.name}")


def _filled(rest: Sequence[Array | None]) -> list[Array | None]:
    found = list(rest)
    if len(found) > 1:
        found[1] = np.zeros((), np.int64)
    return found


def _gather(to: "Lowering", node: ir.Node) -> None:
    """Slices by indices that are values: `y[..., i, ...] = x[..., index[i], ...]`."""
    source, output = _source(node), node.outputs[0]
    shape = to.shape(source)
    axis = int_attribute(node, "axis", 0) % len(shape)
    index = to.pointwise(_source(node, 1))
    x = View.of(to.stored(source))
    y = View.of(to.new(output, tuple(range(len(to.shape(output))))))
    lead, middle = axis, len(index.shape)
    _indexed(to, node, x, index, y, shape[axis],
             lambda i: i[lead : lead + middle], lambda i, p: [*i[:lead], p, *i[lead + middle :]])  # fmt: skip


def _gather_elements(to: "Lowering", node: ir.Node) -> None:
    source, output = _source(node), node.outputs[0]
    shape = to.shape(source)
    axis = int_attribute(node, "axis", 0) % len(shape)
    index = to.pointwise(_source(node, 1))
    if len(shape) == 1 and str(source.name) in to.constants:
        table = to.constants[str(source.name)]
        kernel = bind(node, OPERATORS)
        to.keep(output, looked_up(index, table, lambda i: kernel(table, i)[0]))
        return
    x = View.of(to.stored(source))
    y = View.of(to.new(output, tuple(range(len(shape)))))
    _indexed(to, node, x, index, y, shape[axis], lambda i: i,
             lambda i, p: [*i[:axis], p, *i[axis + 1 :]])  # fmt: skip


def look_up(to: "Lowering", node: ir.Node, index: ir.Value, output: ir.Value) -> None:
    """Make `output` the elements of a table of one axis, by `index`; `node` is GatherElements."""
    table = to.constants[str(_source(node).name)]
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
        # Memory is safe whatever the indices are.
        at = tirx.max(tirx.min(at, const(size - 1, "int32")), const(0, "int32"))
        return nest.store(y, i, nest.load(x, place_of(i, at)))

    function = nest.function(nested(y.shape, body))
    to.builder.add(function, nest.arguments, y.buffer, f"{node.op_type} {node.outputs[0].name}")


def _cumulative_sum(to: "Lowering", node: ir.Node) -> None:
    if int_attribute(node, "exclusive", 0) or int_attribute(node, "reverse", 0):
        raise UnsupportedOperatorError(f"{describe(node)}: exclusive or reverse")
    output, x = node.outputs[0], to.pointwise(_source(node))
    along = _constant(to, node, 1)
    assert along is not None
    axis = int(along.reshape(())) % len(x.shape)
    y = View.of(to.new(output))
    nest = Nest(to.builder.constant)
    order = [axis, *(a for a in range(len(x.shape)) if a != axis)]  # sums run beside each other

    def body(i: Sequence[Expr]) -> tirx.Stmt:
        where: list[Expr] = [const(0, "int32")] * len(order)
        for a, index in zip(order, i, strict=True):
            where[a] = index
        before = list(where)
        before[axis] = where[axis] - 1
        value = nest.value(x, where)
        if x.shape[axis] == 1:
            return nest.store(y, where, value)
        return tirx.IfThenElse(
            where[axis] > 0,
            nest.store(y, where, nest.load(y, before) + value),
            nest.store(y, where, value),
        )

    function = nest.function(nested([x.shape[a] for a in order], body))
    to.builder.add(function, nest.arguments, y.buffer, f"CumSum {output.name}")


def _matmul_integer(to: "Lowering", node: ir.Node) -> None:
    zeros = [_constant(to, node, number) for number in (2, 3)]
    a, b = (0 if zero is None else int(zero.reshape(())) for zero in zeros)
    operands = _source(node), _source(node, 1)
    write_product(to, operands, node.outputs[0], (a, b), lambda acc: acc)


def _matmul(to: "Lowering", node: ir.Node) -> None:
    """A product of floats whose sums are exact: in any order the same."""
    operands = _source(node), _source(node, 1)
    write_product(to, operands, node.outputs[0], (0, 0), lambda total: total)


def _arg_max(to: "Lowering", node: ir.Node) -> None:
    raise UnsupportedOperatorError(
        f"{describe(node)}: not on devices; cut the graph in front of it"
    )


def quantized_by_channel(
    to: "Lowering", node: ir.Node, evaluate: Callable[..., Array]
) -> Pointwise:
    """QuantizeLinear whose parameters differ by channel or block, or are values."""
    x, zero_value = to.pointwise(_source(node)), None
    if len(node.inputs) > 2:
        zero_value = node.inputs[2]
    if zero_value is not None:
        qtype = qtype_of(np.dtype(to.dtype(zero_value)))
    else:
        kind = int_attribute(node, "output_dtype", 0)
        qtype = QTYPES[ir.DataType(kind).name.lower()] if kind else QTYPES["uint8"]
    scale = _parameter(to, node, _source(node, 1), x.shape)
    zero: Pointwise | int = 0
    if zero_value is not None:
        known = to.constants.get(str(zero_value.name))
        alike = known is not None and np.unique(known).size == 1
        zero = (
            int(known.flat[0])
            if alike and known is not None
            else _parameter(to, node, zero_value, x.shape)
        )
    return quantized(x, scale, zero, qtype, evaluate)


def _parameter(to: "Lowering", node: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> Pointwise:
    """Return a scale or zero point such that it broadcasts to `shape`."""
    x = to.pointwise(value)
    if int(np.prod(x.shape)) == 1:
        return x.moved(lambda places: places.reshape(())) or x
    axis = int_attribute(node, "axis", 1) % len(shape)
    size = int_attribute(node, "block_size", 0)

    def move(places: Array) -> Array:
        if not size:
            return places.reshape(-1, *(1,) * (len(shape) - axis - 1))
        if places.shape[axis] == 1:
            return places
        return np.repeat(places, size, axis)[tuple(slice(0, n) for n in shape)]

    moved = x.moved(move) if x.cost <= 1 else None
    if moved is None:
        moved = Pointwise.of(to.stored(value)).moved(move)
    assert moved is not None
    return moved


def _sum(a: Expr, b: Expr) -> Expr:
    return a + b


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "ArgMax": _arg_max,
        "AveragePool": _average_pool,
        "Concat": _concat,
        "CumSum": _cumulative_sum,
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GlobalAveragePool": _global_average_pool,
        "GlobalMaxPool": _global_max_pool,
        "MatMul": _matmul,
        "MatMulInteger": _matmul_integer,
        "MaxPool": _max_pool,
        "Pad": _pad,
        "ReduceMax": _reduction(_lowest, tirx.max),
        "ReduceMean": _reduction(lambda dtype: const(0, dtype), _sum, mean=True),
        "ReduceMin": _reduction(_highest, tirx.min),
        "ReduceSum": _reduction(lambda dtype: const(0, dtype), _sum),
    }
)
