"""Every operator against ONNX Runtime's kernel for the same node: bits, on exact data.

Data are small integers held in floats (so every sum is exact, in any order), or random reals where
the operator is a single IEEE operation per element. exp and its kin are compared in ulps: no
standard defines their last bit.
"""

import numpy as np
import pytest

from edgeq.operators import OPERATORS
from tests.conformance.operator_cases import (
    LAYOUT,
    RESIZE,
    Case,
    doubles,
    f32,
    i64,
    integers,
    octets,
    reals,
    u8,
)
from tests.conformance.runtime import by_edgeq, by_onnxruntime, one_node, same_bits, ulps

X4 = integers(2, 4, 7, 6)
CONV = [
    Case("Conv", (X4, integers(6, 4, 3, 3), integers(6)), attributes)
    for attributes in (
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 3]},
        {"strides": [2, 2]},
        {"strides": [2, 3], "pads": [1, 0, 0, 1]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"dilations": [2, 1], "strides": [3, 2], "pads": [1, 2, 3, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [1, 3]},
        {"auto_pad": "VALID"},
        {"auto_pad": "NOTSET", "kernel_shape": [3, 3]},
    )
] + [
    Case("Conv", (X4, integers(6, 2, 3, 3), integers(6)), {"group": 2, "pads": [1, 1, 1, 1]}),
    Case("Conv", (X4, integers(4, 1, 3, 3)), {"group": 4, "pads": [1, 1, 1, 1]}),
    Case("Conv", (X4, integers(4, 1, 3, 3)), {"group": 4, "strides": [2, 2]}),
    Case("Conv", (X4, integers(8, 1, 3, 2)), {"group": 4, "dilations": [2, 3]}),
    Case("Conv", (X4, integers(32, 1, 3, 3)), {"group": 4}),
    Case("Conv", (X4, integers(4, 1, 5, 5)), {"group": 4, "pads": [2] * 4, "strides": [3, 3]}),
    Case("Conv", (X4, integers(5, 4, 1, 1), integers(5)), {}),
    Case("Conv", (X4, integers(5, 4, 1, 1)), {"strides": [2, 2]}),
    Case("Conv", (X4, integers(5, 4, 1, 1)), {"pads": [1, 1, 1, 1]}),
    Case("Conv", (X4, integers(5, 4, 7, 6)), {}),
    Case("Conv", (integers(2, 3, 11), integers(4, 3, 4), integers(4)), {"pads": [2, 1]}),
    Case("Conv", (integers(2, 4, 11), integers(4, 1, 3)), {"group": 4, "strides": [2]}),
    Case("Conv", (integers(1, 3, 5, 6, 4), integers(4, 3, 3, 2, 2)), {"pads": [1, 0, 1, 1, 1, 0]}),
    Case("Conv", (integers(1, 4, 5, 6, 4), integers(4, 1, 3, 3, 3)), {"group": 4, "pads": [1] * 6}),
    Case("Conv", (integers(0, 4, 7, 6), integers(6, 4, 3, 3)), {}),
]
TRANSPOSED = [
    Case("ConvTranspose", (X4, integers(4, 3, 3, 3), integers(3)), attributes)
    for attributes in (
        {},
        {"strides": [2, 2]},
        {"strides": [2, 2], "output_padding": [1, 1]},
        {"strides": [3, 3], "pads": [1, 0, 2, 1], "output_padding": [0, 2]},
        {"strides": [3, 2], "pads": [1, 1, 1, 1]},
        {"dilations": [2, 2], "pads": [1, 1, 2, 2]},
        {"strides": [2, 2], "output_shape": [14, 12]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
    )
] + [
    Case("ConvTranspose", (X4, integers(4, 3, 2, 2)), {"group": 2, "strides": [2, 2]}),
    Case("ConvTranspose", (X4, integers(4, 1, 3, 3)), {"group": 4, "strides": [2, 2]}),
    Case("ConvTranspose", (X4, integers(4, 1, 2, 2)), {"strides": [4, 4]}),
    Case("ConvTranspose", (integers(2, 3, 5), integers(3, 2, 4)), {"strides": [2]}),
]
PRODUCTS = [
    Case("Gemm", (integers(3, 5), integers(5, 4), integers(4))),
    Case("Gemm", (integers(3, 5), integers(4, 5), integers(3, 4)), {"transB": 1}),
    Case("Gemm", (integers(5, 3), integers(5, 4)), {"transA": 1}),
    Case("Gemm", (integers(3, 5), integers(5, 4), integers(1, 4)), {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (integers(3, 5), integers(5, 4), integers(3, 1))),
    Case("MatMul", (integers(3, 5), integers(5, 4))),
    Case("MatMul", (integers(2, 3, 5), integers(5, 4))),
    Case("MatMul", (integers(2, 1, 3, 5), integers(4, 5, 6))),
    Case("MatMul", (integers(5), integers(5, 4))),
    Case("MatMul", (integers(3, 5), integers(5))),
    Case("MatMulInteger", (octets(3, 5), octets(5, 4))),
    Case("MatMulInteger", (octets(2, 1, 3, 5), octets(4, 5, 6), u8(7), u8(201))),
    Case("MatMulInteger", (octets(1, 300), octets(300, 1), u8(0), u8(255))),
]
ARITHMETIC = (
    [
        Case(op, (reals(2, 3, 4), reals(*shape)))
        for op in ("Add", "Sub", "Mul", "Div")
        for shape in ((2, 3, 4), (4,), (3, 1), ())
    ]
    + [
        Case(op, (integers(9, 5, dtype=d), integers(5, low=1, dtype=d)))
        for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")
        for d in (np.int32, np.int64)
    ]
    + [
        Case(op, (doubles(9, 5), doubles(*shape)))
        for op in ("Add", "Sub", "Mul", "Div")
        for shape in ((9, 5), (5,), ())
    ]
    + [
        Case("Sum", (reals(3, 4), reals(4), reals(3, 1))),
        Case("Max", (reals(3, 4), reals(4), reals(3, 1))),
        Case("Min", (reals(3, 4), reals(4), reals(3, 1))),
        Case("Mean", (reals(3, 4), reals(4), reals(3, 1))),
        Case("Max", (integers(9, dtype=np.uint8, low=0), integers(9, dtype=np.uint8, low=0))),
        Case("Mod", (integers(99, dtype=np.int64), integers(99, low=1, dtype=np.int64))),
        Case(
            "Mod", (integers(99, dtype=np.int64), integers(99, low=1, dtype=np.int64)), {"fmod": 1}
        ),
        Case("Pow", (reals(99), f32(2.0))),
        Case("Pow", (reals(99), np.array(3.0, np.float32))),
        Case("PRelu", (reals(2, 3, 4, 5), reals(3, 1, 1))),
        Case("PRelu", (reals(2, 3, 4, 5), reals(1))),
        Case("LeakyRelu", (reals(99),), {"alpha": 0.1}),
        Case("LeakyRelu", (reals(99),)),
        Case("ThresholdedRelu", (reals(999),)),
        Case("ThresholdedRelu", (np.arange(-4, 4, 0.5, dtype=np.float32),), {"alpha": -0.5}),
        Case("HardSigmoid", (reals(999),)),
        Case("HardSigmoid", (reals(999),), {"alpha": 0.1666666716337204, "beta": 0.5}),
        Case("HardSwish", (reals(999),)),
        Case("Round", (np.arange(-4, 4, 0.5, dtype=np.float32),)),
        Case("Clip", (reals(99), np.array(-1, np.float32), np.array(2, np.float32))),
        Case("Clip", (reals(99), None, np.array(2, np.float32))),
        Case("Clip", (reals(99), np.array(0, np.float32))),
        Case(
            "Clip",
            (
                integers(99, low=0, high=255, dtype=np.uint8),
                np.array(3, np.uint8),
                np.array(9, np.uint8),
            ),
        ),
        Case("Clip", (integers(99, dtype=np.int8), np.array(-3, np.int8), np.array(5, np.int8))),
        Case("Where", (integers(9, low=0, high=2).astype(bool), reals(9), reals(3, 1))),
        Case(
            "BatchNormalization", (reals(2, 3, 4, 4), reals(3), reals(3), reals(3), abs(reals(3)))
        ),
        Case(
            "BatchNormalization",
            (reals(2, 3, 9), reals(3), reals(3), reals(3), abs(reals(3))),
            {"epsilon": 0.001},
        ),
    ]
    + [
        Case(op, (reals(999),))
        for op in ("Relu", "Neg", "Abs", "Floor", "Ceil", "Sign", "Reciprocal")
    ]
    + [
        Case("Sqrt", (abs(reals(999)),)),
        Case("Sqrt", (abs(doubles(999)),)),
        Case("Reciprocal", (doubles(999),)),
        Case("Relu", (integers(99, dtype=np.int8),)),
        Case("Neg", (integers(99, dtype=np.int32),)),
        Case("Abs", (integers(99, dtype=np.int32),)),
        Case("Not", (integers(9, low=0, high=2).astype(bool),)),
        Case("IsNaN", (f32(0, np.nan, -np.inf, 1),)),
    ]
    + [
        Case(
            op, (integers(99, low=0, high=2).astype(bool), integers(99, low=0, high=2).astype(bool))
        )
        for op in ("And", "Or")
    ]
    + [
        Case(op, (integers(99, dtype=d), integers(99, dtype=d)))
        for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
        for d in (np.float32, np.int64)
    ]
)
POOLS = (
    [
        Case(op, (integers(2, 3, 9, 8),), {"kernel_shape": [3, 2], **attributes})
        for op in ("MaxPool", "AveragePool")
        for attributes in (
            {},
            {"strides": [2, 2]},
            {"strides": [2, 3], "pads": [1, 0, 2, 1]},
            {"strides": [2, 2], "ceil_mode": 1},
            {"strides": [4, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
            {"strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
            {"auto_pad": "VALID", "strides": [2, 2]},
            {"dilations": [2, 3]},
            {"dilations": [2, 1], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        )
    ]
    + [
        Case(
            "AveragePool",
            (integers(2, 3, 9, 8),),
            {"kernel_shape": [3, 3], "count_include_pad": 1, **a},
        )
        for a in (
            {"pads": [1, 1, 1, 1]},
            {"pads": [1, 1, 1, 1], "strides": [2, 2]},
            {"pads": [1, 1, 1, 1], "strides": [2, 3], "ceil_mode": 1},
            {"pads": [1, 1, 1, 1], "strides": [3, 2], "ceil_mode": 1},
            {"pads": [1, 0, 0, 1], "strides": [4, 4], "ceil_mode": 1},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        )
    ]
    + [
        Case(
            "MaxPool",
            (integers(2, 3, 9, 8, low=0, high=255, dtype=np.uint8),),
            {"kernel_shape": [2, 2]},
        ),
        Case(
            "MaxPool",
            (integers(2, 3, 9, 8, dtype=np.int8),),
            {"kernel_shape": [3, 3], "pads": [1] * 4},
        ),
        Case("MaxPool", (integers(2, 3, 9),), {"kernel_shape": [2], "strides": [2]}),
        Case("AveragePool", (integers(2, 3, 9),), {"kernel_shape": [3], "strides": [2]}),
        Case(
            "MaxPool", (integers(1, 2, 5, 6, 7),), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}
        ),
        Case("AveragePool", (integers(1, 2, 5, 6, 7),), {"kernel_shape": [2, 3, 2]}),
        Case("GlobalAveragePool", (integers(2, 3, 6, 10),)),
        Case("GlobalAveragePool", (integers(2, 3, 7),)),
        Case("GlobalMaxPool", (integers(2, 3, 6, 10),)),
    ]
)
REDUCTIONS = [
    Case(op, (integers(3, 4, 5, 7, dtype=d), *axes), attributes, constants=(1,) if axes else ())
    for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
    for d in (np.float32, np.int32)
    for axes, attributes in (
        ((), {}),
        ((i64(2, 3),), {}),
        ((i64(-1),), {"keepdims": 0}),
        ((i64(0, 2),), {"keepdims": 1}),
        ((i64(),), {"noop_with_empty_axes": 1}),
    )
] + [
    Case("ReduceMax", (integers(3, 9, low=0, high=255, dtype=np.uint8), i64(1)), constants=(1,)),
    Case("ReduceProd", (integers(3, 4), i64(1)), constants=(1,)),
    Case("ReduceSumSquare", (integers(3, 4), i64(1)), constants=(1,)),
    *(
        Case("ReduceSum", (integers(3, 9, 37, dtype=d), i64(2)), {"keepdims": 0}, constants=(1,))
        for d in (np.float64, np.int64)
    ),
    Case("ArgMax", (integers(5, 9),), {"axis": 1, "keepdims": 0}),
    Case("ArgMax", (integers(5, 9),), {"axis": 0, "select_last_index": 1}),
    Case("CumSum", (integers(5, 9), i64(1))),
    Case("CumSum", (integers(5, 9), i64(0)), {"exclusive": 1, "reverse": 1}),
]
EXACT = CONV + TRANSPOSED + PRODUCTS + ARITHMETIC + POOLS + REDUCTIONS + LAYOUT + RESIZE

# Largest distance to ONNX Runtime, in float32 ulps: its kernels are polynomials of their own, edgeq
# rounds a float64 result, at most half an ulp from the truth. A Softmax here sums 50 terms.
INEXACT = {
    "Exp": (Case("Exp", (reals(9999),)), 2),
    "Log": (Case("Log", (abs(reals(9999)),)), 2),
    "Sin": (Case("Sin", (reals(9999),)), 2),
    "Cos": (Case("Cos", (reals(9999),)), 2),
    "Tan": (Case("Tan", (reals(9999),)), 4),
    "Asin": (Case("Asin", (reals(9999) / 16,)), 4),
    "Acos": (Case("Acos", (reals(9999) / 16,)), 4),
    "Atan": (Case("Atan", (reals(9999),)), 4),
    "Sinh": (Case("Sinh", (reals(9999),)), 4),
    "Cosh": (Case("Cosh", (reals(9999),)), 4),
    "Asinh": (Case("Asinh", (reals(9999),)), 4),
    "Acosh": (Case("Acosh", (1 + abs(reals(9999)),)), 4),
    "Atanh": (Case("Atanh", (reals(9999) / 16,)), 4),
    "Softsign": (Case("Softsign", (reals(9999),)), 4),
    "Tanh": (Case("Tanh", (reals(9999),)), 8),
    "Erf": (Case("Erf", (reals(9999),)), 8),
    "Softmax": (Case("Softmax", (reals(99, 50),)), 32),
    "LogSoftmax": (Case("LogSoftmax", (reals(99, 50),), {"axis": 0}), 32),
    "Softplus": (Case("Softplus", (reals(9999),)), 8),
}
# Where the result passes near zero by cancellation, ulps mean nothing: absolute distance.
NEAR = {
    "Sigmoid": (Case("Sigmoid", (reals(9999),)), 1e-6),
    "Elu": (Case("Elu", (reals(9999),), {"alpha": 0.7}), 1e-6),
    "Celu": (Case("Celu", (reals(9999),), {"alpha": 0.7}), 1e-6),
    "Selu": (Case("Selu", (reals(9999),)), 1e-6),
    "SeluOwn": (Case("Selu", (reals(9999),), {"alpha": 1.5, "gamma": 1.25}), 1e-6),
    "Gelu": (Case("Gelu", (reals(9999),)), 2e-6),
    "GeluTanh": (Case("Gelu", (reals(9999),), {"approximate": "tanh"}), 2e-6),
    "Mish": (Case("Mish", (reals(9999),)), 2e-6),
    "Resize": (
        Case(
            "Resize",
            (integers(1, 2, 5, 6), None, f32(1, 1, 1.3, 0.7)),
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
            constants=(2,),
        ),
        1e-5,
    ),
    "Pow": (Case("Pow", (abs(reals(999)), np.array(0.5, np.float32))), 1e-6),
    "LayerNormalization": (
        Case("LayerNormalization", (reals(9, 4, 50) + 7, reals(4, 50), reals(4, 50)), {"axis": 1}),
        1e-5,
    ),
    "InstanceNormalization": (
        Case("InstanceNormalization", (reals(2, 3, 9, 8), reals(3), reals(3)), {"epsilon": 1e-3}),
        1e-5,
    ),
    "GroupNormalization": (
        Case("GroupNormalization", (reals(2, 6, 9, 8), reals(6), reals(6)), {"num_groups": 3}),
        1e-5,
    ),
}


def name_of(case: Case) -> str:
    shapes = "x".join("none" if a is None else str(list(a.shape)) for a in case.inputs)
    return f"{case.op_type}-{shapes}-{dict(case.attributes)}".replace(" ", "")


@pytest.mark.parametrize("case", EXACT, ids=name_of)
def test_bits_equal_those_of_the_runtime(case: Case) -> None:
    model, feeds = one_node(*case)
    theirs = by_onnxruntime(model, feeds)
    ours = by_edgeq(model, feeds)
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        got = ours[name]
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        differ = int(np.sum(got != expected))
        assert same_bits(got, expected), f"{name}: {differ} of {expected.size} differ"


@pytest.mark.parametrize("name", INEXACT)
def test_functions_without_a_standard_are_within_ulps(name: str) -> None:
    case, limit = INEXACT[name]
    model, feeds = one_node(*case)
    assert ulps(by_edgeq(model, feeds)["y0"], by_onnxruntime(model, feeds)["y0"]) <= limit


@pytest.mark.parametrize("name", NEAR)
def test_functions_with_cancellation_are_near(name: str) -> None:
    case, limit = NEAR[name]
    model, feeds = one_node(*case)
    distance = np.abs(by_edgeq(model, feeds)["y0"] - by_onnxruntime(model, feeds)["y0"])
    assert distance.max() <= limit


def test_every_operator_is_compared() -> None:
    compared = {case.op_type for case in EXACT} | set(INEXACT) | set(NEAR)
    elsewhere = {"QuantizeLinear", "DequantizeLinear"}  # test_numerics.py: a million values
    assert set(OPERATORS) - compared == elsewhere
    assert len(EXACT) > 300
