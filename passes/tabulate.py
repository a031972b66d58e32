"""Replace a function that IEEE does not define by a table of its 256 values.

before:  y = Exp(Mul(DequantizeLinear(x_q, s, z), 0.2))
after:   y = Reshape(GatherElements(table, Cast(Reshape(x_q, [-1]))), Shape(x_q))

`table[q]` is the function of `(q - z) * s`, computed on the host in float64: float32 values where
the result stays float, codes where a QuantizeLinear follows. Scalar arithmetic between the codes
and the function goes into the table. Reshape, Slice and their like run on codes in front of it.
GatherElements is nine times faster than Gather here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.functions import float64_function
from edgeq.graph import Editor, constant, rank, remove_dead, take_output
from edgeq.look_up import look_up
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
            function, found = float64_function(node), _source(node)
            if function is not None and found is not None:
                _replace(node, function, *found, editor)
                done += 1
        remove_dead(model.graph)
        return done


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
        if len(variable) != 1 or any(not _is_scalar(a, variable[0]) for a in scalars):
            return None
        chain.append(source)
        value = variable[0]
    return None


def _is_scalar(array: NDArray[Any], other: ir.Value | None) -> bool:
    """Whether `array` is one number that leaves the rank of `other` as it is."""
    dimensions = None if other is None else rank(other)
    return array.size == 1 and array.ndim <= (dimensions or 0)


def all_codes(x: Operand) -> NDArray[np.int64]:
    """Return every code of the operand's format, in the order of a table's index.

    A negative index counts from the end: behind 127 come -128, -127, ...
    """
    return np.arange(256).astype(np.uint8).view(x.qparams.qtype.dtype).astype(np.int64)


def _through(chain: list[ir.Node], x: Operand) -> Float64:
    units = all_codes(x) - int(x.qparams.zero_point)
    values = units * np.float64(x.qparams.scale)
    for node in reversed(chain):
        arrays = [constant(v) for v in node.inputs]
        operands = [values if a is None else a.astype(np.float64).reshape(()) for a in arrays]
        with np.errstate(all="ignore"):
            values = _ARITHMETIC[node.op_type](*operands)
    return values


def _replace(
    node: ir.Node,
    function: Callable[[Float64], Float64],
    x: Operand,
    inputs: Float64,
    editor: Editor,
) -> None:
    output = node.outputs[0]
    name = output.name or node.op_type
    with np.errstate(all="ignore"):
        reals = function(inputs).astype(np.float32)
    y = result(output)
    if y is not None and y.qparams.axis is None:
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
