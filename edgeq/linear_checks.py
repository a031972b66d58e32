"""What keeps linear ops (Conv, Gemm, MatMul) from running as exact integer kernels.

Each check yields a `Breach` for each place that it finds at one node.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.breach import Breach, Found
from edgeq.cpus import ARM64, OVERFLOWING
from edgeq.graph import constant, consumers, int_attribute, sole_consumer
from edgeq.numerics.saturating import saturable
from edgeq.qdq import Operand, limit_behind, linear_group, operand, quantize_node

LINEAR = ("Conv", "Gemm", "MatMul")
# Fused between codes, all of one scale each.
ONE_SCALE = (
    "Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax",
)  # fmt: skip
SAFE_PAIR = 64  # 255 * 64 + 255 * 64 < 2**15
BIAS_LIMIT = 2**30
TINY = float(np.finfo(np.float32).tiny)


def _operands(node: ir.Node) -> tuple[Operand, Operand] | None:
    if node.op_type not in LINEAR or node.domain:
        return None
    x, w = operand(node.inputs[0]), operand(node.inputs[1])
    return None if x is None or w is None else (x, w)


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def int8_activation(node: ir.Node) -> Found:
    """Find int8 on the left side of a linear op.

    ONNX Runtime turns a QuantizeLinear and the one DequantizeLinear behind it to uint8 on x86,
    where nobody else reads; an output more, as a tap, and it does not.
    """
    found = _operands(node)
    if found is None or found[0].qparams.qtype.name != "int8":
        return
    codes, reals = found[0].codes, found[0].node.outputs[0]
    made = codes.producer()
    if made is None or made.op_type != "QuantizeLinear":
        yield Breach(_name(codes), "the activation is int8, and comes from outside")
    elif codes.is_graph_output() or len(codes.uses()) * len(reals.uses()) > 1:
        yield Breach(_name(codes), "the activation is int8, and has several readers")
    else:
        yield Breach(_name(codes), "the activation is int8: integer while nobody else reads it")


def int8_right_side(node: ir.Node) -> Found:
    """Find int8 on the right side of a MatMul that computes it at run time."""
    found = _operands(node)
    if found is not None and found[1].array is None and found[1].qparams.qtype.name == "int8":
        yield Breach(_name(found[1].codes), "the right side is computed at run time and is int8")


def dynamic_scale(node: ir.Node) -> Found:
    """Find codes whose scale is chosen at run time, and the linear ops that read them."""
    if node.domain:
        return
    if node.op_type == "DynamicQuantizeLinear":
        yield Breach(_name(node.outputs[0]), "its scale is chosen at run time")
    elif node.op_type in ("ConvInteger", "MatMulInteger"):
        source = None if node.inputs[0] is None else node.inputs[0].producer()
        if source is not None and source.op_type == "DynamicQuantizeLinear":
            yield Breach(
                _name(node.outputs[0]), f"{node.op_type} of codes whose scale is chosen at run time"
            )


def _int8_weight(node: ir.Node) -> tuple[str, NDArray[np.int8]] | None:
    found = _operands(node)
    array = None if found is None else found[1].array
    if found is None or array is None or array.dtype != np.int8 or not array.size:
        return None
    return _name(found[1].codes), array


def weight_range(node: ir.Node) -> Found:
    """Find int8 weights of -128."""
    found = _int8_weight(node)
    count = 0 if found is None else int(np.count_nonzero(found[1] == -128))
    if found is not None and count:
        cpus = ARM64 if _depthwise(node) else OVERFLOWING
        yield Breach(found[0], f"{count} of {found[1].size} weights are -128", cpus)


def saturating_pairs(node: ir.Node) -> Found:
    """Find int8 weights whose pairs of products with uint8 can exceed 16 bits."""
    found, operands = _int8_weight(node), _operands(node)
    if found is None or operands is None or operands[0].qparams.qtype.name != "uint8":
        return
    largest = int(np.abs(found[1].astype(np.int16)).max())
    if largest > SAFE_PAIR and not _depthwise(node) and _saturable(node, found[1]):
        yield Breach(found[0], f"weights reach {largest}: session.x64quantprecision=1 is needed")


def _depthwise(node: ir.Node) -> bool:
    """Whether a kernel of its own runs, which multiplies channel by channel."""
    shape = None if node.inputs[1] is None else node.inputs[1].shape
    group = int_attribute(node, "group", 1)
    return node.op_type == "Conv" and shape is not None and shape[0] == group and shape[1] == 1


def _saturable(node: ir.Node, weights: NDArray[np.int8]) -> bool:
    """Whether any two weights that a kernel multiplies together can saturate.

    They lie beside each other along the channels of the input, then the window.
    """
    if node.op_type == "Conv":
        rows = np.moveaxis(weights, 1, -1).reshape(len(weights), -1).T
    else:
        rows = weights.T if int_attribute(node, "transB", 0) else weights
    even = rows[..., : rows.shape[-2] // 2 * 2, :]
    return bool(saturable(even[..., ::2, :], even[..., 1::2, :]).any())


def matmul_bias(node: ir.Node) -> Found:
    """Find a MatMul with constant weights whose result gets a constant added."""
    if node.op_type != "MatMul":
        return
    found = _operands(node)
    reader = sole_consumer(node.outputs[0])
    if found is None or found[1].array is None or reader is None or reader.op_type != "Add":
        return
    for value in reader.inputs:
        bias = operand(value)
        if constant(value) is not None or (bias is not None and bias.array is not None):
            yield Breach(_name(value), f"the bias is added by {reader.name or 'an Add'}")


def zero_point_missing(node: ir.Node) -> Found:
    """Find a DequantizeLinear in front of a linear op that has no zero point."""
    if node.op_type != "DequantizeLinear" or node.domain:
        return
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return
    if any(reader.op_type in LINEAR for reader in consumers(node.outputs[0])):
        yield Breach(_name(node.inputs[0]), "its DequantizeLinear has no zero_point input")


def per_axis_activation(node: ir.Node) -> Found:
    """Find a value computed at run time that is dequantized with a scale per channel."""
    if node.op_type != "DequantizeLinear" or node.domain or constant(node.inputs[0]) is not None:
        return
    scale = constant(node.inputs[1])
    if scale is not None and scale.ndim == 1 and scale.size > 1:
        yield Breach(_name(node.inputs[0]), f"{scale.size} scales, along axis {_axis(node)}")


def per_axis_result(node: ir.Node) -> Found:
    """Find an op with a fused kernel whose result is quantized with a scale per channel."""
    if node.domain or node.op_type not in (*LINEAR, *ONE_SCALE):
        return
    if node.op_type in ONE_SCALE and any(operand(v) is None for v in node.inputs):
        return
    for reader in consumers(node.outputs[0]):
        scale = constant(reader.inputs[1]) if reader.op_type == "QuantizeLinear" else None
        if scale is not None and scale.ndim == 1 and scale.size > 1:
            yield Breach(_name(node.outputs[0]), f"{scale.size} scales, along axis {_axis(reader)}")


def _axis(node: ir.Node) -> int:
    return int_attribute(node, "axis", 1)


def _bias(node: ir.Node) -> tuple[str, Operand, Operand, Operand] | None:
    found = _operands(node)
    bias = operand(node.inputs[2]) if found is not None and len(node.inputs) > 2 else None
    if found is None or bias is None or bias.array is None:
        return None
    return _name(bias.codes), found[0], found[1], bias


def float_product(node: ir.Node) -> Found:
    """Find a linear op that runs in float beside quantized ones, and say what keeps it there.

    Where both sides are integers times powers of two its sums are exact, whatever their order.
    """
    if node.op_type not in LINEAR or node.domain or linear_group(node) is not None:
        return
    x, w = operand(node.inputs[0]), operand(node.inputs[1])
    if x is not None and w is not None and all(_dyadic(side) for side in (x, w)):
        return
    reason = _why_float(node, x, w)
    if reason:
        yield Breach(_name(node.outputs[0]), f"{node.op_type} in float32: {reason}")


def _dyadic(side: Operand) -> bool:
    return bool(np.all(np.frexp(np.atleast_1d(side.qparams.scale))[0] == 0.5))


def _why_float(node: ir.Node, x: Operand | None, w: Operand | None) -> str:
    """Return what keeps a linear op in float; empty where another rule says so."""
    if x is None:
        return "its input does not come straight from a DequantizeLinear"
    if w is None:
        return "its weights do not come straight from a DequantizeLinear"
    if x.qparams.axis is not None:
        return ""  # per-axis-activation
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and operand(bias) is None:
        return "its bias is not int32"
    reader = sole_consumer(node.outputs[0])
    y = None if reader is None else quantize_node(reader)
    if y is not None and y.qparams.qtype.name != x.qparams.qtype.name:
        return f"its input is {x.qparams.qtype.name}, its result {y.qparams.qtype.name}"
    if reader is None:
        return "its result has several readers, or none that quantizes it"
    if reader.op_type == "QuantizeLinear" or any(matmul_bias(node)):
        return ""
    if reader.op_type in ("Clip", "Relu") and node.op_type != "MatMul":
        return ""  # clip-before-quantize
    return f"{reader.op_type} reads its result"


def bias_scale(node: ir.Node) -> Found:
    """Find a bias whose scale is not that of the accumulator."""
    found = _bias(node)
    if found is None:
        return
    name, x, w, bias = found
    expected = np.asarray(x.qparams.scale * w.qparams.scale, np.float32)
    scale = bias.qparams.scale
    fits = expected.size in (1, scale.size) or scale.size == 1
    if not fits or not np.all(expected == scale):
        yield Breach(name, f"scale {_first(scale)}, the accumulator's is {_first(expected)}")
    if np.any(bias.qparams.zero_point):
        yield Breach(name, "the zero point is not 0")


def _first(scale: NDArray[np.float32]) -> str:
    return f"{float(scale.reshape(-1)[0]):.9g}"


def bias_range(node: ir.Node) -> Found:
    """Find bias codes beyond 2**30."""
    found = _bias(node)
    if found is None or found[3].array is None or not found[3].array.size:
        return
    largest = int(np.abs(found[3].array.astype(np.int64)).max())
    if largest > BIAS_LIMIT:
        yield Breach(found[0], f"codes reach {largest}")


def denormal(node: ir.Node) -> Found:
    """Find denormal scales, and linear ops whose multiplier is denormal."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not node.domain:
        scale = constant(node.inputs[1])
        if scale is not None and scale.size and scale.dtype == np.float32:
            smallest = float(np.abs(scale).min())
            if smallest < TINY:
                yield Breach(_name(node.inputs[1]), f"scale {smallest:g}")
        return
    found, reader = _operands(node), sole_consumer(node.outputs[0])
    y = None if reader is None else quantize_node(reader)
    if found is None or y is None or y.qparams.scale.size != 1:
        return
    product = np.asarray(found[0].qparams.scale * found[1].qparams.scale, np.float32)
    smallest = min(float(product.min()), float((product / y.qparams.scale).min()))
    if smallest < TINY:
        yield Breach(_name(node.outputs[0]), f"multiplier {smallest:g}")


def clip_behind(node: ir.Node) -> Found:
    """Find a Clip or Relu behind a linear op that no QuantizeLinear follows, or whose it cuts."""
    clip = sole_consumer(node.outputs[0])
    if _operands(node) is None or clip is None or clip.op_type not in ("Clip", "Relu"):
        return
    reader = sole_consumer(clip.outputs[0])
    y = None if reader is None else quantize_node(reader)
    if y is None:
        if limit_behind(node) is not None:
            yield Breach(
                _name(clip.outputs[0]), f"nothing quantizes the result of the {clip.op_type}"
            )
        return
    low, high = y.qparams.range
    limits = [0.0, np.inf]
    if clip.op_type == "Clip":
        arrays = [constant(v) for v in clip.inputs[1:3]]
        limits = [-np.inf, np.inf]
        for index, array in enumerate(arrays):
            if array is not None:
                limits[index] = float(array.reshape(()))
    if limits[0] > low or limits[1] < high:
        given = f"[{limits[0]:g}, {limits[1]:g}]"
        yield Breach(
            _name(clip.outputs[0]),
            f"{clip.op_type} to {given} cuts the range [{low:g}, {high:g}]",
        )
