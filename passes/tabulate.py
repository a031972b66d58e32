"""Replace a function that IEEE does not define by a table of its 256 values.

before:  y = Exp(Mul(DequantizeLinear(x_q, s, z), 0.2))
after:   y = Reshape(GatherElements(table, Cast(Reshape(x_q, [-1]))), Shape(x_q))

`table[q]` is the function of `(q - z) * s`, computed on the host in float64: float32 values where
the result stays float, codes where a QuantizeLinear follows. Scalar arithmetic between the codes
and the function goes into the table; Reshape, Slice and their like move in front of it.
GatherElements is nine times faster than Gather here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor, constant, float_attribute, string_attribute, take_output
from edgeq.numerics.affine import quantize
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, operand, result
from edgeq.roles import FUNCTIONS

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Tabulate(Pass):
    """Replace unary functions of codes by tables."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many functions became tables."""
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            if node.op_type not in FUNCTIONS or node.domain or context.keep_float(node):
                continue
            found = _source(node)
            if found is not None:
                _replace(node, *found, editor)
                done += 1
        return done


def look_up(editor: Editor, index: ir.Value, table: ir.Value, name: str) -> list[ir.Value]:
    """Return the values, in order, of `table[index]` in the shape of `index`; the last is the result.

    Args:
        editor: Makes the nodes; the caller inserts them.
        index: int32 or codes, any shape; 0 .. len(table) - 1.
        table: One axis.
        name: Names what is looked up.
    """
    values = []
    flat_shape = editor.initializer(f"{name}_flat", np.array([-1], np.int64))
    if index.dtype != ir.DataType.INT32:
        index_int = editor.node(
            "Cast",
            [index],
            f"{name}_index",
            attributes={"to": ir.DataType.INT32.value},
            dtype=ir.DataType.INT32,
            shape=index.shape,
        )
        values.append(index_int)
        shape_source, index = index, index_int
    else:
        shape_source = index
    flat = editor.node("Reshape", [index, flat_shape], f"{name}_flat", dtype=index.dtype)
    picked = editor.node(
        "GatherElements", [table, flat], f"{name}_picked", attributes={"axis": 0}, dtype=table.dtype
    )
    shape = editor.node("Shape", [shape_source], f"{name}_shape", dtype=ir.DataType.INT64)
    output = editor.node(
        "Reshape", [picked, shape], name, dtype=table.dtype, shape=shape_source.shape
    )
    return [*values, flat, picked, shape, output]


_ARITHMETIC: dict[str, Callable[[Float64, Float64], Float64]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}


def _source(node: ir.Node) -> tuple[Operand, Float64] | None:
    """Follow the function's input up to its codes; return them and the input's 256 values."""
    chain: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None:
        x = operand(value)
        if x is not None:
            if x.qparams.axis is not None or x.qparams.qtype.bits != 8:
                return None
            return x, _through(chain, x)
        source = value.producer()
        if source is None or source.op_type not in _ARITHMETIC or source.domain:
            return None
        variable = [v for v in source.inputs if constant(v) is None]
        scalars = [a for a in map(constant, source.inputs) if a is not None]
        if len(variable) != 1 or any(a.size != 1 for a in scalars):
            return None
        chain.append(source)
        value = variable[0]
    return None


def all_codes(x: Operand) -> NDArray[np.int64]:
    """Return every code of the operand's format, in the order of a table's index."""
    qtype = x.qparams.qtype
    return np.arange(qtype.qmin, qtype.qmax + 1)


def _through(chain: list[ir.Node], x: Operand) -> Float64:
    units = all_codes(x) - int(x.qparams.zero_point)
    values = units * np.float64(x.qparams.scale)
    for node in reversed(chain):
        arrays = [constant(v) for v in node.inputs]
        operands = [values if a is None else a.astype(np.float64).reshape(()) for a in arrays]
        with np.errstate(all="ignore"):
            values = _ARITHMETIC[node.op_type](*operands)
    return values


def _replace(node: ir.Node, x: Operand, inputs: Float64, editor: Editor) -> None:
    output = node.outputs[0]
    name = output.name or node.op_type
    with np.errstate(all="ignore"):
        reals = function(node)(inputs).astype(np.float32)
    y = result(output)
    if y is not None:
        parameters = y.qparams
        table = quantize(reals, parameters.scale, parameters.zero_point, parameters.qtype)
        output = y.codes
    else:
        table = reals
    looked_up = look_up(editor, x.codes, editor.initializer(f"{name}_table", table), f"{name}_out")
    editor.insert_before(node, looked_up)
    for reader, index in list(output.uses()):
        reader.replace_input_with(index, looked_up[-1])
    if output.is_graph_output():
        take_output(output, looked_up[-1])


def function(node: ir.Node) -> Callable[[Float64], Float64]:
    """Return the float64 function that `node`, one of `FUNCTIONS`, stands for."""
    name = node.op_type
    if name == "Elu":
        alpha = float_attribute(node, "alpha", 1.0)
        return lambda x: np.where(x < 0, alpha * np.expm1(x), x)
    if name == "Selu":
        alpha = float_attribute(node, "alpha", 1.6732632423543772)
        gamma = float_attribute(node, "gamma", 1.0507009873554805)
        return lambda x: gamma * np.where(x > 0, x, alpha * np.expm1(x))
    if name == "HardSigmoid":
        slope, offset = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
        return lambda x: np.clip(slope * x + offset, 0, 1)
    if name == "Gelu" and string_attribute(node, "approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return _PLAIN[name]


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Float64) -> Float64:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: Float64) -> Float64:
    return np.asarray(np.logaddexp(0, x))


_PLAIN: dict[str, Callable[[Float64], Float64]] = {
    "Erf": lambda x: np.asarray(_erf(x)),
    "Exp": np.exp,
    "Gelu": lambda x: np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2)))),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Log": np.log,
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "Reciprocal": np.reciprocal,
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Tanh": np.tanh,
}
