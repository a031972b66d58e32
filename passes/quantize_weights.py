"""Store the weights of integer linear ops as int8 codes and their biases as int32.

before:  y = Conv(DequantizeLinear(x_q, sx, zx), w, b)
after:   y = Conv(DequantizeLinear(x_q, sx, zx),
                  DequantizeLinear(w_q, sw, 0),          sw per output channel
                  DequantizeLinear(b_q, float32(sx * sw), 0))

Codes of fewer than 8 bits lie in int8 arrays. Codes stay within the target's limits: x86 without
VNNI saturates pairs of products, Arm without dot product overflows at -128 * -128. A channel whose
bias would pass 2**30 gets a larger scale.
Where `context.weight_shifts` names a weight, its codes are rounded before they are shifted.
An op whose bias is computed at run time, or differs by row, has no integer form and is left alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.float_weight import FloatWeight
from edgeq.graph import Editor, constant, producer
from edgeq.linear_weights import output_axis
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, operand
from edgeq.weight_codes import BIAS_LIMIT, encode


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Replace constant float operands of linear ops by dequantized codes."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many linear ops got integer weights."""
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
                continue
            x, weight = operand(node.inputs[0]), constant(node.inputs[1])
            if context.keep_float(node) or x is None or x.qparams.axis is not None:
                continue
            if weight is None or weight.dtype != np.float32:
                continue
            if not _bias_fits(node, weight):
                continue
            _quantize(node, x, weight, editor, context)
            done += 1
        return done


def _bias_fits(node: ir.Node, weight: NDArray[np.float32]) -> bool:
    """Whether the bias, if any, is a constant with one value, or one per output channel."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True
    bias, axis = constant(value), output_axis(node, weight.ndim)
    if bias is None or axis is None:
        return False
    return bias.size == 1 or bias.shape[-1:] == (bias.size,) == (weight.shape[axis],)


def _quantize(
    node: ir.Node, x: Operand, weight: NDArray[np.float32], editor: Editor, context: Context
) -> None:
    spec = context.weight_spec(node)
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    limit = min(spec.limit, context.capabilities.weight_max)
    source = node.inputs[1]
    assert source is not None
    shift = context.weight_shifts.get(str(source.name))
    made = encode(
        weight if shift is None else np.ldexp(weight, -shift),
        bias,
        x.qparams,
        spec,
        axis=output_axis(node, weight.ndim) if spec.granularity == "per_channel" else None,
        limit=limit,
        bias_limit=BIAS_LIMIT,
    )
    qparams = made.qparams
    rounded = FloatWeight(weight, qparams.qtype, limit, shift, qparams.axis)
    stored = made.weight if shift is None else rounded.codes(made.weight)
    real = _dequantized(editor, node, source.name or "w", stored, qparams)
    node.replace_input_with(1, real)
    codes = producer(real).inputs[0]
    assert codes is not None and codes.name is not None
    context.float_weights[codes.name] = rounded
    if made.bias is not None and made.bias_qparams is not None:
        source = node.inputs[2]
        assert source is not None
        real = _dequantized(editor, node, source.name or "b", made.bias, made.bias_qparams)
        node.replace_input_with(2, real)


def _dequantized(
    editor: Editor, node: ir.Node, name: str, codes: NDArray[Any], qparams: QParams
) -> ir.Value:
    values = [
        editor.initializer(f"{name}_q", codes),
        editor.initializer(f"{name}_scale", qparams.scale),
        editor.initializer(f"{name}_zero_point", qparams.zero_point.astype(qparams.qtype.dtype)),
    ]
    attributes = {} if qparams.axis is None else {"axis": qparams.axis}
    real = editor.node(
        "DequantizeLinear",
        values,
        f"{name}_dq",
        attributes=attributes,
        dtype=ir.DataType.FLOAT,
        shape=codes.shape,
    )
    editor.insert_before(node, [real])
    return real
