"""Linear problems, their exact results, and running their kernels on this machine."""

import ctypes
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from edgeq.tvm.codegen import compile_kernels
from edgeq.tvm.devices import Device
from edgeq.tvm.dot import ISAS, Isa
from edgeq.tvm.linear import Codes, LinearProblem, LoweredLinear, lower_linear
from edgeq.tvm.program import SLACK, Buffer, Kernel

Array = NDArray[Any]
GUARD = 4096
TARGETS: dict[str, dict[str, Any]] = {
    "vnni512": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"},
    "vnni256": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"},
    "avx2": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    "vector": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
    "scalar": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
    "c": {"kind": "c"},
}


@dataclass(frozen=True, eq=False)
class Case:
    """A problem with its numbers."""

    problem: LinearProblem
    x: Array
    weight: Array
    bias: Array
    multiplier: Array


def make_case(problem: LinearProblem, seed: int = 0, multiplier: float | None = None) -> Case:
    """Return random codes over their full ranges, and multipliers that fill the result's range."""
    rng = np.random.default_rng(seed)
    limits = np.iinfo(problem.x_dtype)
    shape = (problem.batch, problem.in_h, problem.in_w, problem.in_c)
    x = rng.integers(limits.min, limits.max + 1, shape).astype(problem.x_dtype)
    filters = (problem.out_c, problem.depth, problem.kernel_h, problem.kernel_w)
    weight = rng.integers(-127, 128, filters).astype(np.int8)
    bias = rng.integers(-20000, 20000, problem.out_c).astype(np.int32)
    if multiplier is not None:
        return Case(problem, x, weight, bias, np.array([multiplier], np.float32))
    depth = problem.depth * problem.kernel_h * problem.kernel_w
    scales = rng.uniform(0.3, 1.5, problem.out_c) / (73 * 74 * np.sqrt(depth)) * 80
    return Case(problem, x, weight, bias, scales.astype(np.float32))


def accumulators(case: Case) -> Array:
    """Return the exact sums, int64, NHWC."""
    p = case.problem
    top, left, bottom, right = p.pads
    x = case.x.astype(np.int64) - p.x_zero
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    acc = np.zeros((p.batch, p.out_h, p.out_w, p.out_c), np.int64) + case.bias
    per_group = p.out_c // p.groups
    for i in range(p.kernel_h):
        for j in range(p.kernel_w):
            first = (i * p.dilations[0], j * p.dilations[1])
            last = (p.strides[0] * (p.out_h - 1), p.strides[1] * (p.out_w - 1))
            seen = x[
                :,
                first[0] : first[0] + last[0] + 1 : p.strides[0],
                first[1] : first[1] + last[1] + 1 : p.strides[1],
            ]
            tap = case.weight[:, :, i, j].astype(np.int64)
            for g in range(p.groups):
                channels = slice(g * per_group, (g + 1) * per_group)
                acc[..., channels] += seen[..., g * p.depth : (g + 1) * p.depth] @ tap[channels].T
    assert np.abs(acc).max() < 2**31
    return acc


def expected(case: Case) -> Array:
    """Return what `edgeq.numerics.requantize` defines."""
    real = accumulators(case).astype(np.float32) * case.multiplier
    y = case.problem.y
    if y is None:
        return real
    codes = np.rint(real).astype(np.float64) + y.zero_point
    return np.clip(codes, y.qmin, y.qmax).astype(y.dtype)


def lower(case: Case, isa: Isa, symbol: str = "linear") -> LoweredLinear:
    """Return the kernels of a case."""
    zero = np.zeros((), np.int8)
    return lower_linear(symbol, case.problem, case.weight, zero, case.bias, case.multiplier, isa)


def kernels(made: LoweredLinear) -> list[Kernel]:
    """Return the steps as the code generator takes them."""
    nowhere = Buffer("y", "uint8", 1, "workspace")
    return [Kernel(step.symbol, step.function, (), nowhere, "") for step in made.steps]


def link(code: bytes, folder: Path, *, is_source: bool = False) -> ctypes.CDLL:
    """Return an object file or C source as a loaded library."""
    source = folder / ("linear.c" if is_source else "linear.o")
    source.write_bytes(code)
    library = folder / "linear.so"
    command = ["gcc", "-O2", "-fPIC", "-fno-strict-aliasing", "-shared", "-o"]
    subprocess.run([*command, str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


class Guarded:
    """An array between bytes that must stay as they are."""

    def __init__(self, array: Array, slack: int = 0) -> None:
        size = array.nbytes + slack
        rng = np.random.default_rng(1)
        self.memory = rng.integers(0, 256, size + 2 * GUARD).astype(np.uint8)
        self.inside = slice(GUARD, GUARD + array.nbytes)
        self.memory[self.inside] = array.view(np.uint8).ravel()
        self.before = self.memory.copy()
        self.dtype, self.shape = array.dtype, array.shape

    @property
    def pointer(self) -> int:
        return int(self.memory.ctypes.data) + GUARD

    @property
    def array(self) -> Array:
        return self.memory[self.inside].copy().view(self.dtype).reshape(self.shape)

    def check(self, *, is_written: bool) -> None:
        before = self.before.copy()
        if is_written:
            before[self.inside] = self.memory[self.inside]
        assert np.array_equal(before, self.memory), "written outside"


def call(library: ctypes.CDLL, made: LoweredLinear, case: Case) -> Array:
    """Run the steps; fails where they write outside of what is theirs."""
    p = case.problem
    memory = {"x": Guarded(case.x)}
    memory["y"] = Guarded(np.zeros((p.batch, p.out_h, p.out_w, p.out_c), p.y_dtype))
    memory |= {role: Guarded(array, SLACK) for role, array in made.constants.items()}
    for role, (dtype, elements) in made.scratch.items():
        memory[role] = Guarded(np.zeros(elements, dtype), SLACK)
    for step in made.steps:
        pointers = [ctypes.c_void_p(memory[role].pointer) for role in step.roles]
        library[step.symbol](*pointers)
    for role, piece in memory.items():
        piece.check(is_written=role == "y" or role in made.scratch)
    return memory["y"].array


def run(case: Case, name: str, folder: Path) -> Array:
    """Compile, link and call the kernels of one case: with an Isa of TARGETS, or as C source."""
    made = lower(case, ISAS["scalar" if name == "c" else name])
    code = compile_kernels(kernels(made), tvm.target.Target(TARGETS[name]))
    return call(link(code, folder, is_source=name == "c"), made, case)


def run_on(device: Device, isa: Isa, table: Sequence[Case], folder: Path) -> list[Array]:
    """Run the kernels of all cases in one program for a device, by its emulator."""
    made = [lower(case, isa, f"linear{i}") for i, case in enumerate(table)]
    target = {k: list(v) if isinstance(v, tuple) else v for k, v in device.target.items()}
    every = [kernel for one in made for kernel in kernels(one)]
    (folder / "linear.o").write_bytes(compile_kernels(every, tvm.target.Target(target)))
    text = ["#include <stdint.h>", "#include <stdio.h>"]
    body, sizes = [], []
    for case, one in zip(table, made, strict=True):
        (step,) = one.steps
        names = {role: f"{step.symbol}_{role}" for role in step.roles}
        p = case.problem
        memory = {"x": case.x, **one.constants}
        for role, array in memory.items():
            size = array.nbytes + (0 if role == "x" else SLACK)
            values = ",".join(map(str, array.view(np.uint8).ravel()))
            text.append(f"_Alignas(64) uint8_t {names[role]}[{size}] = {{{values}}};")
        free = {"y": (p.y_dtype, p.y_elements), **one.scratch}
        for role, (dtype, elements) in free.items():
            size = elements * np.dtype(dtype).itemsize + (0 if role == "y" else SLACK)
            text.append(f"_Alignas(64) uint8_t {names[role]}[{size}];")
        text.append(f"void {step.symbol}({', '.join(['void *'] * len(step.roles))});")
        sizes.append(p.y_elements * np.dtype(p.y_dtype).itemsize)
        body.append(f"{step.symbol}({', '.join(names[role] for role in step.roles)});")
        body.append(f"fwrite({names['y']}, 1, {sizes[-1]}, stdout);")
    text.append(f"int main(void) {{ {' '.join(body)} return 0; }}")
    (folder / "main.c").write_text("\n".join(text))
    program = str(folder / "program")
    sources = [str(folder / "main.c"), str(folder / "linear.o")]
    subprocess.run([device.compiler, *device.flags, "-static", "-o", program, *sources], check=True)
    command = device.runner.format(program).split()
    written = subprocess.run(command, check=True, capture_output=True).stdout
    pieces = np.split(np.frombuffer(written, np.uint8), np.cumsum(sizes))[:-1]
    return [
        piece.view(case.problem.y_dtype).reshape(expected(case).shape)
        for piece, case in zip(pieces, table, strict=True)
    ]


def codes(zero: int = 0, dtype: str = "uint8") -> Codes:
    """Return the full range of a dtype."""
    limits = np.iinfo(dtype)
    return Codes(dtype, zero, int(limits.min), int(limits.max))
