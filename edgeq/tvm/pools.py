"""Pools of windows: each element is a function of as many views as a window has elements."""

from collections.abc import Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from tvm import tirx
from tvm.ir import Expr

from edgeq.errors import UnsupportedOperatorError
from edgeq.graph import int_attribute, ints_attribute, string_attribute
from edgeq.numerics.windows import Windows, windows
from edgeq.operators import OPERATORS, pooling
from edgeq.operators.binding import bind, describe
from edgeq.tvm.arithmetic import const, lowest
from edgeq.tvm.elementwise import Make, combined
from edgeq.tvm.operands import Rule, source
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.program import Layout
from edgeq.tvm.views import View

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering


def _windows(to: "Lowering", node: ir.Node) -> Windows:
    shape = to.shape(source(node))
    kernel = ints_attribute(node, "kernel_shape", ())
    pads, strides, dilations = (
        ints_attribute(node, name, ()) for name in ("pads", "strides", "dilations")
    )
    auto_pad: Any = string_attribute(node, "auto_pad", "NOTSET")
    ceil = bool(int_attribute(node, "ceil_mode", 0))
    return windows(shape[2:], kernel, strides, dilations, pads, auto_pad, ceil)


def _padded(to: "Lowering", of: ir.Value, found: Windows, fill: Expr) -> View:
    """Return the input of a pool with its padding, in memory."""
    tensor = to.stored(of)
    if not found.needs_padding:
        return View.of(tensor)
    layout = tensor.layout
    shape = (*layout.shape[:2], *found.padded)
    padded = to.builder.tensor(
        f"{of.name}_padded", tensor.buffer.dtype, Layout(shape, layout.order)
    )
    whole = View.of(padded)
    to.builder.write(
        Pointwise(shape, tensor.buffer.dtype, (), lambda v, t: fill, lambda a: a[0]),
        whole,
        f"Pad {of.name}",
    )
    cut = tuple(slice(b, b + n) for b, n in zip(found.begin, found.input, strict=True))
    inner = whole.moved(lambda places: places[(slice(None), slice(None), *cut)])
    assert inner is not None
    to.builder.write(Pointwise.of(tensor), inner, f"Pad {of.name}")
    return whole


def _pool(to: "Lowering", node: ir.Node, fill: Expr, finish: Make) -> Pointwise:
    """Return a pool as a function of as many views as a window has elements."""
    found = _windows(to, node)
    whole = _padded(to, source(node), found, fill)
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
    to.keep(node.outputs[0], _pool(to, node, lowest(dtype), lambda v: reduce(tirx.max, v)))


def _average_pool(to: "Lowering", node: ir.Node) -> None:
    dtype = to.dtype(node.outputs[0])
    sums = _pool(to, node, const(0, dtype), lambda v: reduce(tirx.Add, v))
    counts = pooling.window_counts(
        _windows(to, node), bool(int_attribute(node, "count_include_pad", 0))
    )
    alike = np.unique(counts).size == 1
    shares = to.parameter((counts.reshape(-1)[:1] if alike else counts).astype(dtype))

    def divide(v: Sequence[Expr | None]) -> Expr:
        total, share = v
        assert total is not None and share is not None
        return tirx.Div(total, share)

    x = combined([sums, shares], sums.shape, dtype, divide, np.divide, 4)
    to.keep(node.outputs[0], x)


POOLS: Mapping[str, Rule] = MappingProxyType({"AveragePool": _average_pool, "MaxPool": _max_pool})
