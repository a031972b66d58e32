"""Integer linear kernels against exact sums, on this machine and by emulators."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

import tvm

from edgeq.errors import UnsupportedOperatorError
from edgeq.numerics.qtype import UINT8
from edgeq.numerics.requantize import requantize
from edgeq.tvm import codegen
from edgeq.tvm.devices import DEVICES
from edgeq.tvm.dot import ISAS
from edgeq.tvm.linear import LinearProblem, lower_linear
from tests import tvm_linear_cases as cases

pytestmark = pytest.mark.tvm
y = cases.codes

FLAGS = {"vnni512": "avx512_vnni", "vnni256": "avx512_vnni", "avx2": "avx2"}
CPUINFO = Path("/proc/cpuinfo")


def _runs_here(isa: str) -> bool:
    words = set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()
    return FLAGS.get(isa, "sse2") in words


NATIVE = [
    pytest.param(
        isa,
        marks=pytest.mark.skipif(not _runs_here(isa), reason=f"this CPU has no {FLAGS.get(isa)}"),
    )
    for isa in cases.TARGETS
]
Problem = LinearProblem
SAME = (1, 1, 1, 1)
TABLE = {
    "1x1": Problem(1, 5, 7, 16, 32, 1, 1, x_zero=3, y=y(3)),
    "1x1 of odd channels": Problem(2, 5, 7, 7, 33, 1, 1, x_zero=3, y=y(3)),
    "1x1, stride 3": Problem(1, 10, 10, 8, 8, 1, 1, strides=(3, 3), x_zero=3, y=y(3)),
    "one product": Problem(1, 3, 3, 1, 1, 1, 1, x_zero=7, y=y(3)),
    "one pixel": Problem(1, 1, 1, 5, 3, 1, 1, x_zero=7, y=y(3)),
    "3x3": Problem(1, 8, 8, 16, 16, 3, 3, pads=SAME, x_zero=131, y=y(3)),
    "3x3 of 64": Problem(1, 7, 7, 64, 80, 3, 3, pads=SAME, x_zero=131, y=y(3)),
    "4608 products": Problem(1, 5, 5, 512, 30, 3, 3, pads=SAME, x_zero=3, y=y(3)),
    "asymmetric pads, 3 samples": Problem(
        3, 9, 11, 3, 10, 3, 3, strides=(2, 2), pads=(0, 1, 2, 0), x_zero=5, y=y(3)
    ),
    "7x7 to int8": Problem(
        1, 20, 20, 3, 24, 7, 7, strides=(2, 2), pads=(3, 3, 3, 3), x_zero=128, y=y(-3, "int8")
    ),
    "dilation 2": Problem(
        1, 9, 9, 5, 75, 3, 3, dilations=(2, 2), pads=(2, 2, 2, 2), x_zero=1, y=y(3)
    ),
    "int8": Problem(
        1, 9, 9, 6, 12, 3, 3, pads=(1, 0, 0, 1), x_dtype="int8", x_zero=-5, y=y(-1, "int8")
    ),
    "int8, 1x1": Problem(1, 3, 9, 8, 16, 1, 1, x_dtype="int8", x_zero=-5, y=y(-1, "int8")),
    "speech": Problem(1, 49, 10, 1, 64, 10, 4, strides=(2, 2), pads=(4, 1, 5, 1), x_zero=3, y=y(3)),
    "1xN": Problem(1, 1, 30, 4, 9, 1, 5, pads=(0, 2, 0, 2), x_zero=3, y=y(3)),
    "Nx1, stride 1x2": Problem(1, 20, 6, 4, 17, 7, 1, strides=(1, 2), x_zero=3, y=y(3)),
    "row to float": Problem(1, 1, 1, 64, 12, 1, 1, x_zero=9),
    "rows to uint16": Problem(1, 1, 17, 64, 192, 1, 1, x_zero=9, y=y(0, "uint16")),
    "matrix": Problem(1, 1, 256, 128, 512, 1, 1, x_zero=9, y=y(255)),
    "narrow limits": Problem(1, 4, 4, 8, 8, 1, 1, x_zero=9, y=replace(y(7), qmin=7, qmax=37)),
    "depthwise": Problem(2, 9, 10, 24, 24, 3, 3, pads=SAME, groups=24, x_zero=77, y=y(3)),
    "depthwise of 64": Problem(1, 9, 10, 64, 64, 3, 3, pads=SAME, groups=64, x_zero=77, y=y(3)),
    "depthwise, odd, stride 2": Problem(
        1, 9, 10, 75, 75, 3, 3, strides=(2, 2), pads=(0, 0, 1, 1), groups=75, x_zero=7, y=y(3)
    ),
    "depthwise 5x5": Problem(
        1, 9, 10, 40, 40, 5, 5, pads=(2, 2, 2, 2), groups=40, x_zero=77, y=y(3)
    ),
    "depthwise without pads, 2 samples": Problem(
        2, 7, 7, 32, 32, 3, 3, groups=32, x_zero=255, y=y(3)
    ),
    "depthwise to float, int8": Problem(
        1, 9, 10, 20, 20, 3, 3, pads=SAME, groups=20, x_dtype="int8", x_zero=-7
    ),
    "depthwise, dilation 2": Problem(
        1, 9, 10, 20, 20, 3, 3, dilations=(2, 2), groups=20, x_zero=7, y=y(3)
    ),
    "two filters a channel": Problem(
        1, 9, 10, 3, 6, 3, 3, strides=(2, 2), pads=SAME, groups=3, x_zero=77, y=y(3)
    ),
    "4 groups": Problem(1, 6, 6, 8, 12, 3, 3, pads=SAME, groups=4, x_zero=77, y=y(3)),
}


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("name", TABLE)
def test_kernels_are_exact(name: str, isa: str, tmp_path: Path) -> None:
    case = cases.make_case(TABLE[name])
    got = cases.run(case, isa, tmp_path)
    want = cases.expected(case)
    assert np.unique(want).size > min(8, want.size // 2)  # not all at a limit
    np.testing.assert_array_equal(got, want)


def test_the_reference_is_the_definition() -> None:
    case = cases.make_case(TABLE["3x3"])
    zero = np.asarray(3, np.uint8)
    codes = requantize(
        cases.accumulators(case), case.multiplier, zero, UINT8, axis=3
    )  # fmt: skip
    np.testing.assert_array_equal(codes, cases.expected(case))


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("multiplier", [0.5, 0.25, 1.0, 1e-30, 1e30])
def test_ties_and_saturation(multiplier: float, isa: str, tmp_path: Path) -> None:
    problem = Problem(1, 3, 5, 1, 24, 1, 1, x_zero=128, y=y(101))
    case = cases.make_case(problem, multiplier=multiplier)
    small = (case.weight % 4).astype(np.int8)
    case = replace(case, weight=small, bias=case.bias % 256)
    np.testing.assert_array_equal(cases.run(case, isa, tmp_path), cases.expected(case))


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("groups", [1, 16])
def test_accumulators_near_the_limits(groups: int, sign: int, isa: str, tmp_path: Path) -> None:
    depth = 256 // groups**2 or 1
    problem = Problem(1, 4, 4, depth * groups, 16, 3, 3, pads=SAME, groups=groups, x_zero=255)
    case = cases.make_case(problem, multiplier=1.0)
    room = 2**31 - 1 - 255 * 127 * depth * 9
    weight = np.full_like(case.weight, -127 * sign)
    case = replace(case, weight=weight, bias=np.full(16, room * sign, np.int32))
    case.x[:] = 0
    assert np.abs(cases.accumulators(case)).max() == 2**31 - 1
    np.testing.assert_array_equal(cases.run(case, isa, tmp_path), cases.expected(case))


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("groups", [1, 16])
def test_lowest_codes_times_lowest_weights(groups: int, isa: str, tmp_path: Path) -> None:
    problem = Problem(1, 5, 5, 16, 16, 3, 3, groups=groups, x_dtype="int8")
    case = cases.make_case(problem, multiplier=1.0)
    case.x[:], case.weight[:], case.bias[:] = -128, -128, 0
    want = 128 * 128 * 9 * 16 // groups
    assert (cases.run(case, isa, tmp_path) == want).all()


@st.composite
def problems(draw: Any) -> LinearProblem:
    def size(low: int, high: int) -> int:
        value: int = draw(st.integers(low, high))
        return value

    kernel = (size(1, 4), size(1, 4))
    dilations = (size(1, 2), size(1, 2))
    pads = tuple(size(0, 2) for _ in range(4))
    least = [
        dilation * (size_of - 1) + 1 - pads[axis] - pads[axis + 2]
        for axis, (dilation, size_of) in enumerate(zip(dilations, kernel, strict=True))
    ]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 17, 32]))
    depth = size(1, 9) if groups < 4 else 1
    dtype = draw(st.sampled_from(["uint8", "int8"]))
    limits = np.iinfo(dtype)
    out = draw(st.sampled_from([None, "uint8", "int8", "uint16"]))
    return LinearProblem(
        size(1, 2),
        max(1, least[0]) + size(0, 6),
        max(1, least[1]) + size(0, 9),
        depth * groups,
        groups * size(1, 3) if groups > 1 else size(1, 40),
        *kernel,
        strides=(size(1, 3), size(1, 3)),
        dilations=dilations,
        pads=(pads[0], pads[1], pads[2], pads[3]),
        groups=groups,
        x_dtype=dtype,
        x_zero=size(int(limits.min), int(limits.max)),
        y=None if out is None else y(size(int(np.iinfo(out).min), int(np.iinfo(out).max)), out),
    )


@pytest.mark.parametrize("isa", NATIVE)
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(problem=problems(), seed=st.integers(0, 2**16))
def test_any_problem(
    isa: str, problem: LinearProblem, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = cases.make_case(problem, seed)
    got = cases.run(case, isa, tmp_path_factory.mktemp("linear"))
    np.testing.assert_array_equal(got, cases.expected(case))


CROSS: dict[str, tuple[str, dict[str, Any]]] = {
    "sdot": ("sdot", {"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}),
    "usdot": ("usdot", {"mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-v1"}),
    "neon": ("smlal", {"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"}),
    "neon32": (
        r"vmlal\.s16",
        {"mtriple": "armv7a-linux-gnueabihf", "mcpu": "cortex-a7", "mattr": ["+neon"]},
    ),
    "rvv": ("vwmacc", {"mtriple": "riscv64-linux-gnu", "mattr": ["+m", "+f", "+d", "+v"]}),
    "simd128": (r"i32x4\.dot_i16x8_s", {"mtriple": "wasm32", "mattr": ["+simd128"]}),
    "vnni512": (r"vpdpbusd.*zmm", {"mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"}),
    "avx2": (r"vpmaddwd.*ymm", {"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}),
}


@pytest.mark.parametrize("isa", CROSS)
def test_the_instruction_is_used(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, target = CROSS[isa]
    texts: list[str] = []

    def as_text(built: tvm.runtime.Module) -> bytes:
        texts.append(built.inspect_source("asm"))
        return b""

    monkeypatch.setattr(codegen, "_object", as_text)
    made = cases.lower(cases.make_case(TABLE["3x3 of 64"]), ISAS[isa])
    codegen.compile_kernels(cases.kernels(made), tvm.target.Target({"kind": "llvm", **target}))
    assert len(re.findall(wanted, texts[0])) >= 8


EMULATED = {
    "tvm-aarch64": "neon",
    "tvm-aarch64-dotprod": "sdot",
    "tvm-armv7": "neon32",
    "tvm-riscv64-v": "rvv",
}


@pytest.mark.parametrize("name", EMULATED)
def test_kernels_are_exact_on(name: str, tmp_path: Path) -> None:
    device = DEVICES[name]
    for tool in (device.compiler, device.runner.split()[0]):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    table = [cases.make_case(problem) for problem in TABLE.values() if problem.in_c < 128]
    found = cases.run_on(device, ISAS[EMULATED[name]], table, tmp_path)
    for case, got in zip(table, found, strict=True):
        np.testing.assert_array_equal(got, cases.expected(case))


def test_zero_points_of_weights_are_refused() -> None:
    case = cases.make_case(TABLE["1x1"])
    with pytest.raises(UnsupportedOperatorError, match="zero point"):
        lower_linear(
            "linear",
            case.problem,
            case.weight,
            np.ones(32, np.int8),
            case.bias,
            case.multiplier,
            ISAS["scalar"],
        )


def test_a_wrong_weight_is_seen(tmp_path: Path) -> None:
    case = cases.make_case(TABLE["3x3"])
    want = cases.expected(case)
    case.weight[5, 3, 1, 2] ^= 64
    assert (cases.run(case, "scalar", tmp_path) != want).any()
