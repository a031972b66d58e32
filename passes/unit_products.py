"""Let a linear op on codes whose result stays real work in units: integers held in float32.

before:  y = Conv(DequantizeLinear(x, sx, zx), DequantizeLinear(w, sw, zw), b)
after:   y = Add(Mul(Conv(DequantizeLinear(x, 1, zx), DequantizeLinear(w, 1, zw)), sx * sw), b)

No QuantizeLinear stands behind such an op, so it runs in float, and adds up its products in an
order that each CPU chooses. In units every sum below 2**24 is exact, in any order; what is behind
it are single operations. An op whose sums may be larger stays as it is.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor, consumers, int_attribute, take_output
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, constant_reals, limit_behind, linear_group, operand

LINEAR = ("Conv", "Gemm", "MatMul")
EXACT = 2**24


@dataclass(frozen=True)
class UnitProducts(Pass):
    """Rewrite linear ops that run in float on codes."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many linear ops now work in units."""
        editor = Editor(model.graph)
        nodes = [n for n in model.graph if n.op_type in LINEAR and not n.domain]
        return sum(_to_units(node, editor) for node in nodes)


def _to_units(node: ir.Node, editor: Editor) -> bool:
    if linear_group(node) is not None and limit_behind(node) is None:
        return False
    x, w = operand(node.inputs[0]), operand(node.inputs[1])
    if x is None or w is None or w.array is None or x.qparams.axis is not None:
        return False
    if (
        all(np.all(side.qparams.scale == 1) for side in (x, w))
        or x.qparams.qtype.bits > 8
        or not _plain(node, w)
    ):
        return False
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _bias(node.inputs[2])
        if bias is None:
            return False
    if _largest_sum(node, x, w) >= EXACT:
        return False
    shape = _along_channels(node)
    scale = np.asarray(x.qparams.scale * w.qparams.scale, np.float32)
    for place, side in enumerate((x, w)):
        node.replace_input_with(place, _units(side, node, editor))
    node.resize_inputs(2)
    _behind(node, "Mul", scale.reshape(shape if scale.ndim else ()), "scaled", editor)
    if bias is not None:
        (last,) = consumers(node.outputs[0])
        _behind(last, "Add", bias.reshape(shape), "biased", editor)
    return True


def _plain(node: ir.Node, w: Operand) -> bool:
    """Whether channels are those of the weights' axis, and nothing else scales the result."""
    axis, array = w.qparams.axis, w.array
    assert array is not None
    if node.op_type == "Conv":
        return axis in (None, 0)
    if array.ndim != 2:
        return False
    transposed = bool(int_attribute(node, "transB", 0))
    factors = [node.attributes.get(name) for name in ("alpha", "beta")]
    ones = all(a is None or a.as_float() == 1.0 for a in factors)
    return ones and not int_attribute(node, "transA", 0) and axis in (None, 0 if transposed else 1)


def _bias(value: ir.Value | None) -> NDArray[np.float32] | None:
    array = constant_reals(value)
    return None if array is None or array.size != max(array.shape, default=0) else array


def _rows(node: ir.Node, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the weights as one row for each channel."""
    if node.op_type == "Conv" or int_attribute(node, "transB", 0):
        return units.reshape(len(units), -1)
    return units.T


def _largest_sum(node: ir.Node, x: Operand, w: Operand) -> int:
    """Return a bound of every sum of products, for any input."""
    assert w.array is not None
    shape = [1] * w.array.ndim
    if w.qparams.axis is not None:
        shape[w.qparams.axis] = -1
    units = w.array.astype(np.int64) - w.qparams.zero_point.reshape(shape)
    zero = int(x.qparams.zero_point)
    reach = max(zero - x.qparams.qtype.qmin, x.qparams.qtype.qmax - zero)
    return int(np.abs(_rows(node, units)).sum(1).max(initial=0)) * reach


def _along_channels(node: ir.Node) -> tuple[int, ...]:
    weight = node.inputs[1]
    if node.op_type != "Conv" or weight is None or weight.shape is None:
        return (-1,)
    return (-1, *(1,) * (len(weight.shape) - 2))


def _units(side: Operand, node: ir.Node, editor: Editor) -> ir.Value:
    name, ones = side.codes.name or "x", np.ones(side.qparams.scale.shape, np.float32)
    zero = side.qparams.zero_point.astype(side.qparams.qtype.dtype)
    units = editor.node(
        "DequantizeLinear",
        [
            side.codes,
            editor.initializer(f"{name}_one", ones),
            editor.initializer(f"{name}_zero_point", zero),
        ],
        f"{name}_units",
        attributes={} if side.qparams.axis is None else {"axis": side.qparams.axis},
        dtype=ir.DataType.FLOAT,
        shape=side.codes.shape,
    )
    editor.insert_before(node, [units])
    return units


def _behind(
    node: ir.Node, op_type: str, array: NDArray[np.float32], word: str, editor: Editor
) -> None:
    """Put an operation with a constant between `node` and those who read it."""
    output = node.outputs[0]
    readers = list(output.uses())
    made = editor.node(
        op_type,
        [output, editor.initializer(f"{output.name}_{word}_by", array)],
        f"{output.name}_{word}",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    for reader, index in readers:
        reader.replace_input_with(index, made)
    editor.insert_after(node, [made])
    if output.is_graph_output():
        take_output(output, made)
