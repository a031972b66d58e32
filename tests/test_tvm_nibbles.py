"""Weights that stay in 4 bits in flash: what lies there, and that the code computes the same."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm", reason="needs edgeq[tvm]")

import edgeq
from edgeq.numerics.qtype import FORMATS
from edgeq.targeting import find_target
from edgeq.tvm.nibbles import in_nibbles

pytestmark = pytest.mark.tvm

DIGITS = "samples/digits"
RECIPES = {
    "tvm-c": ("int8", "w4a8", "w4a6"),
    "tvm-x86-64": ("w4a8",),
    "tvm-x86-64-vnni": ("fp4a8",),
    "tvm-cortex-m4": ("int8", "fp4a8"),
}


def unpacked(nibbles, count):
    """Return what the kernel writes."""
    halves = np.concatenate([nibbles.data & 15, nibbles.data >> 4])
    codes = (halves.astype(int) ^ 8) - 8 if nibbles.table is None else nibbles.table[halves]
    assert len(codes) == nibbles.elements
    return codes[:count].astype(nibbles.dtype)


@settings(deadline=None)
@given(
    st.sampled_from(["int2", "int4", "float4e2m1", "float4e1m2", "float4e3m0"]),
    st.integers(1, 600),
    st.sampled_from(["int8", "int16"]),
    st.integers(0, 2**32 - 1),
)
def test_nibbles_hold_every_code(name, count, dtype, seed):
    qtype = FORMATS[name]
    values = qtype.values or range(qtype.qmin, qtype.qmax + 1)
    array = np.random.default_rng(seed).choice(np.array(list(values), dtype), count)
    found = in_nibbles(array)
    assert found is not None and found.data.nbytes == (count + 1) // 2
    assert unpacked(found, count).tobytes() == array.tobytes()


def test_more_codes_do_not_fit():
    assert in_nibbles(np.arange(-8, 9, dtype=np.int8)) is None
    assert in_nibbles(np.arange(-8, 8, dtype=np.int8)) is not None
    assert in_nibbles(np.arange(0, 16, dtype=np.int8)) is not None


def compiled(target, recipe, folder):
    return edgeq.compile(
        f"{DIGITS}/digits.onnx",
        target=target,
        calibration=f"{DIGITS}/calibration.npz",
        recipe=recipe,
        samples=16,
        output=folder / f"{target}-{recipe}",
    )


@pytest.mark.parametrize("target", RECIPES)
def test_a_real_model(target, tmp_path):
    if find_target(target).missing:
        pytest.skip(f"this machine lacks {find_target(target).missing}")
    memory = {}
    for recipe in RECIPES[target]:
        bundle = compiled(target, recipe, tmp_path)
        bits = bundle.manifest.bitwise
        assert bits.mismatches == 0 and bits.compared > 50_000
        assert edgeq.check(bundle).mismatches == 0
        memory[recipe] = json.loads((bundle.path / "report.json").read_text())["memory"]
    whole = memory.pop("int8", None)
    for packed in memory.values() if whole is not None else ():
        assert packed["weights"] < 0.8 * whole["weights"]
        assert packed["kernels"] > whole["kernels"]  # those that unpack
    if target == "tvm-c":  # the limits of 6 bits take no kernels: linear ones saturate to them
        assert memory["w4a6"]["kernels"] == memory["w4a8"]["kernels"]
