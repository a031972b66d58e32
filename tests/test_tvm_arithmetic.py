"""Doubles and wide integers are computed alike on every device, soft or hard.

A compiler calls library functions for what a CPU has no instruction for. Where the two disagree on
the registers of their arguments nothing fails: the results are other numbers.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

pytest.importorskip("tvm", reason="needs edgeq[tvm]")

from benchmarks.devices import Case, compare
from edgeq.tvm.devices import DEVICES
from edgeq.tvm.toolchain import missing_tools

pytestmark = [pytest.mark.tvm, pytest.mark.emulated]

OPERATORS = {
    "add": ("double", "Add(a, b)"),
    "sub": ("double", "Sub(a, b)"),
    "mul": ("double", "Mul(a, b)"),
    "div": ("double", "Div(a, b)"),
    "sqrt": ("double", "Sqrt(a)"),
    "less": ("bool", "Less(a, b)"),
    "double_to_float": ("float", "Cast<to=1>(b)"),
    "double_to_int": ("int32", "Cast<to=6>(b)"),
    "double_to_long": ("int64", "Cast<to=7>(b)"),
    "float_to_double": ("double", "Cast<to=11>(c)"),
    "float_to_long": ("int64", "Cast<to=7>(c)"),
    "int_to_double": ("double", "Cast<to=11>(i)"),
    "int_to_float": ("float", "Cast<to=1>(i)"),
    "long_to_float": ("float", "Cast<to=1>(l)"),
    "long_to_double": ("double", "Cast<to=11>(l)"),
    "long_add": ("int64", "Add(l, k)"),
    "long_mul": ("int64", "Mul(l, k)"),
    "long_div": ("int64", "Div(l, k)"),
    "float_add": ("float", "Add(c, d)"),
    "float_mul": ("float", "Mul(c, d)"),
    "float_div": ("float", "Div(c, d)"),
    "float_sqrt": ("float", "Sqrt(c)"),
}
# qemu 7.2 aborts on vfcvt.rtz (translate.c: ctx->insn_start): an error of the emulator.
NOT_EMULATED = {"tvm-riscv64-v": ("double_to_int", "double_to_long", "float_to_long")}
SIZE = 64


def case(names: list[str]) -> Case:
    outputs = ", ".join(f"{kind}[{SIZE}] {name}" for name in names for kind in [OPERATORS[name][0]])
    nodes = " ".join(f"{name} = {text}" for name in names for text in [OPERATORS[name][1]])
    inputs = ", ".join(
        f"{kind}[{SIZE}] {name}"
        for kind, names in (("double", "ab"), ("float", "cd"), ("int32", "i"), ("int64", "lk"))
        for name in names
    )
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    random = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {
        "a": np.abs(random.normal(size=SIZE)) * 1e3 + 0.01,
        "b": random.normal(size=SIZE) * 7e5,
        "c": np.abs(random.normal(size=SIZE)).astype(np.float32) * 50,
        "d": random.normal(size=SIZE).astype(np.float32) + 3,
        "i": random.integers(-(2**31), 2**31 - 1, SIZE).astype(np.int32),
        "l": random.integers(-(2**40), 2**40, SIZE),
        "k": random.integers(1, 2**20, SIZE),
    }
    return Case(Path(), model, [feeds], {})


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_computes_the_same(device):
    missing = missing_tools(DEVICES[device])
    if missing:
        pytest.skip(f"needs {'; '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in OPERATORS if name not in NOT_EMULATED.get(device, ())]
        found = compare(case(names), device, Path(folder))
    assert found.differing == 0 and found.compared == SIZE * len(names), found.first
