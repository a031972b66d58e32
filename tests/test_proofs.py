"""Enumeration finds what differs, proves what does not, and odd ratios leave nothing to find."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.numerics.affine import QParams
from edgeq.numerics.odd_ratio import (
    ADD_LIMIT,
    FRACTION_LIMIT,
    add_is_safe,
    odd_fraction,
    odd_multiples,
)
from edgeq.numerics.ort_kernels import ARM, AVX2, CPUS, SSE
from edgeq.numerics.qtype import INT8, INT16, UINT8, QType
from edgeq.proofs import (
    FusionProof,
    certify_unary,
    define_add,
    prove_add,
    prove_average_pool,
    prove_global_average_pool,
    prove_mul,
)

F32 = np.float32
zero_points = st.integers(0, 255)


def qp(scale: Any, zero_point: Any, qtype: QType = UINT8) -> QParams:
    return QParams(qtype, np.array(scale, np.float32), np.array(zero_point, np.int32))


def cpus(proof: FusionProof) -> list[str]:
    return sorted({d.cpu for d in proof.disagreements})


ADD_ROWS = [
    # rule                                        a           b          y            who differs
    ("equal scales, sy = 2 sa, odd zy", qp(0.02, 128), qp(0.02, 128), qp(0.04, 7), CPUS),
    ("powers of two, even zy: only Arm", qp(0.5, 3), qp(0.5, 5), qp(1.0, 8), (ARM,)),
    ("powers of two, odd zy", qp(0.5, 3), qp(0.5, 5), qp(1.0, 9), CPUS),
    ("no rounding at all", qp(0.5, 3), qp(1.0, 5), qp(0.5, 9), ()),
    ("odd multiples, odd zy", qp(0.03, 3), qp(0.05, 4), qp(0.07, 9), ()),
    ("my even", qp(0.03, 3), qp(0.05, 4), qp(0.06, 9), CPUS),
]


@pytest.mark.parametrize(("rule", "a", "b", "y", "who"), ADD_ROWS, ids=[r[0] for r in ADD_ROWS])
def test_prove_add(rule, a, b, y, who):
    proof = prove_add(a, b, y)
    assert proof.compared == 65536
    assert cpus(proof) == sorted(who)
    assert proof.equal == (not who)


def test_a_disagreement_is_real_and_counted():
    a, y = qp(0.5, 3), qp(1.0, 8)
    proof = prove_add(a, a, y)
    (arm,) = proof.disagreements
    first, second = (np.array([c], np.uint8) for c in arm.first)
    assert define_add(first, a, second, a, y)[0] == arm.expected != arm.found
    # Halves are half of all sums; of these half round to even the other way; some saturate.
    assert arm.count > 5000
    assert f"Arm differs for {arm.count} of 65536" in proof.detail


def test_proofs_are_kept():
    assert prove_add(qp(0.1, 1), qp(0.2, 2), qp(0.3, 3)) is prove_add(
        qp(0.1, 1), qp(0.2, 2), qp(0.3, 3)
    )


def test_wide_formats_are_an_obstacle():
    proof = prove_add(qp(0.1, 0, INT16), qp(0.1, 0, INT16), qp(0.1, 0, INT16))
    assert not proof.equal and "8 bits" in proof.detail


MUL_ROWS = [
    ("M = 1/64, even zy", qp(0.5, 3), qp(0.5, 5), qp(16.0, 8), ()),
    ("M = 1/64, odd zy", qp(0.5, 3), qp(0.5, 5), qp(16.0, 9), CPUS),
    ("M = 1/63, odd zy", qp(0.5, 3), qp(0.5, 5), qp(15.75, 9), ()),
]


@pytest.mark.parametrize(("rule", "a", "b", "y", "who"), MUL_ROWS, ids=[r[0] for r in MUL_ROWS])
def test_prove_mul(rule, a, b, y, who):
    proof = prove_mul(a, b, y)
    assert proof.compared == 65536 and cpus(proof) == sorted(who)


POOL_ROWS = [
    ("2x2, rs = 1, even zy", qp(1, 3), qp(1, 8), (4,), ()),
    ("2x2, rs = 1, odd zy", qp(1, 3), qp(1, 9), (4,), CPUS),
    ("3x3 with borders, rs = 1, odd zy", qp(1, 3), qp(1, 9), (4, 6, 9), CPUS),
    ("3x3, rs = 1, odd zy", qp(1, 3), qp(1, 9), (9,), ()),
    ("any power of two as scale of x", qp(0.125, 3), qp(0.125, 8), (4,), ()),
]


@pytest.mark.parametrize(
    ("rule", "x", "y", "counts", "who"), POOL_ROWS, ids=[r[0] for r in POOL_ROWS]
)
def test_prove_average_pool(rule, x, y, counts, who):
    proof = prove_average_pool(x, y, counts)
    assert proof.compared == sum(255 * c + 1 for c in counts)
    assert cpus(proof) == sorted(who)


def test_global_average_pool_misses_ties_by_its_rounded_reciprocal():
    sizes = {
        n: prove_global_average_pool(qp(1, 0), qp(1, 128), n).equal for n in (49, 196, 784, 30, 60)
    }
    assert sizes == {49: True, 196: True, 784: True, 30: False, 60: False}


def test_a_window_over_the_whole_image_runs_the_global_kernel():
    x, y = qp(1, 0), qp(1, 128)
    assert prove_average_pool(x, y, (30,)).equal
    assert not prove_average_pool(x, y, (30,), whole_image=True).equal


def test_pools_need_units():
    proof = prove_average_pool(qp(0.1, 0), qp(0.1, 0), (4,))
    assert not proof.equal and "power of two" in proof.detail
    assert "2**24" in prove_global_average_pool(qp(1, 0), qp(1, 0), 70000).detail


def test_unary_margin():
    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    # sigmoid(0) = 1/2 is exactly a tie of scale 1/255, and no tie of scale 1/256.
    tie = certify_unary(sigmoid, qp(0.05, 128), qp(1 / 255, 0))
    assert tie.code == 128 and tie.distance < 1e-5 and not tie.certain
    # Of a coarse result, ties beyond saturation do not count: exp(x) > 255.5 everywhere.
    saturated = certify_unary(np.exp, qp(0.1, 0), qp(0.001, 0))
    assert saturated.certain and saturated.distance > 100
    assert saturated.code == 0


def test_unary_distance_is_that_of_all_codes():
    x, y = qp(0.03125, 100), qp(0.0625, 10)
    proof = certify_unary(np.tanh, x, y)
    real = [math.tanh((c - 100) * 0.03125) / 0.0625 for c in range(256)]
    assert proof.distance == pytest.approx(min(abs(r - math.floor(r) - 0.5) for r in real))


# -- odd ratios ------------------------------------------------------------------------------

multiples = st.integers(1, ADD_LIMIT)


@settings(max_examples=300, deadline=None)
@given(
    ma=multiples,
    mb=multiples,
    my=multiples,
    base=st.floats(1e-6, 1e-2),
    zeros=st.tuples(zero_points, zero_points, zero_points),
)
def test_odd_output_multiples_make_every_add_equal(ma, mb, my, base, zeros):
    """The scales are rounded to float32, one by one: the theorem allows that."""
    my |= 1
    if not add_is_safe(ma, mb, my):
        return
    a, b, y = (qp(F32(base * m), z) for m, z in zip((ma, mb, my), zeros, strict=True))
    proof = prove_add(a, b, y)
    assert proof.compared == 65536 and proof.equal, proof.detail


@settings(max_examples=100, deadline=None)
@given(
    my=st.sampled_from([1, 3, 5, 7, 15, 31, 63]),
    g=st.integers(2, 200),
    zeros=st.tuples(zero_points, zero_points, zero_points),
    mb=st.integers(1, 50),
)
def test_adds_with_extreme_ratios(my, g, zeros, mb):
    """Ratios up to the end of Arm's fixed point and beyond it (256)."""
    ma = my * g
    if not add_is_safe(ma, mb, my):
        return
    a, b, y = (qp(F32(0.001 * m), z) for m, z in zip((ma, mb, my), zeros, strict=True))
    assert prove_add(a, b, y).equal


def test_ties_return_where_the_bound_is_left():
    """The planted fault: multiples far beyond the bound, and an even one within it."""
    ma, mb, my = 121580, 114090, 6283
    scales = [F32(1e-7 * m) for m in (ma, mb, my)]
    proof = prove_add(qp(scales[0], 139), qp(scales[1], 171), qp(scales[2], 0))
    assert cpus(proof) == sorted(CPUS) and not add_is_safe(ma, mb, my)
    assert not prove_add(qp(0.03, 3), qp(0.05, 99), qp(0.04, 7)).equal


@settings(max_examples=200, deadline=None)
@given(
    q=st.integers(0, FRACTION_LIMIT // 2),
    value=st.floats(1e-4, 2),
    scales=st.tuples(st.floats(1e-3, 1), st.floats(1e-3, 1)),
    zeros=st.tuples(zero_points, zero_points, zero_points),
)
def test_odd_denominators_make_every_mul_equal(q, value, scales, zeros):
    q = 2 * q + 1
    p = max(1, round(value * q))
    sa, sb = (F32(s) for s in scales)
    sy = F32(float(sa) * float(sb) * q / p)
    proof = prove_mul(qp(sa, zeros[0]), qp(sb, zeros[1]), qp(sy, zeros[2]))
    assert proof.compared == 65536 and proof.equal, (p, q, proof.detail)


@settings(max_examples=200, deadline=None)
@given(
    q=st.integers(0, FRACTION_LIMIT // 2),
    value=st.floats(0.2, 4),
    count=st.integers(1, 400),
    zeros=st.tuples(zero_points, zero_points),
    dyadic=st.integers(-8, 3),
)
def test_odd_denominators_make_every_pool_equal(q, value, count, zeros, dyadic):
    q = 2 * q + 1
    p = max(1, round(value * q / count))  # 1 / (count * rs) = p / q
    x = qp(2.0**dyadic, zeros[0])
    y = qp(F32(q / (p * count)) * F32(2.0**dyadic), zeros[1])
    assert prove_average_pool(x, y, (count,)).equal
    assert prove_global_average_pool(x, y, count).equal


def test_odd_fractions_for_windows_of_several_counts():
    for target in (0.7, 1.0, 1.37):
        p, q = odd_fraction(1 / target, limit=FRACTION_LIMIT // 9, numerator_multiple=4)
        assert q % 2 == 1 and p % 4 == 0
        assert abs(p / q * target - 1) < 0.01
        for zero in range(0, 256, 17):
            proof = prove_average_pool(qp(1, 3), qp(F32(q / p), zero), (4, 6, 9))
            assert proof.equal, (p, q, proof.detail)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.01, 0.1), min_size=1, max_size=12), st.sampled_from([63, 255, ADD_LIMIT])
)
def test_odd_multiples(scales, limit):
    found = odd_multiples(scales, limit)
    assert all(m % 2 == 1 and 1 <= m <= limit for m in found.multiples)
    assert [float(s) for s in found.scales] == [found.base * m for m in found.multiples]
    assert found.relative_error < 10 / limit * 1.3
    errors = np.abs(found.scales / np.array(scales) - 1)
    assert found.relative_error == errors.max()


def test_odd_multiples_of_one_scale_are_the_scale():
    assert odd_multiples([0.1]).relative_error < 2**-22


def test_int8_operands():
    assert prove_add(qp(0.03, -3, INT8), qp(0.05, 4, INT8), qp(0.07, 9, INT8)).equal
    assert cpus(prove_add(qp(0.5, -3, INT8), qp(0.5, 4, INT8), qp(1, 9, INT8))) == sorted(CPUS)


def test_every_cpu_is_compared():
    assert {AVX2, SSE, ARM} == set(CPUS)
