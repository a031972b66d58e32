"""Models as kernels that run in this process, held against the simulator bit by bit."""

import ctypes
import mmap
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from numpy.typing import NDArray

from edgeq.graph import clone
from edgeq.onnx_api import infer_shapes
from edgeq.simulate import Simulator
from edgeq.tvm import codegen
from edgeq.tvm.dot import ISAS
from edgeq.tvm.lower import lower
from edgeq.tvm.memory_plan import plan
from edgeq.tvm.program import SLACK, Buffer, Program, Tensor
from edgeq.tvm.static_model import StaticModel, fix_sizes

Array = NDArray[Any]
Feeds = Mapping[str, Array]
TARGETS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "vnni512": ("vnni512", {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"}),
    "avx2": ("avx2", {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}),
    "vector": ("vector", {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"}),
    "c": ("scalar", {"kind": "c"}),
}
_NEEDS = {"vnni512": "avx512_vnni", "avx2": "avx2"}
_CFLAGS = ("-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-w")
_CPUINFO = Path("/proc/cpuinfo")


def runs_here(target: str) -> bool:
    """Whether this CPU has the instructions."""
    words = set(_CPUINFO.read_text().split()) if _CPUINFO.exists() else set()
    return _NEEDS.get(target, "sse2") in words


def model_of(text: str, opset: int = 21) -> ir.Model:
    """Return the graph `text` with the types that shape inference finds."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')
    infer_shapes(model)
    return model


def lowered(model: ir.Model, feeds: Feeds, isa: str = "avx2") -> tuple[StaticModel, Program]:
    """Return a model of the sizes of `feeds`, and its kernels."""
    static = fix_sizes(clone(model), feeds)
    return static, lower(static, ISAS[isa])


@dataclass(frozen=True, eq=False)
class Memory:
    """Bytes that a kernel gets; behind those of an input or output is memory that nobody has."""

    held: Any
    pointer: int
    array: NDArray[np.uint8]

    @classmethod
    def of(cls, buffer: Buffer, fill: NDArray[np.uint8]) -> "Memory":
        """Return the memory of `buffer` full of `fill`'s bytes, again and again."""
        if buffer.kind in ("workspace", "constant"):
            held = np.resize(fill, buffer.size + SLACK)
            return cls(held, held.ctypes.data, held[: buffer.size])
        page = mmap.PAGESIZE
        pages = -(-buffer.size // page) * page
        wall = mmap.mmap(-1, pages + page)
        array = np.frombuffer(wall, np.uint8)
        start = array.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start + pages), page, 0) == 0
        mine = array[pages - buffer.size : pages]
        mine[:] = np.resize(fill, buffer.size)
        return cls(wall, start + pages - buffer.size, mine)


class Compiled:
    """A program, loaded."""

    def __init__(self, program: Program, library: ctypes.CDLL, prefix: str = "") -> None:
        """Find its kernels in `library`, where their names have the prefix."""
        self.program = program
        self.functions = [getattr(library, prefix + kernel.symbol) for kernel in program.kernels]

    def run(self, feeds: Feeds, fill: int = 0) -> dict[str, Array]:
        """Return outputs and taps by name; memory is what is planned, full of noise at first."""
        noise = np.random.default_rng(fill).integers(0, 256, 4099).astype(np.uint8)
        memory: dict[str, Memory] = {}
        where = plan(self.program)
        arena = np.resize(noise, where.size)
        written: dict[str, Array] = {}
        buffers = [b for kernel in self.program.kernels for b in kernel.arguments]
        for buffer in (*buffers, *(t.buffer for t in self.program.inputs)):
            if buffer.name in where.offsets:
                start = where.offsets[buffer.name]
                mine = arena[start : start + buffer.size]
                memory[buffer.name] = Memory(arena, mine.ctypes.data, mine)
            elif buffer.name not in memory:
                memory[buffer.name] = Memory.of(buffer, noise)
                if buffer.kind == "constant":
                    known = self.program.constants[buffer.name]
                    memory[buffer.name].array[:] = known.view(np.uint8).ravel()
        for tensor in self.program.inputs:
            array = np.ascontiguousarray(feeds[tensor.name])
            memory[tensor.buffer.name].array[:] = array.reshape(-1).view(np.uint8)
        for function, kernel in zip(self.functions, self.program.kernels, strict=True):
            function(*(ctypes.c_void_p(memory[b.name].pointer) for b in kernel.arguments))
            written[kernel.writes.name] = memory[kernel.writes.name].array.copy()

        def read(tensor: Tensor) -> Array:
            flat = written[tensor.buffer.name].view(tensor.buffer.dtype)
            return tensor.layout.from_memory(flat).reshape(tensor.layout.shape)

        return {t.name: read(t) for t in (*self.program.taps, *self.program.outputs)}


def differing(found: Array, expected: Array) -> int:
    """Return how many elements differ in a bit; NaNs are alike."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.dtype.kind != "f":
        return int((found != expected).sum())
    nan = np.isnan(found) & np.isnan(expected)
    alike = (found == expected) & (np.signbit(found) == np.signbit(expected))
    return int((~alike & ~nan).sum())


def load(programs: Sequence[Program], target: str, folder: Path) -> list[Compiled]:
    """Compile programs for `target`, one of TARGETS, together, with files in `folder`."""
    kernels = [
        replace(kernel, symbol=f"p{number}_{kernel.symbol}")
        for number, program in enumerate(programs)
        for kernel in program.kernels
    ]
    code = codegen.compile_kernels(kernels, tvm.target.Target(dict(TARGETS[target][1])))
    source = folder / ("kernels.c" if target == "c" else "kernels.o")
    source.write_bytes(code)
    library = folder / "kernels.so"
    command = ["gcc", *_CFLAGS, "-shared", "-fPIC", "-o", str(library), str(source), "-lm"]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    return [Compiled(program, loaded, f"p{i}_") for i, program in enumerate(programs)]


def hold(compiled: Compiled, static: StaticModel, feeds: Feeds) -> int:
    """Hold every output and tap against the simulator, and return how many elements these are.

    It is run twice: what lies in memory before must not matter.
    """
    program, count = compiled.program, 0
    names = [tensor.name for tensor in (*program.taps, *program.outputs)]
    expected = Simulator(static.model).run(feeds, names)
    for fill in (0, 1):
        for name, array in compiled.run(feeds, fill).items():
            wrong = differing(array, expected[name])
            count += array.size
            assert not wrong, f"{name}: {wrong} of {array.size}\n{array}\n{expected[name]}"
    return count


def check(model: ir.Model, feeds: Feeds, target: str, folder: Path) -> Program:
    """Compile a model alone, and hold it against the simulator."""
    static, program = lowered(model, feeds, TARGETS[target][0])
    (compiled,) = load([program], target, folder)
    assert hold(compiled, static, feeds)
    return program
