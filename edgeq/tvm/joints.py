"""Tensors that are written part by part: Concat, and Pad."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import UnsupportedOperatorError
from edgeq.graph import int_attribute, string_attribute
from edgeq.operators import OPERATORS
from edgeq.operators.binding import bind, describe
from edgeq.tvm.arithmetic import const
from edgeq.tvm.elementwise import combined
from edgeq.tvm.operands import Rule, constant_input, source
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.views import View

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering

Array = NDArray[Any]


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
    output, of = node.outputs[0], source(node)
    kernel = bind(node, OPERATORS)
    rest = [constant_input(to, node, number) for number in range(1, len(node.inputs))]
    if mode != "constant":
        x = to.pointwise(of).moved(lambda places: kernel(places, *rest)[0])
        if x is None:
            raise UnsupportedOperatorError(f"{describe(node)}: mode {mode}")
        to.keep(output, x)
        return
    x = Pointwise.of(to.stored(of))
    tensor = to.new(output)
    value = rest[1] if len(rest) > 1 and rest[1] is not None else np.zeros((), x.dtype)
    fill = const(value.item(), x.dtype)
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


JOINTS: Mapping[str, Rule] = MappingProxyType({"Concat": _concat, "Pad": _pad})
