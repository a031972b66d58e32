"""Codes of fewer than 8 bits: which exist, and which one a real becomes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.float_weight import FloatWeight
from edgeq.numerics.affine import quantize
from edgeq.numerics.grid import above, below, nearest
from edgeq.numerics.qtype import FLOAT4, FORMATS, QTYPES
from edgeq.recipe import QuantSpec
from edgeq.weight_codes import weight_qparams

# format, units, codes
RULES = {
    "int4 ties to even": ("int4", [0.5, 1.5, 2.5, -0.5, -1.5], [0, 2, 2, 0, -2]),
    "int4 saturates": ("int4", [-9, -8.6, 7.4, 7.6, 100], [-8, -8, 7, 7, 7]),
    "int2 saturates": ("int2", [-3, -2, -1, 0, 1, 2], [-2, -2, -1, 0, 1, 1]),
    "uint6 saturates": ("uint6", [-1, 0, 62.5, 63.4, 64], [0, 0, 62, 63, 63]),
    "uint7 saturates": ("uint7", [127, 128], [127, 127]),
    "E2M1 grid": ("float4e2m1", [0, 1, 2, 3, 4, 6, 8, 12], [0, 1, 2, 3, 4, 6, 8, 12]),
    "E2M1 ties to even": ("float4e2m1", [0.5, 1.5, 2.5, 3.5, 5, 7, 10], [0, 2, 2, 4, 4, 8, 8]),
    "E2M1 negative ties": ("float4e2m1", [-0.5, -5, -7, -10], [0, -4, -8, -8]),
    "E2M1 next to ties": ("float4e2m1", [4.99, 5.01, 6.99, 7.01], [4, 6, 6, 8]),
    "E2M1 saturates": ("float4e2m1", [12.1, 1e30, -13, np.inf], [12, 12, -12, 12]),
    "E1M2 grid": ("float4e1m2", [-7.4, -6.6, 3.5, 4.5, 9], [-7, -7, 4, 4, 7]),
    "E3M0 grid": ("float4e3m0", [1, 2, 4, 8, 16, 32, 64, 65], [1, 2, 4, 8, 16, 32, 64, 64]),
    "E3M0 ties to even": ("float4e3m0", [0.5, 1.5, 3, 6, 12, 24, 48], [0, 2, 2, 8, 8, 32, 32]),
    "NaN is the least": ("float4e2m1", [np.nan], [-12]),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    name, units, codes = RULES[rule]
    one, zero = np.array(1, np.float32), np.array(0, np.int32)
    found = quantize(np.array(units, np.float32), one, zero, FORMATS[name])
    assert found.dtype == FORMATS[name].dtype and found.tolist() == codes


def test_widths():
    for bits in range(2, 9):
        assert FORMATS[f"int{bits}"].bits == FORMATS[f"uint{bits}"].bits == bits
        assert FORMATS[f"int{bits}"].dtype == np.int8 and FORMATS[f"uint{bits}"].dtype == np.uint8
    assert {FORMATS[name].bits for name in FLOAT4} == {4}
    assert QTYPES["int4"].dtype == ml_dtypes.int4  # what a tensor of another's model holds


def test_e2m1_is_that_of_onnx():
    units = np.arange(-14, 14, 1 / 64, dtype=np.float32)
    expected = (units / 2).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * 2
    assert np.array_equal(nearest(units, FORMATS["float4e2m1"]), expected)


@settings(deadline=None)
@given(
    st.sampled_from(["int2", "int4", "int5", *FLOAT4]),
    st.lists(st.integers(-9000, 9000).map(lambda n: n / 128), min_size=1, max_size=30),
    st.sampled_from([127, 7, 4, 1]),
)
def test_neighbours_enclose_every_real(name, units, limit):
    qtype, units = FORMATS[name], np.array(units)
    low, high = qtype.within(limit)
    down, up, near = (f(units, qtype, limit) for f in (below, above, nearest))
    assert ((low <= down) & (down <= near) & (near <= up) & (up <= high)).all()
    inside = (low <= units) & (units < high)
    assert (down[inside] <= units[inside]).all() and (units[inside] < up[inside]).all()
    if qtype.values is not None:
        assert np.isin(np.concatenate([down, up, near]), qtype.values).all()
        grid = np.array([v for v in qtype.values if abs(v) <= limit])
        distance = np.abs(units[:, None] - grid).min(1)
        assert np.array_equal(np.abs(near - units), distance)


@pytest.mark.parametrize("name", [*FLOAT4, "float4", "int4", "int3"])
@pytest.mark.parametrize("scale", ["float", "power_of_two"])
def test_the_search_beats_the_whole_range(name, scale):
    weight = np.random.default_rng(3).standard_t(4, (8, 200)).astype(np.float32)
    errors = {}
    for observer in ("mse", "minmax"):
        spec = QuantSpec(name, "per_channel", True, scale, observer)
        qparams = weight_qparams(weight, spec, 0, 127)
        codes = qparams.quantize(weight)
        assert codes.dtype == np.int8 and np.isin(codes, qparams.qtype.values or codes).all()
        errors[observer] = np.square(qparams.dequantize(codes) - weight).sum(1)
    assert (errors["mse"] <= errors["minmax"] * (1 + 1e-6)).all()
    assert scale != "float" or errors["mse"].sum() < errors["minmax"].sum()


def test_float4_is_the_best_of_three():
    rng = np.random.default_rng(4)
    flat, peaked = rng.uniform(-1, 1, (4, 500)), rng.standard_t(1.5, (4, 500))
    spec = QuantSpec("float4", "per_channel", True, "float", "mse")
    found = [weight_qparams(w.astype(np.float32), spec, 0, 127).qtype.name for w in (flat, peaked)]
    assert found == ["float4e1m2", "float4e3m0"]


def test_a_float_weight_knows_its_neighbours():
    weight = np.array([[0.5, -2.5], [40.0, 3.0]], np.float32)
    shift = np.array([[0, 2]], np.int32)
    found = FloatWeight(weight, FORMATS["int4"], 127, shift, axis=0)
    units = found.units(np.array([0.5, 1.0], np.float32))
    assert units.tolist() == [[1.0, -1.25], [40.0, 0.75]]
    assert found.below(units).tolist() == [[1, -2], [7, 0]]
    assert found.above(units).tolist() == [[2, -1], [7, 1]]
    assert found.codes(found.nearest(units)).tolist() == [[1, -4], [7, 4]]
    with pytest.raises(AssertionError, match="fits 8 bits"):
        FloatWeight(weight, FORMATS["int8"], 127, shift).codes(np.full((2, 2), 90))
