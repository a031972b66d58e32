"""Let each ConvTranspose that is no ordinary Conv work in units: integers held in float32.

before:  q = QuantizeLinear(ConvTranspose(DequantizeLinear(x_q, sx, zx), w, b), sy, zy)
after:   y = ConvTranspose(DequantizeLinear(x_q, 1, zx), DequantizeLinear(w_q, 1, 0),
                           DequantizeLinear(b_q, 1, 0))
         q = QuantizeLinear(Mul(y, M), 1, zy)             M = float32(sx * sw / sy) per channel

`conv-transpose` makes an integer Conv of the common form; what it leaves (dilations, unequal
strides, one or three dimensions, padding that depends on the size) has no integer kernel. The sums
here are exact while `sum |w_q| * max |x_q - zx| + |b_q|` is at most 2**24 for every output; the
certificate computes that bound and refuses what passes it. In the float tail M is `sx * sw` and the
Mul makes the result.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor, constant, int_attribute, producer, replace_uses, take_output
from edgeq.numerics.requantize import multiplier
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, operand, result
from edgeq.weight_codes import WeightCodes, encode

BIAS_LIMIT = 2**22  # a quarter of what float32 sums exactly; the rest is for the products


@dataclass(frozen=True)
class ConvTransposeUnits(Pass):
    """Rewrite ConvTranspose nodes that read codes."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many ConvTranspose nodes now work in units."""
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            if node.op_type != "ConvTranspose" or node.domain or context.keep_float(node):
                continue
            x, weight = operand(node.inputs[0]), constant(node.inputs[1])
            if x is None or x.qparams.axis is not None or x.qparams.qtype.bits != 8:
                continue
            if weight is None or weight.dtype != np.float32 or not _bias_is_constant(node):
                continue
            _to_units(node, x, _encoded(node, x, weight, context), editor)
            done += 1
        return done


def _bias_is_constant(node: ir.Node) -> bool:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or constant(value) is not None


def _encoded(
    node: ir.Node, x: Operand, weight: NDArray[np.float32], context: Context
) -> WeightCodes:
    """Return the constants with the weight as [out, in / group, ...]."""
    group = int_attribute(node, "group", 1)
    split = weight.reshape(group, -1, *weight.shape[1:])  # [group, in / group, out / group, ...]
    rows = split.swapaxes(1, 2).reshape(-1, split.shape[1], *weight.shape[2:])
    spec = context.weight_spec(node)
    return encode(
        rows,
        constant(node.inputs[2]) if len(node.inputs) > 2 else None,
        x.qparams,
        spec,
        axis=0 if spec.granularity == "per_channel" else None,
        limit=min(spec.limit, context.capabilities.weight_max),
        bias_limit=BIAS_LIMIT,
    )


def _to_units(node: ir.Node, x: Operand, made: WeightCodes, editor: Editor) -> None:
    output, weight = node.outputs[0], node.inputs[1]
    assert weight is not None and weight.shape is not None
    name, shape = weight.name or "w", tuple(weight.shape.numpy())
    group, spatial = int_attribute(node, "group", 1), shape[2:]
    split = made.weight.reshape(group, shape[1], -1, *spatial).swapaxes(1, 2)
    codes = np.ascontiguousarray(split.reshape(shape))
    one = editor.initializer(f"{name}_one", np.float32(1))

    def units(source: ir.Value, zero_point: ir.Value | None, index: int) -> None:
        inputs = [source, one] if zero_point is None else [source, one, zero_point]
        real = editor.node(
            "DequantizeLinear",
            inputs,
            f"{source.name}_units",
            dtype=ir.DataType.FLOAT,
            shape=source.shape,
        )
        editor.insert_before(node, [real])
        node.replace_input_with(index, real)

    def constants(base: str, array: NDArray[np.generic], index: int) -> None:
        zero = editor.initializer(f"{base}_zero_point", np.zeros((), array.dtype))
        units(editor.initializer(f"{base}_q", array), zero, index)

    units(x.codes, x.node.inputs[2] if len(x.node.inputs) > 2 else None, 0)
    constants(name, codes, 1)
    if made.bias is not None:
        constants(f"{name}_bias", made.bias, 2)
    y = result(output)
    scaled = _scaled(output, x, made, len(spatial), editor)
    editor.insert_after(node, [scaled])
    replace_uses(output, scaled, but=[producer(scaled)])
    if y is not None and y.qparams.axis is None:
        y.node.replace_input_with(1, one)
    elif output.is_graph_output():
        take_output(output, scaled)


def _scaled(
    output: ir.Value, x: Operand, made: WeightCodes, dimensions: int, editor: Editor
) -> ir.Value:
    """Return `Mul(output, M)`."""
    y = result(output)
    factor = np.asarray(x.qparams.scale * made.qparams.scale, np.float32)
    if y is not None and y.qparams.axis is None:
        factor = multiplier(x.qparams.scale, made.qparams.scale, y.qparams.scale)
    factor = np.asarray(factor, np.float32)
    if factor.ndim:
        factor = factor.reshape(-1, *(1,) * dimensions)
    return editor.node(
        "Mul",
        [output, editor.initializer(f"{output.name}_multiplier", factor)],
        f"{output.name}_scaled",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
