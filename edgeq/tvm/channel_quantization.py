"""QuantizeLinear whose parameters differ by channel or block, or are values."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import int_attribute
from edgeq.numerics.qtype import QTYPES, qtype_of
from edgeq.tvm.operands import source
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.quantization import quantized

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering

Array = NDArray[Any]


def quantized_by_channel(
    to: "Lowering", node: ir.Node, evaluate: Callable[..., Array]
) -> Pointwise:
    """QuantizeLinear whose parameters differ by channel or block, or are values."""
    x, zero_value = to.pointwise(source(node)), None
    if len(node.inputs) > 2:
        zero_value = node.inputs[2]
    if zero_value is not None:
        qtype = qtype_of(np.dtype(to.dtype(zero_value)))
    else:
        kind = int_attribute(node, "output_dtype", 0)
        qtype = QTYPES[ir.DataType(kind).name.lower()] if kind else QTYPES["uint8"]
    scale = _parameter(to, node, source(node, 1), x.shape)
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
