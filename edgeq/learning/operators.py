"""What each ONNX operator computes, in torch: one operator is one function and one row here.

Quantizing, dequantizing and integer linear groups are steps of their own: `edgeq.learning.codes`.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from edgeq.learning import operators_elementwise as e
from edgeq.learning import operators_layout as layout
from edgeq.learning import operators_linear as linear
from edgeq.operators import MANY
from edgeq.operators.binding import Operator


def _unary(name: str, module: object = torch) -> Operator:
    """Return the row of a function of one tensor, which torch has under `name`."""
    function = getattr(module, name)

    def call(x: Tensor) -> Tensor:
        return function(x)

    return Operator(call)


def _binary(name: str) -> Operator:
    """Return the row of a function of two tensors, which torch has under `name`."""
    function = getattr(torch, name)

    def call(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)

    return Operator(call)


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Abs": _unary("abs"),
        "Acos": _unary("acos"),
        "Acosh": _unary("acosh"),
        "Add": Operator(e.add),
        "And": _binary("logical_and"),
        "ArgMax": Operator(linear.arg_max),
        "Asin": _unary("asin"),
        "Asinh": _unary("asinh"),
        "Atan": _unary("atan"),
        "Atanh": _unary("atanh"),
        "AveragePool": Operator(linear.average_pool),
        "BatchNormalization": Operator(linear.batch_normalization),
        "Cast": Operator(layout.cast),
        "CastLike": Operator(layout.cast_like),
        "Ceil": Operator(e.ceil),
        "Celu": Operator(e.celu),
        "Clip": Operator(e.clip),
        "Concat": Operator(layout.concat),
        "Conv": Operator(linear.conv),
        "ConvTranspose": Operator(linear.conv_transpose),
        "Cos": _unary("cos"),
        "Cosh": _unary("cosh"),
        "CumSum": Operator(linear.cumulative_sum),
        "DepthToSpace": Operator(layout.depth_to_space),
        "Div": Operator(e.divide),
        "Elu": Operator(e.elu),
        "Equal": _binary("eq"),
        "Erf": _unary("erf"),
        "Exp": _unary("exp"),
        "Expand": Operator(layout.expand),
        "Flatten": Operator(layout.flatten),
        "Floor": Operator(e.floor),
        "Gather": Operator(layout.gather),
        "GatherElements": Operator(layout.gather_elements),
        "GatherND": Operator(layout.gather_nd),
        "Gelu": Operator(e.gelu),
        "Gemm": Operator(linear.gemm),
        "GlobalAveragePool": Operator(linear.global_average_pool),
        "GlobalMaxPool": Operator(linear.global_max_pool),
        "Greater": _binary("gt"),
        "GreaterOrEqual": _binary("ge"),
        "GroupNormalization": Operator(linear.group_normalization),
        "HardSigmoid": Operator(e.hard_sigmoid),
        "HardSwish": Operator(e.hard_swish),
        "Identity": Operator(layout.identity),
        "InstanceNormalization": Operator(linear.instance_normalization),
        "IsNaN": _unary("isnan"),
        "LayerNormalization": Operator(linear.layer_normalization),
        "LeakyRelu": Operator(e.leaky_relu),
        "Less": _binary("lt"),
        "LessOrEqual": _binary("le"),
        "Log": _unary("log"),
        "LogSoftmax": Operator(linear.log_softmax),
        "MatMul": Operator(linear.matmul),
        "MatMulInteger": Operator(linear.matmul_integer),
        "Max": Operator(e.maximum),
        "MaxPool": Operator(linear.max_pool),
        "Mean": Operator(e.mean),
        "Min": Operator(e.minimum),
        "Mish": _unary("mish", functional),
        "Mod": Operator(e.modulo),
        "Mul": Operator(e.multiply),
        "Neg": _unary("neg"),
        "Not": _unary("logical_not"),
        "Or": _binary("logical_or"),
        "PRelu": Operator(e.parametric_relu),
        "Pad": Operator(layout.pad),
        "Pow": Operator(e.power),
        "Range": Operator(layout.range_),
        "Reciprocal": _unary("reciprocal"),
        "ReduceMax": Operator(linear.reduce_max),
        "ReduceMean": Operator(linear.reduce_mean),
        "ReduceMin": Operator(linear.reduce_min),
        "ReduceSum": Operator(linear.reduce_sum),
        "ReduceSumSquare": Operator(linear.reduce_sum_square),
        "Relu": _unary("relu"),
        "Reshape": Operator(layout.reshape),
        "Resize": Operator(layout.resize),
        "Round": Operator(e.rounded),
        "Selu": Operator(e.selu),
        "Shape": Operator(layout.shape),
        "Sigmoid": _unary("sigmoid"),
        "Sign": _unary("sign"),
        "Sin": _unary("sin"),
        "Sinh": _unary("sinh"),
        "Size": Operator(layout.size),
        "Slice": Operator(layout.slice_),
        "Softmax": Operator(linear.softmax),
        "Softplus": _unary("softplus", functional),
        "Softsign": _unary("softsign", functional),
        "SpaceToDepth": Operator(layout.space_to_depth),
        "Split": Operator(layout.split, outputs=MANY),
        "Sqrt": _unary("sqrt"),
        "Squeeze": Operator(layout.squeeze),
        "Sub": Operator(e.subtract),
        "Sum": Operator(e.total),
        "Tan": _unary("tan"),
        "Tanh": _unary("tanh"),
        "ThresholdedRelu": Operator(e.thresholded_relu),
        "Tile": Operator(layout.tile),
        "Transpose": Operator(layout.transpose),
        "Trilu": Operator(layout.trilu),
        "Unsqueeze": Operator(layout.unsqueeze),
        "Where": Operator(e.where),
    }
)
