"""Quantize, dequantize, requantize: named rules with their codes, properties, ONNX Runtime."""

import doctest
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeq.numerics import affine, linear, parallel, qtype, requantize, resize, windows
from edgeq.numerics.affine import QParams, dequantize, quantize, saturate
from edgeq.numerics.qtype import QTYPES, QType
from edgeq.numerics.requantize import multiplier, requantize_in_place
from edgeq.numerics.requantize import requantize as requantize_
from tests.conformance.runtime import by_onnxruntime, same_bits


def f32(value: float) -> Any:
    return np.asarray(value, np.float32)


def i32(value: int) -> Any:
    return np.asarray(value, np.int32)


INF, NAN = np.inf, np.nan


class Rule(NamedTuple):
    qtype: str
    scale: Any
    zero: Any
    reals: list[Any]
    codes: list[Any]
    axis: int | None = None


QUANTIZE = {
    "ties go to even, zero point even": Rule(
        "uint8", 1.0, 2, [0.5, 1.5, 2.5, -0.5, -1.5], [2, 4, 4, 2, 0]
    ),
    "ties go to even before an odd zero point is added": Rule(
        "uint8", 1.0, 3, [0.5, 1.5, 2.5, -0.5, -1.5, -2.5], [3, 5, 5, 3, 1, 1]
    ),
    "ties with a scale": Rule("int8", 0.25, 0, [0.125, 0.375, -0.125, -0.375], [0, 2, 0, -2]),
    "saturates high": Rule("uint8", 1.0, 10, [244.4, 245.0, 245.5, 1e9], [254, 255, 255, 255]),
    "saturates low": Rule("uint8", 1.0, 10, [-10.0, -10.5, -11.0, -1e9], [0, 0, 0, 0]),
    "saturates on both sides of int8": Rule(
        "int8", 1.0, -1, [127, 128, 129, -127, -128], [126, 127, 127, -128, -128]
    ),
    "NaN is qmin": Rule("uint8", 1.0, 7, [NAN, 1.0], [0, 8]),
    "NaN is qmin, signed": Rule("int8", 1.0, 7, [NAN, 1.0], [-128, 8]),
    "NaN is qmin, int32": Rule("int32", 1.0, 0, [NAN], [-(2**31)]),
    "infinities saturate": Rule("uint8", 0.1, 128, [INF, -INF], [255, 0]),
    "overflow of the ratio saturates": Rule("int16", 1e-30, 0, [3e38, -3e38], [32767, -32768]),
    "minus zero is the zero point": Rule("uint8", 0.3, 5, [-0.0, 0.0], [5, 5]),
    "denormals are zero": Rule("uint8", 1.0, 5, [1e-42, -1e-42], [5, 5]),
    "per channel": Rule("int8", [1.0, 2.0], [0, 1], [[3.0, 5.0], [3.0, 5.0]], [[3, 5], [3, 3]], 0),
    "per channel, last axis": Rule("uint8", [1.0, 4.0], [0, 100], [[3.0, 6.0]], [[3, 102]], -1),
    "int4 range": Rule("int4", 1.0, 0, [-9, -8, 7, 8, 0.5, 1.5], [-8, -8, 7, 7, 0, 2]),
    "uint4 range": Rule("uint4", 1.0, 8, [-9, -8, 7, 8, 0.5, 1.5], [0, 0, 15, 15, 8, 10]),
    "int16 range": Rule("int16", 1.0, 0, [32767.5, -32769], [32767, -32768]),
    "uint16 with an odd zero point": Rule(
        "uint16", 1.0, 65535, [0.0, -0.5, -1.5, 1.0], [65535, 65535, 65533, 65535]
    ),
    "int32 range": Rule(
        "int32",
        1.0,
        0,
        [2.0**31, -(2.0**31), 2.0**24 + 2, 2.0**31 - 128],
        [2**31 - 1, -(2**31), 2**24 + 2, 2**31 - 128],
    ),
}

DEQUANTIZE = {
    "the zero point is subtracted first": Rule(
        "uint8",
        0.1,
        3,
        [f32(-3) * f32(0.1), 0.0, f32(252) * f32(0.1)],
        [0, 3, 255],
    ),
    "int8 minimum": Rule("int8", 0.5, 127, [-127.5], [-128]),
    "int4": Rule("int4", 2.0, -8, [0.0, 30.0], [-8, 7]),
    "uint4": Rule("uint4", 2.0, 15, [-30.0, 0.0], [0, 15]),
    "int16": Rule("int16", 1.0, -32768, [65535.0], [32767]),
    "uint16": Rule("uint16", 1.0, 65535, [-65535.0], [0]),
    "int32 beyond 2**24 is rounded once": Rule(
        "int32", 1.0, 0, [2.0**24, 2.0**24 + 4], [2**24 + 1, 2**24 + 3]
    ),
    "per channel": Rule("int8", [1.0, 0.5], [0, 2], [[3.0], [0.5]], [[3], [3]], 0),
}


def parameters(rule: Rule) -> tuple[Any, Any, QType, int | None]:
    scale = np.asarray(rule.scale, np.float32)
    return scale, np.asarray(rule.zero, np.int32), QTYPES[rule.qtype], rule.axis


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantize(name: str) -> None:
    rule = QUANTIZE[name]
    codes = quantize(np.asarray(rule.reals, np.float32), *parameters(rule))
    assert codes.dtype == QTYPES[rule.qtype].dtype
    assert codes.astype(np.int64).tolist() == rule.codes


@pytest.mark.parametrize("name", DEQUANTIZE)
def test_dequantize(name: str) -> None:
    rule = DEQUANTIZE[name]
    scale, zero, kind, axis = parameters(rule)
    reals = dequantize(np.asarray(rule.codes).astype(kind.dtype), scale, zero, axis)
    assert same_bits(reals, np.asarray(rule.reals, np.float32))


class Requantize(NamedTuple):
    acc: list[Any]
    multiplier: Any
    zero: int
    qtype: str
    codes: list[Any]
    axis: int | None = None


REQUANTIZE = {
    "ties go to even": Requantize([1, 3, 5, -1, -3], 0.5, 2, "uint8", [2, 4, 4, 2, 0]),
    "ties, odd zero point": Requantize([1, 3, 5, -1, -3], 0.5, 3, "uint8", [3, 5, 5, 3, 1]),
    "saturates": Requantize([10**6, -(10**6)], 0.5, 7, "uint8", [255, 0]),
    "saturates, signed": Requantize([10**6, -(10**6)], 0.5, 7, "int8", [127, -128]),
    "beyond 2**24 the accumulator is rounded to even first": Requantize(
        [2**24 + 1, 2**24 + 3], 2.0**-17, 0, "uint8", [128, 128]
    ),
    "that rounding decides a tie": Requantize([2**24 + 1], 2.0**-24 * 1.5, 0, "uint8", [2]),
    "the smallest int32": Requantize([-(2**31)], 2.0**-25, 128, "uint8", [64]),
    "per channel": Requantize([[10, 10], [10, 10]], [0.5, 0.25], 0, "int8", [[5, 2], [5, 2]], 1),
    "int4": Requantize([100, -100, 3], 0.5, 0, "int4", [7, -8, 2]),
    "int16": Requantize([10**6, 12345], 1.0, 0, "int16", [32767, 12345]),
    "int32": Requantize([2**24 + 2], 1.0, 1, "int32", [2**24 + 3]),
}


@pytest.mark.parametrize("name", REQUANTIZE)
@pytest.mark.parametrize("carrier", [np.int32, np.int64, np.float64])
def test_requantize(name: str, carrier: Any) -> None:
    rule = REQUANTIZE[name]
    factor = np.asarray(rule.multiplier, np.float32)
    kind = QTYPES[rule.qtype]
    codes = requantize_(np.asarray(rule.acc, carrier), factor, i32(rule.zero), kind, rule.axis)
    assert codes.dtype == kind.dtype
    assert codes.astype(np.int64).tolist() == rule.codes
    if kind.bits == 8 and carrier == np.float64:
        again = requantize_in_place(np.asarray(rule.acc, carrier), factor, rule.zero, kind)
        assert again.tolist() == rule.codes


def test_multiplier_rounds_the_product_and_then_the_quotient() -> None:
    sx, sw, sy = (np.array(v, np.float32) for v in (0.1, [0.3, 0.7], 0.9))
    found = multiplier(sx, sw, sy)
    exact = [float(np.float64(sx) * np.float64(w) / np.float64(sy)) for w in sw]
    assert found.dtype == np.float32
    assert found.tobytes() == ((sx * sw) / sy).tobytes()
    assert np.allclose(found, exact, rtol=2e-7)


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50),
    st.floats(2.0**-30, 1.0, width=32),
    st.integers(-128, 127),
)
def test_in_place_requantize_is_requantize(acc: list[int], factor: float, zero: int) -> None:
    exact = np.asarray(acc, np.float64)
    m = f32(factor)
    expected = requantize_(exact, m, i32(zero), QTYPES["int8"])
    for carrier in (np.float32, np.float64):
        codes = requantize_in_place(exact.astype(carrier), m, zero, QTYPES["int8"])
        assert same_bits(codes.astype(np.int8), expected)


NAMES = st.sampled_from(sorted(QTYPES))


@given(NAMES, st.floats(2.0**-100, 2.0**40, width=32), st.data())
def test_codes_survive_dequantize_and_quantize(name: str, scale: float, data: Any) -> None:
    kind = QTYPES[name]
    # Two float32 roundings of a 22-bit code move it by less than half a step; of a wider one not.
    low, high = max(kind.qmin, -(2**21)), min(kind.qmax, 2**21)
    zero = data.draw(st.integers(low, high))
    codes = np.array(data.draw(st.lists(st.integers(low, high), min_size=1))).astype(kind.dtype)
    params = QParams(kind, f32(scale), i32(zero))
    assert same_bits(params.quantize(params.dequantize(codes)), codes)


@given(NAMES, st.floats(2.0**-20, 2.0**20, width=32), st.lists(st.floats(width=32), min_size=1))
def test_quantize_is_monotonic_and_in_range(name: str, scale: float, reals: list[float]) -> None:
    kind = QTYPES[name]
    x = np.sort(np.asarray(reals, np.float32))  # NaN last
    codes = quantize(x, f32(scale), i32(0), kind).astype(np.int64)
    assert codes.min() >= kind.qmin and codes.max() <= kind.qmax
    assert np.all(np.diff(codes[~np.isnan(x)]) >= 0)
    assert np.all(codes[np.isnan(x)] == kind.qmin)


@given(st.floats(-1e6, 1e6, width=32), st.floats(2.0**-10, 2.0**10, width=32))
def test_quantize_is_the_nearest_code(real: float, scale: float) -> None:
    x, s = f32(real), f32(scale)
    code = int(quantize(np.array(x), s, i32(0), QTYPES["int32"]))
    assert code == int(np.rint(f32(x / s)))


def test_saturate_leaves_its_argument_alone() -> None:
    rounded = np.array([1000.0, np.nan], np.float32)
    saturate(rounded, i32(0), QTYPES["uint8"])
    assert rounded[0] == 1000.0 and np.isnan(rounded[1])


def qdq_model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
            # numpy has no 4-bit type that ONNX Runtime could return.
            helper.make_node("Cast", ["q"], ["codes"], to=TensorProto.INT32),
        ],
        "qdq",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("codes", TensorProto.INT32, [None]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None]),
        ],
        [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def values_with_ties(scale: float, zero: int, count: int, seed: int) -> Any:
    """Random reals, saturating ones, exact ties and their neighbours, and the special values."""
    random = np.random.default_rng(seed)
    s = f32(scale)
    spread = random.standard_normal(count // 2).astype(np.float32) * s * f32(100)
    ties = (random.integers(-300, 300, count // 4) + 0.5).astype(np.float32) * s
    near = np.nextafter(
        ties, np.where(random.random(ties.size) < 0.5, -INF, INF).astype(np.float32)
    )
    special = np.array([NAN, INF, -INF, -0.0, 0.0, 1e-45, 3e38, -3e38], np.float32)
    rest = count - spread.size - 2 * ties.size - special.size
    assert rest < 0
    return np.concatenate([special, spread, ties, near])[:count]


@pytest.mark.parametrize("name", ["uint8", "int8", "uint16", "int16", "int4", "uint4"])
def test_a_million_values_agree_with_onnxruntime(name: str) -> None:
    kind, compared, ties = QTYPES[name], 0, 0
    scales = [2.0**-5, 1.0, 0.1, 0.0123456, 3.0, 1e-20, 7.7e10, 1 / 255]
    zeros = sorted(
        {kind.qmin, kind.qmin + 1, (kind.qmin + kind.qmax) // 2, kind.qmax - 1, kind.qmax}
    )
    each = 1_000_000 // (6 * len(scales) * len(zeros)) + 1
    for zero in zeros:
        model = qdq_model()
        point = np.array(zero).astype(kind.dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(point, "z"))
        for index, scale in enumerate(scales):
            x = values_with_ties(scale, zero, each, seed=index)
            s = np.array(scale, np.float32)
            theirs = by_onnxruntime(model, {"x": x, "s": s})
            codes = quantize(x, s, i32(zero), kind)
            reals = dequantize(codes, s, i32(zero))
            assert same_bits(codes.astype(np.int32), theirs["codes"])
            assert same_bits(reals, theirs["y"])
            compared += codes.size
            with np.errstate(all="ignore"):
                ties += int(np.sum(np.abs(x / s - np.trunc(x / s)) == 0.5))
    assert compared * 6 >= 1_000_000
    assert ties > compared // 12


def test_adding_the_zero_point_before_rounding_would_differ() -> None:
    """The rule of the definition matters: with an odd zero point every tie moves."""
    x = np.arange(-20, 20, dtype=np.float32) + f32(0.5)
    ours = quantize(x, f32(1), i32(101), QTYPES["uint8"]).astype(np.int64)
    wrong = np.rint(x + f32(101)).astype(np.int64)
    assert np.all(ours != wrong)


def test_multiplying_by_the_reciprocal_would_differ() -> None:
    scale = f32(0.0123456)
    x = (np.arange(250, dtype=np.float32) + f32(0.5)) * scale
    ours = quantize(x, scale, i32(0), QTYPES["uint8"]).astype(np.int64)
    assert np.array_equal(ours, np.rint(x / scale))
    assert np.any(ours != np.rint(x * (f32(1) / scale)))


@pytest.mark.parametrize(
    "module",
    [affine, linear, parallel, qtype, requantize, resize, windows],
    ids=lambda m: m.__name__,
)
def test_examples_in_the_documentation(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_dtypes_of_narrow_formats() -> None:
    assert QTYPES["int4"].dtype == ml_dtypes.int4 and QTYPES["uint4"].dtype == ml_dtypes.uint4
