"""Rounding and saturation of scalars, against numpy for any float32."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("tvm", reason="needs TVM: pip install edgeq[tvm]")

from edgeq.tvm.arithmetic import absolute, divided, rint, saturated
from edgeq.tvm.builder import Builder
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.program import Layout, Program, Tensor
from edgeq.tvm.views import View
from tests.tvm_lowering import Compiled, differing, load, runs_here

pytestmark = pytest.mark.tvm
COUNT = 64
KINDS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
BITS = arrays.arrays(np.uint32, COUNT, elements=st.integers(0, 2**32 - 1))
UNITS = arrays.arrays(np.int32, COUNT, elements=st.integers(-140000, 140000))
FUNCTIONS: dict[str, tuple[str, Any]] = {
    "rint": ("float32", rint),
    "absolute": ("float32", absolute),
    "by a power of two": ("float32", lambda x: divided(x, np.float32(0.25))),
    "divided": ("float32", lambda x: divided(x, np.float32(0.3))),
    **{
        f"{kind}, {zero}": (kind, lambda x, z=zero, k=kind: saturated(x, z, *KINDS[k], k))
        for kind, zeros in {
            "uint8": (0, 1, 255), "int8": (-128, 0, 127), "uint16": (0, 30001), "int16": (5,)
        }.items()
        for zero in zeros
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=["avx2", "vector", "c"])
def functions(request, tmp_path_factory) -> Compiled:
    """A program with an output for each function of its input."""
    if not runs_here(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    builder = Builder()
    x = builder.tensor("x", "float32", Layout.plain((COUNT,)), "input")
    outputs: list[Tensor] = []
    for name, (dtype, function) in FUNCTIONS.items():
        y = builder.tensor(name, dtype, Layout.plain((COUNT,)), "output")

        def compute(elements, look_up, function=function):
            return function(elements[0])

        made = Pointwise((COUNT,), dtype, (View.of(x),), compute, lambda a: a[0])
        builder.write(made, View.of(y), f"Elementwise {len(outputs)}")
        outputs.append(y)
    program = Program(tuple(builder.kernels), builder.constants, (x,), tuple(outputs), ())
    return load([program], request.param, tmp_path_factory.mktemp("functions"))[0]


def expected(x: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"rint": np.rint(x), "absolute": np.abs(x)}
    with np.errstate(all="ignore"):
        found |= {"by a power of two": x / np.float32(0.25), "divided": x / np.float32(0.3)}
        for name in FUNCTIONS:
            if ", " in name:
                kind, zero = name.split(", ")
                low, high = KINDS[kind]
                real = np.rint(x).astype(np.float64) + int(zero)
                found[name] = np.clip(np.where(np.isnan(x), low, real), low, high).astype(kind)
    return found


def hold(functions: Compiled, x: Any) -> None:
    found = functions.run({"x": x})
    for name, array in expected(x).items():
        assert differing(found[name], array) == 0, name


@settings(deadline=None)
@given(bits=BITS)
def test_any_float_is_rounded_as_numpy_does(functions, bits):
    # No operation makes a NaN that signals; what becomes of one is not promised.
    quiet = np.isnan(bits.view(np.float32)) * np.uint32(0x00400000)
    hold(functions, (bits | quiet).view(np.float32))


def test_nan_is_the_lowest_code(functions):
    nan = np.full(COUNT, np.nan, np.float32)
    hold(functions, nan)
    assert (functions.run({"x": nan})["uint8, 1"] == 0).all()


@settings(deadline=None)
@given(units=UNITS)
def test_ties_go_to_even(functions, units):
    hold(functions, (units / 2).astype(np.float32))


@settings(deadline=None)
@given(units=UNITS, up=st.booleans())
def test_neighbours_of_ties_do_not(functions, units, up):
    ties = (units / 2).astype(np.float32)
    hold(functions, np.nextafter(ties, np.float32(np.inf if up else -np.inf)))
