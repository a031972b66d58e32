"""Store the weights of integer linear ops as int8 codes and their biases as int32.

before:  y = Conv(DequantizeLinear(x_q, sx, zx), w, b)
after:   y = Conv(DequantizeLinear(x_q, sx, zx),
                  DequantizeLinear(w_q, sw, 0),          sw per output channel
                  DequantizeLinear(b_q, float32(sx * sw), 0))

Codes stay within the target's limits: x86 without VNNI saturates pairs of products, Arm without
dot product overflows at -128 * -128. A channel whose bias would pass 2**30 gets a larger scale.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor, constant, int_attribute
from edgeq.numerics.affine import QParams, quantize
from edgeq.numerics.qtype import INT32, QTYPES
from edgeq.numerics.scale import choose_qparams
from edgeq.observe import choose_weight_range
from edgeq.passing import Context, Pass, node_names
from edgeq.qdq import operand
from edgeq.recipe import QuantSpec

BIAS_LIMIT = 2**30


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
            if context.keep_float(node) or operand(node.inputs[0]) is None:
                continue
            weight = constant(node.inputs[1])
            if weight is None or weight.dtype != np.float32:
                continue
            _quantize(node, weight, editor, context)
            done += 1
        return done


def output_axis(node: ir.Node, ndim: int) -> int:
    """Return the axis of a linear op's weight that holds its output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if int_attribute(node, "transB", 0) else 1
    return ndim - 1


def _quantize(node: ir.Node, weight: NDArray[np.float32], editor: Editor, context: Context) -> None:
    x = operand(node.inputs[0])
    assert x is not None
    spec = context.recipe.spec("weight", node.op_type, node_names(node))
    limit = min(spec.limit, context.capabilities.weight_max)
    axis = output_axis(node, weight.ndim) if spec.granularity == "per_channel" else None
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    qparams = weight_qparams(weight, spec, axis, limit)
    if bias is not None:
        qparams = _room_for_bias(qparams, x.qparams, bias, spec)
    codes = qparams.quantize(weight)
    if qparams.qtype.signed:  # a clipped weight saturates: to the limit, not to qmin
        limit = min(limit, qparams.qtype.qmax)
        codes = np.clip(codes.astype(np.int32), -limit, limit).astype(codes.dtype)
    source = node.inputs[1]
    assert source is not None
    node.replace_input_with(1, _dequantized(editor, node, source.name or "w", codes, qparams))
    if bias is not None:
        scale = np.asarray(x.qparams.scale * qparams.scale, np.float32)
        zero = np.zeros(scale.shape, np.int32)
        bias_params = QParams(INT32, scale, zero, None if scale.ndim == 0 else 0)
        bias_codes = quantize(bias.reshape(-1), scale, zero, INT32, bias_params.axis)
        source = node.inputs[2]
        assert source is not None
        node.replace_input_with(
            2, _dequantized(editor, node, source.name or "b", bias_codes, bias_params)
        )


def weight_qparams(
    weight: NDArray[np.float32], spec: QuantSpec, axis: int | None, limit: int
) -> QParams:
    """Return symmetric parameters of a weight, per channel along `axis` or per tensor."""
    low, high = choose_weight_range(weight, spec, axis, limit)
    return choose_qparams(low, high, spec, axis=axis, limit=limit)


def _room_for_bias(
    weight: QParams, x: QParams, bias: NDArray[np.float32], spec: QuantSpec
) -> QParams:
    """Raise the scales of channels whose bias would not fit, e.g. of dead ones."""
    needed = np.abs(bias.reshape(-1).astype(np.float64)) / (BIAS_LIMIT * float(x.scale))
    if weight.axis is None:
        needed = needed.max(initial=0.0)
    if spec.scale == "power_of_two":
        needed = np.exp2(np.ceil(np.log2(np.maximum(needed, np.finfo(np.float32).tiny))))
    scale = np.maximum(weight.scale, np.nextafter(needed.astype(np.float32), np.float32(np.inf)))
    if spec.scale == "power_of_two":
        scale = np.maximum(weight.scale, needed.astype(np.float32))
    return QParams(QTYPES[spec.qtype], scale, weight.zero_point, weight.axis)


def _dequantized(
    editor: Editor, node: ir.Node, name: str, codes: NDArray[np.int8], qparams: QParams
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
