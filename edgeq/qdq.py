"""Reading quantization out of a QDQ graph: which values are codes, and which nodes are integer.

A linear op is integer when its operands come straight from DequantizeLinear nodes with constant
parameters and its result, if it is quantized, goes to one QuantizeLinear alone:

    DequantizeLinear(x) , DequantizeLinear(w) [, DequantizeLinear(b)] -> op -> QuantizeLinear

The simulator, the certificate, the linter and the passes all read the graph through this file.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import constant, int_attribute, sole_consumer
from edgeq.numerics.affine import QParams, dequantize
from edgeq.numerics.qtype import FLOAT8, QTYPES, QType

REAL_NAME = "edgeq.real"  # metadata of codes: the name of the float model's value they stand for
LINEAR_OPS = ("Conv", "Gemm", "MatMul", "Mul")


@dataclass(frozen=True, eq=False)
class Operand:
    """A dequantized operand: `real = (codes - zero_point) * scale`.

    Attributes:
        codes: The quantized value, constant or not.
        qparams: Its affine map.
        node: The DequantizeLinear node.
    """

    codes: ir.Value
    qparams: QParams
    node: ir.Node

    @property
    def array(self) -> NDArray[Any] | None:
        """The codes, when they are constant (a weight, a bias)."""
        return constant(self.codes)


@dataclass(frozen=True, eq=False)
class Result:
    """The quantized result of a node: the QuantizeLinear behind it."""

    qparams: QParams
    node: ir.Node

    @property
    def codes(self) -> ir.Value:
        """The quantized value."""
        return self.node.outputs[0]


@dataclass(frozen=True, eq=False)
class LinearGroup:
    """An integer linear op with its operands and result.

    Attributes:
        node: Conv, Gemm, MatMul or Mul.
        x: Left operand (uint8 or int8 codes).
        w: Right operand; constant for Conv and Gemm.
        bias: int32 bias with scale `float32(sx * sw)`, or None.
        y: The quantized result; None where the result stays float32 (the float tail), which then
            is `float32(acc) * float32(sx * sw)`.
    """

    node: ir.Node
    x: Operand
    w: Operand
    bias: Operand | None
    y: Result | None

    @property
    def output(self) -> ir.Value:
        """The value that the group makes: codes, or float32 in the float tail."""
        return self.node.outputs[0] if self.y is None else self.y.codes


def _qparams(node: ir.Node, qtype: QType, ndim_axis: int | None) -> QParams | None:
    scale, zero_point = constant(node.inputs[1]), None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero_point = constant(node.inputs[2])
        if zero_point is None:
            return None
    if scale is None or scale.dtype != np.float32 or scale.ndim > 1:
        return None
    normal = np.isfinite(scale) & (scale >= np.finfo(np.float32).tiny)
    if not scale.size or not normal.all():
        return None
    if zero_point is None:
        zero_point = np.zeros(scale.shape, np.int32)
    if scale.size == 1:  # one scale in a list is per tensor, wherever the axis points
        scale, zero_point = scale.reshape(()), zero_point.reshape(-1)[:1].reshape(())
    axis = None
    if scale.ndim == 1:
        axis = int_attribute(node, "axis", 1)
        if axis < 0:
            if ndim_axis is None:
                return None
            axis += ndim_axis
        if axis < 0 or (ndim_axis is not None and axis >= ndim_axis):
            return None
    if zero_point.size not in (1, scale.size):
        return None
    return QParams(qtype, scale, zero_point.astype(np.int32), axis)


def _code_type(value: ir.Value | None) -> QType | None:
    if value is None or value.dtype is None:
        return None
    return QTYPES.get(value.dtype.name.lower())


def operand(value: ir.Value | None) -> Operand | None:
    """Return how `value` is dequantized; `None` unless constants and a DequantizeLinear do it."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain:
        return None
    codes = node.inputs[0]
    # The zero point has the type of the codes, and is known where shape inference has not been run.
    qtype = _code_type(codes) or _code_type(node.inputs[2] if len(node.inputs) > 2 else None)
    if codes is None or qtype is None or int_attribute(node, "block_size", 0):
        return None
    qparams = _qparams(node, qtype, None if codes.shape is None else len(codes.shape))
    return None if qparams is None else Operand(codes, qparams, node)


def constant_reals(value: ir.Value | None) -> NDArray[Any] | None:
    """Return a constant, or what a DequantizeLinear with constants makes of constant codes."""
    found = operand(value)
    if found is None or found.array is None:
        return constant(value)
    return found.qparams.dequantize(found.array)


def result(value: ir.Value) -> Result | None:
    """Return how `value` is quantized; `None` unless one QuantizeLinear is all that reads it."""
    node = sole_consumer(value)
    return None if node is None else quantize_node(node)


def quantize_node(node: ir.Node) -> Result | None:
    """Return the parameters of a QuantizeLinear node with constant parameters."""
    if node.op_type != "QuantizeLinear" or node.domain or int_attribute(node, "block_size", 0):
        return None
    qtype = None
    if len(node.inputs) > 2:
        qtype = _code_type(node.inputs[2])
    elif int_attribute(node, "output_dtype", 0):
        qtype = QTYPES.get(ir.DataType(int_attribute(node, "output_dtype", 0)).name.lower())
    else:
        qtype = QTYPES["uint8"]
    value = node.inputs[0]
    if qtype is None or value is None:
        return None
    qparams = _qparams(node, qtype, None if value.shape is None else len(value.shape))
    return None if qparams is None else Result(qparams, node)


def is_requantization(node: ir.Node) -> bool:
    """Whether `node` ends QuantizeLinear - DequantizeLinear - QuantizeLinear and is dequantized.

    Only where each value in between has one reader; only then are the pairs merged.
    """
    if node.op_type != "QuantizeLinear" or node.domain:
        return False
    value = node.inputs[0]
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        source = None if value is None else value.producer()
        if source is None or source.op_type != op_type or source.domain:
            return False
        if sole_consumer(source.outputs[0]) is None:
            return False
        value = source.inputs[0]
    reader = sole_consumer(node.outputs[0])
    return reader is not None and reader.op_type == "DequantizeLinear"


@dataclass(frozen=True, eq=False)
class LimitedCodes:
    """The Clip that alone reads some codes, and its limits."""

    node: ir.Node
    low: int
    high: int

    @property
    def codes(self) -> ir.Value:
        """The codes within the limits."""
        return self.node.outputs[0]


def limited_codes(codes: ir.Value) -> LimitedCodes | None:
    """Return the Clip with constant limits that alone reads `codes`; None if there is none."""
    node = sole_consumer(codes)
    if node is None or node.op_type != "Clip" or node.domain or len(node.inputs) != 3:
        return None
    low, high = (constant(value) for value in node.inputs[1:])
    if low is None or high is None:
        return None
    return LimitedCodes(node, int(low.reshape(())), int(high.reshape(())))


def quantized_tensors(model: ir.Model) -> list[str]:
    """Return the names of the values of `model` that are codes, constants left out, in order.

    Numbers of 8-bit floating point types are codes too.
    """
    return [
        str(value.name)
        for node in model.graph
        for value in node.outputs
        if value.dtype != ir.DataType.INT32
        and (_code_type(value) is not None or is_float8(value))
        and constant(value) is None
    ]


def is_float8(value: ir.Value | None) -> bool:
    """Whether `value` holds 8-bit floats that a scale belongs to."""
    return value is not None and value.dtype is not None and value.dtype.name.lower() in FLOAT8


def float8_constant(node: ir.Node | None) -> NDArray[np.float32] | None:
    """Return what a DequantizeLinear makes of constant 8-bit floats; None for any other node."""
    if node is None or node.op_type != "DequantizeLinear" or not is_float8(node.inputs[0]):
        return None
    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if codes is None or scale is None or scale.ndim > 1:
        return None
    axis = int_attribute(node, "axis", 1) if scale.size > 1 else None
    scale = scale if scale.size > 1 else scale.reshape(())
    return dequantize(codes, scale, np.zeros(scale.shape, np.int32), axis)


def is_units(operand: Operand) -> bool:
    """Whether the operand is dequantized with scale 1: integers held in float32."""
    return operand.qparams.axis is None and float(operand.qparams.scale) == 1.0


def linear_group(node: ir.Node) -> LinearGroup | None:
    """Return `node` with its operands if it is an integer linear op, else `None`.

    The result of a Conv or Mul must be quantized per tensor; a Gemm may leave it float32. Weights
    are symmetric or not, per tensor or per output channel; a bias must have the scale
    `float32(sx * sw)` and zero point 0.
    """
    if node.domain or node.op_type not in LINEAR_OPS:
        return None
    x, w = operand(node.inputs[0]), operand(node.inputs[1])
    if x is None or w is None or x.qparams.axis is not None:
        return None
    if x.qparams.qtype.bits != 8 or w.qparams.qtype.bits > 8:
        return None
    y = result(node.outputs[0])
    if y is not None and (y.qparams.axis is not None or y.qparams.qtype.bits != 8):
        return None
    if y is not None and y.qparams.qtype.name != x.qparams.qtype.name:
        return None  # ONNX Runtime fuses no such op
    if y is None and node.op_type != "Gemm":
        return None
    if y is None and is_units(x) and is_units(w):
        return None
    if not _weight_axis_fits(node, w):
        return None
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = operand(node.inputs[2])
        if bias is None or bias.array is None or not _bias_fits(x, w, bias):
            return None
    if node.op_type == "Gemm" and not _plain_gemm(node):
        return None
    return LinearGroup(node, x, w, bias, y)


def limit_behind(node: ir.Node) -> ir.Node | None:
    """Return the Relu or Clip behind a Gemm that keeps ONNX Runtime from an integer kernel.

    It takes one that alone reads the Gemm, and that has one reader itself, for a part of a fused
    pattern; where no QuantizeLinear ends the pattern, the Gemm runs in float.
    """
    reader = sole_consumer(node.outputs[0]) if node.op_type == "Gemm" else None
    if reader is None or reader.domain or reader.op_type not in ("Clip", "Relu"):
        return None
    return None if sole_consumer(reader.outputs[0]) is None else reader


def _plain_gemm(node: ir.Node) -> bool:
    alpha, beta = (node.attributes.get(name) for name in ("alpha", "beta"))
    ones = all(a is None or a.as_float() == 1.0 for a in (alpha, beta))
    return ones and not int_attribute(node, "transA", 0)


def _weight_axis_fits(node: ir.Node, w: Operand) -> bool:
    axis = w.qparams.axis
    if node.op_type in ("Conv", "Gemm") and w.array is None:
        return node.op_type == "Gemm" and axis is None
    if axis is None:
        return True
    if node.op_type == "Conv":
        return axis == 0
    if node.op_type == "Gemm":
        return axis == (0 if int_attribute(node, "transB", 0) else 1)
    if node.op_type == "MatMul":
        ndim = None if w.codes.shape is None else len(w.codes.shape)
        return ndim is not None and ndim >= 2 and axis == ndim - 1
    return False


def _bias_fits(x: Operand, w: Operand, bias: Operand) -> bool:
    expected = np.asarray(x.qparams.scale * w.qparams.scale, np.float32)
    same = np.array_equal(np.broadcast_to(expected, bias.qparams.scale.shape), bias.qparams.scale)
    int32 = bias.qparams.qtype.name == "int32"
    return int32 and same and not np.any(bias.qparams.zero_point)
