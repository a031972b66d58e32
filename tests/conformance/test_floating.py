"""Small floats: the bits of ml_dtypes and of ONNX Runtime, for every code and at every tie."""

import ctypes
import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.numerics.floating import FORMATS, FloatFormat, ordinals, saturating_cast

WITH_DTYPE = {name: form for name, form in FORMATS.items() if form.dtype is not None}
DTYPES = {name: np.dtype(form.dtype) for name, form in WITH_DTYPE.items()}


def reals(form: FloatFormat) -> NDArray[np.float32]:
    """Return numbers, ties, their neighbours, random reals of every size and float32's ends."""
    random = np.random.default_rng(0)
    ties = form.middles.astype(np.float32)
    normal = random.normal(size=20_000)
    parts = [
        form.magnitudes, ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, -ties),
        normal, normal * np.exp(random.normal(0, 6, normal.shape)),
        [0.0, 1e-45, 1e-38, form.largest * 1.03, form.largest * 1.2, 3e38, np.inf],
    ]  # fmt: skip
    found = np.concatenate([np.asarray(part, np.float32) for part in parts])
    return np.concatenate([found, -found])


@pytest.mark.parametrize("name", WITH_DTYPE)
def test_numbers_are_those_of_ml_dtypes(name):
    form = WITH_DTYPE[name]
    patterns = np.arange(2**form.bits, dtype=np.uint8)
    decoded = patterns.view(DTYPES[name]).astype(np.float64)
    half = 2 ** (form.bits - 1)
    count = len(form.magnitudes)
    assert count == half - form.lost
    assert decoded[:count].tobytes() == form.magnitudes.tobytes()
    assert decoded[half : half + count].tobytes() == (-form.magnitudes).tobytes()
    assert not np.isfinite(decoded[count:half]).any()


@pytest.mark.parametrize("name", WITH_DTYPE)
def test_rounding_is_that_of_ml_dtypes(name):
    form = WITH_DTYPE[name]
    x = reals(form)
    expected = np.clip(x, -form.largest, form.largest).astype(form.dtype)
    assert form.patterns(x).tobytes() == expected.view(np.uint8).tobytes()
    assert form.round(x).tobytes() == expected.astype(np.float32).tobytes()
    assert x.size > 80_000


def by_the_formula(x: float, form: FloatFormat, largest: float) -> float:
    """Return what Kuzmin et al. compute: the bias is a real number, set by the largest value."""
    exponent, mantissa = form.exponent, form.mantissa
    bias = 2**exponent - math.log2(largest) + math.log2(2 - 2.0**-mantissa) - 1
    clipped = min(max(x, -largest), largest)
    power = max(math.floor(math.log2(abs(clipped)) + bias), 1) if clipped else 1
    step = 2.0 ** (power - mantissa - bias)
    return float(step * np.rint(clipped / step))


@pytest.mark.parametrize("name", [n for n, form in FORMATS.items() if not form.lost])
@given(x=st.floats(-4, 4), largest=st.floats(0.1, 5))
def test_a_real_bias_is_a_scale(name, x, largest):
    form = FORMATS[name]
    scale = largest / form.largest
    ratio = np.array([x / scale])
    # Near a tie, and where log2 rounds across a power of two, the formula itself is not sure.
    near = np.abs(np.abs(ratio) - form.middles).min() / max(abs(float(ratio[0])), 1e-3)
    if near > 1e-9 and abs(x) > 1e-9:
        found = float(form.round(ratio)[0]) * scale
        assert math.isclose(found, by_the_formula(x, form, largest), rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("name", "integers", "width"),
    [
        ("e1m2fn", [0, 1, 2, 3, 4, 5, 6, 7], 4),
        ("e2m1fn", [0, 1, 2, 3, 4, 6, 8, 12], 5),
        ("e3m0fn", [0, 1, 2, 4, 8, 16, 32, 64], 8),
        ("e2m3fn", None, 7),
        ("e3m2fn", None, 10),
        ("e2m5fn", None, 9),
        ("e3m4", None, 11),
        ("e4m3fn", None, 19),
        ("e5m2", None, 33),
    ],
)
def test_every_number_is_an_integer_times_the_smallest(name, integers, width):
    form = FORMATS[name]
    units = form.magnitudes / form.magnitudes[1]
    assert np.array_equal(units, np.rint(units)) and form.width == width
    assert integers is None or units.tolist() == integers
    assert 2 ** (width - 2) <= units[-1] < 2 ** (width - 1)


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2"])
def test_ordinals_are_in_order(name):
    form = FORMATS[name]
    signed = np.concatenate([-form.magnitudes[::-1], form.magnitudes]).astype(form.dtype)
    found = ordinals(signed)
    count = len(form.magnitudes)
    assert found.tolist() == [*range(1 - count, 1), *range(count)]


# --- what ONNX Runtime's CPU kernels compute

ELEMENTS = {"e4m3fn": ir.DataType.FLOAT8E4M3FN, "e5m2": ir.DataType.FLOAT8E5M2}


def onnx_runtime(name: str, x: NDArray[Any], scale: Any, level: str) -> tuple[Any, Any]:
    """Return bit patterns and reals of a QuantizeLinear and the DequantizeLinear behind it."""
    import onnxruntime as ort

    from edgeq.graph import to_bytes
    from edgeq.runtime import LEVELS

    scale = np.asarray(scale, np.float32)
    kind = ELEMENTS[name].name.lower()
    dims = "[C]" if scale.ndim else ""
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[N,C] x, float{dims} s)'
        f" => ({kind}[N,C] q, float[N,C] y) {{ q = QuantizeLinear <axis: int = 1> (x, s, z)"
        " y = DequantizeLinear <axis: int = 1> (q, s, z) }"
    )
    zero = ir.Value(name="z", const_value=ir.tensor(np.zeros(scale.shape, FORMATS[name].dtype)))
    model.graph.register_initializer(zero)
    for node in model.graph:
        node.replace_input_with(2, zero)
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    session = ort.InferenceSession(to_bytes(model), options)
    feeds = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in {"x": x, "s": scale}.items()}
    q, y = session.run_with_ort_values(["q", "y"], feeds)
    codes = ctypes.string_at(q.data_ptr(), math.prod(q.shape()))
    return np.frombuffer(codes, np.uint8).reshape(x.shape), y.numpy()


@pytest.mark.parametrize("level", ["none", "all"])
@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("scale", [1.0, 0.1, 2.0**-10, 3.0, [0.1, 1.0, 0.0123, 7.0]])
def test_onnx_runtime_computes_the_definition(name, scale, level):
    form = FORMATS[name]
    x = np.concatenate([reals(form), np.array([np.nan, -np.nan], np.float32)])
    x = np.ascontiguousarray(x[: len(x) // 4 * 4].reshape(-1, 4))
    step = np.asarray(scale, np.float32)
    with np.errstate(all="ignore"):
        codes = saturating_cast(np.asarray(x / step, np.float32), DTYPES[name])
    found, real = onnx_runtime(name, x, scale, level)
    assert found.tobytes() == codes.view(np.uint8).tobytes() and found.size > 80_000
    expected = codes.astype(np.float32) * step
    known = ~np.isnan(expected)
    assert real[known].tobytes() == expected[known].tobytes()
    assert np.isnan(real[~known]).all()


@pytest.mark.parametrize("name", ELEMENTS)
def test_nan_keeps_its_sign(name):
    codes = saturating_cast(np.array([np.nan, -np.nan, 1.0], np.float32), DTYPES[name])
    assert codes.view(np.uint8)[:2].tolist() == [0x7F, 0xFF]
