"""The choice of scale and zero point: named rules, and properties for every range."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.numerics.qtype import FORMATS
from edgeq.numerics.scale import choose_qparams, nearest_exponent


@dataclass(frozen=True)
class Spec:
    qtype: str = "uint8"
    symmetric: bool = False
    scale: str = "float"


U8, S8 = Spec(), Spec("int8", symmetric=True)
U8P, S8P = Spec(scale="power_of_two"), Spec("int8", True, "power_of_two")
S8A, S8AP = Spec("int8"), Spec("int8", scale="power_of_two")
FLOOR = 2.0**-40

RULES = [
    ("one-sided", U8, 0.0, 255.0, 1.0, 0),
    ("negative only", U8, -255.0, 0.0, 1.0, 255),
    ("two-sided", U8, -128.0, 127.0, 1.0, 128),
    ("signed codes", S8A, -128.0, 127.0, 1.0, 0),
    ("the range is stretched to 0 from above", U8, 100.0, 255.0, 1.0, 0),
    ("the range is stretched to 0 from below", U8, -255.0, -100.0, 1.0, 255),
    ("a zero point on a tie goes to the even code", U8, -2.5, 252.5, 1.0, 2),
    ("nothing seen", U8, 0.0, 0.0, FLOOR, 0),
    ("nothing seen, power of two", U8P, 0.0, 0.0, FLOOR, 0),
    ("nothing seen, symmetric", S8, 0.0, 0.0, FLOOR, 0),
    ("a dead channel", U8, 0.0, 1e-30, FLOOR, 0),
    ("symmetric within the limit, not at qmin", S8, -127.0, 10.0, 1.0, 0),
    ("symmetric, the upper end decides", S8, -1.0, 254.0, 2.0, 0),
    ("symmetric unsigned: the middle code", Spec("uint8", True), -127.0, 3.0, 1.0, 128),
    ("symmetric int4", Spec("int4", True), -7.0, 3.0, 1.0, 0),
    ("power of two exactly", U8P, 0.0, 255.0, 1.0, 0),
    ("the nearest exponent below", U8P, 0.0, 255 * 1.41, 1.0, 0),
    ("the nearest exponent above", U8P, 0.0, 255 * 1.42, 2.0, 0),
    ("symmetric power of two, below", S8P, -127 * 1.41, 0.0, 1.0, 0),
    ("symmetric power of two, above", S8P, -127 * 1.42, 0.0, 2.0, 0),
    ("an odd zero point becomes even: low is kept", U8P, -127.0, 120.0, 1.0, 128),
    ("an odd zero point becomes even: high is kept", U8P, -127.0, 129.0, 1.0, 126),
    ("no clipping to choose by: the nearer one", U8P, -0.25, 200.0, 1.0, 2),
    ("the last even code", U8P, -255.0, 0.0, 1.0, 254),
    ("signed and even", S8AP, -128.0, 127.0, 1.0, 0),
]


@pytest.mark.parametrize(
    ("spec", "low", "high", "scale", "zero"), [r[1:] for r in RULES], ids=[r[0] for r in RULES]
)
def test_rule(spec, low, high, scale, zero):
    found = choose_qparams(low, high, spec)
    assert found.scale.tobytes() == np.float32(scale).tobytes()
    assert int(found.zero_point) == zero
    assert found.qtype is FORMATS[spec.qtype]
    assert found.axis is None


def test_limit_of_codes():
    limited = choose_qparams(-64.0, 64.0, S8, limit=64)
    assert float(limited.scale) == 1.0
    assert float(choose_qparams(-7.0, 7.0, Spec("int4", True), limit=127).scale) == 1.0
    assert float(choose_qparams(-32767.0, 0.0, Spec("int16", True)).scale) == 1.0


def test_channels_are_decided_one_by_one():
    low, high = np.array([-1.0, 0.0, -8.0]), np.array([1.0, 0.0, 2.0])
    for spec in (U8, U8P, S8, S8P):
        together = choose_qparams(low, high, spec, axis=2)
        assert together.axis == 2
        alone = [choose_qparams(a, b, spec) for a, b in zip(low, high, strict=True)]
        assert together.scale.tobytes() == np.array([p.scale for p in alone]).tobytes()
        assert together.zero_point.tolist() == [int(p.zero_point) for p in alone]


@pytest.mark.parametrize("exponent", range(-60, 61))
def test_nearest_exponent_turns_at_the_root_of_a_half(exponent):
    scale = 2.0**exponent
    turn = scale * np.sqrt(0.5)
    assert int(nearest_exponent(scale)) == exponent
    assert int(nearest_exponent(np.nextafter(scale, np.inf))) == exponent
    assert int(nearest_exponent(np.nextafter(scale, 0))) == exponent
    assert int(nearest_exponent(turn)) == exponent
    assert int(nearest_exponent(np.nextafter(turn, 0))) == exponent - 1


reals = st.floats(-3e38, 3e38, allow_nan=False)
specs = st.builds(
    Spec,
    st.sampled_from(["uint8", "int8", "uint4", "int4", "uint16", "int16"]),
    st.booleans(),
    st.sampled_from(["float", "power_of_two"]),
)


@given(reals, reals, specs)
def test_parameters_are_usable(a, b, spec):
    low, high = min(a, b), max(a, b)
    found = choose_qparams(low, high, spec)
    scale, zero = found.scale, int(found.zero_point)
    assert np.finfo(np.float32).tiny < scale and scale >= np.float32(FLOOR)
    codes = np.array([found.qtype.qmin, found.qtype.qmax])
    assert np.isfinite((codes - zero).astype(np.float32) * scale).all()
    assert np.isfinite(np.float32(found.qtype.qmax - found.qtype.qmin) * scale)
    assert float(found.dequantize(found.quantize(np.zeros((), np.float32)))) == 0
    if spec.scale == "power_of_two":
        assert np.frexp(scale)[0] == 0.5
        assert zero % 2 == 0


@given(st.floats(-1e37, 1e37), st.floats(-1e37, 1e37), specs)
def test_a_float_scale_covers_its_range_within_a_step(a, b, spec):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    spec = Spec(spec.qtype, spec.symmetric, "float")
    found = choose_qparams(low, high, spec)
    first, last = found.range
    step = float(found.scale) * 1.001  # the scale is rounded to float32
    assert first - step <= low and high <= last + step


@given(st.integers(-30, 90), st.integers(0, 127), st.sampled_from(["uint8", "int8"]))
def test_a_range_of_power_of_two_parameters_gives_them_again(exponent, half, qtype):
    q = FORMATS[qtype]
    scale, zero = 2.0**exponent, q.qmin + 2 * half
    spec = Spec(qtype, scale="power_of_two")
    found = choose_qparams((q.qmin - zero) * scale, (q.qmax - zero) * scale, spec)
    assert (float(found.scale), int(found.zero_point)) == (scale, zero)


@given(st.floats(-1e20, 0), st.floats(0, 1e20))
def test_the_even_zero_point_clips_least(low, high):
    found = choose_qparams(low, high, U8P)
    scale, zero = float(found.scale), int(found.zero_point)

    def loss(z):
        return max(-z * scale - low, 0) + max(high - (255 - z) * scale, 0)

    assert loss(zero) <= min(loss(max(zero - 2, 0)), loss(min(zero + 2, 254)))
