"""Exponentials that are certain, or rounded far from ties, have a proof; others have none."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeq.certain_exponentials import certain_exponentials
from tests.certificates import Arrays, certificate, f32, kinds, u8


def rounded_exponentials(**changes: NDArray[Any]) -> Arrays:
    found = certain_exponentials(4095)
    step, zero_point = f32(found.step), u8(found.zero_point)
    return {"step": step, "zero": zero_point, "last": np.array([1]), **changes}


ROUNDED = "d = DequantizeLinear(x, step, zero) e = Exp(d) r = Round(e) y = ReduceSum(r, last)"


def test_rounded_exponentials_far_from_ties() -> None:
    found = certificate(ROUNDED, rounded_exponentials(), "uint8[2,4096] x")
    assert kinds(found) == ["ieee", "table", "table", "exact sum"]
    assert f"at most {4082 * 4096}" in found.proofs[-1].detail


@pytest.mark.parametrize(
    ("body", "changes", "inputs"),
    [
        (ROUNDED, {"step": f32(np.log(2.5))}, "uint8[2,9] x"),  # 2.5 is a tie
        (ROUNDED, {"zero": np.array(21, np.int8)}, "int8[2,9] x"),
        (ROUNDED.replace("Round(e)", "Floor(e)"), {}, "uint8[2,9] x"),
        (ROUNDED.replace("Sum(r", "Sum(e"), {}, "uint8[2,9] x"),
    ],
)
def test_other_exponentials_are_not_proven(body: str, changes: Arrays, inputs: str) -> None:
    found = certificate(body, rounded_exponentials(**changes), inputs)
    assert "Exp" in [proof.op_type for proof in found.unproven]


DISTANCES = (
    "m = ReduceMax(f, last) b = Sub(f, m) i = QuantizeLinear(b, third, top)"
    f" {ROUNDED.replace('(x, step', '(i, step')}"
)


def distances() -> Arrays:
    found = certain_exponentials(4095, 1024)
    zero_point, top = np.array(found.zero_point, np.uint16), np.array(1023, np.uint16)
    return {**rounded_exponentials(zero=zero_point, step=f32(found.step)), "top": top}


def test_distances_are_at_most_their_zero_point() -> None:
    found = certificate(DISTANCES, distances(), "float[2,4096] f")
    assert found.unproven == () and "all 1024 results" in found.proofs[-3].detail
    assert f"at most {4085 * 4096}" in found.proofs[-1].detail
    body = DISTANCES.replace("b = Sub(f, m)", "t = Max(m, third) b = Sub(f, t)")
    assert certificate(body, distances(), "float[2,4096] f").unproven == ()


@pytest.mark.parametrize(
    "change",
    [
        ("Sub(f, m)", "Sub(m, f)"),  # 0 at least
        ("Sub(f, m)", "Sub(f, third)"),
        ("ReduceMax", "ReduceMin"),
        ("Sub(f, m)", "Add(f, m)"),
        ("m = ReduceMax(f, last)", "g = Neg(f) m = ReduceMax(g, last)"),
    ],
)
def test_other_codes_of_16_bits_may_be_any(change: tuple[str, str]) -> None:
    found = certificate(DISTANCES.replace(*change), distances(), "float[2,4096] f")
    assert "Exp" in [proof.op_type for proof in found.unproven]


@pytest.mark.parametrize(
    ("bits", "count"), [*((n, 256) for n in range(8, 15)), *((n, 1024) for n in range(8, 14))]
)
def test_certain_exponentials_are_certain(bits: int, count: int) -> None:
    """Whatever float32 makes of exp, a few units in the last place off: the integers stay."""
    found = certain_exponentials(2**bits - 1, count)
    reals = (np.arange(count) - found.zero_point).astype(np.float32) * np.float32(found.step)
    exact = np.exp(reals.astype(np.float64))
    terms = np.rint(exact)
    assert terms[0] == 0 and terms[-1] == found.highest <= 2**bits - 1
    assert found.highest > 0.9 * 2**bits
    for error in (-(2.0**-18), -(2.0**-21), 2.0**-21, 2.0**-18):
        assert np.array_equal(np.rint((exact * (1 + error)).astype(np.float32)), terms)
