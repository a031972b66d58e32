"""The ways in which CPUs multiply codes: one row each.

Products are summed in int32 without saturation or rounding on the way: `vpmaddubsw`, which
saturates, is not used.

| instruction | one step of one accumulator lane |
|---|---|
| `vpdpbusd`, `usdot` | 4 products of uint8 and int8 |
| `sdot` | 4 products of int8 and int8 |
| `vpmaddwd`, `i32x4.dot_i16x8_s` | 2 products of int16 and int16 |
| `smlal`, `vwmacc` | 1 product of int16 and int16 |
| none | scalar code over the codes as they are |
"""

from dataclasses import dataclass
from typing import Literal

from tvm import tirx

from edgeq.tvm import emit
from edgeq.tvm.emit import Buffer, Expr

_LANES_OF_LOAD = 4  # of activations, each then multiplied by a vector of weights


@dataclass(frozen=True)
class Core:
    """What the choice of tiles needs to know of a CPU.

    Attributes:
        bytes: In a vector register.
        registers: For vectors.
        dots: Products of whole registers per cycle.
        loads: Vector loads per cycle.
        issue: Instructions per cycle.
    """

    bytes: int = 16
    registers: int = 32
    dots: float = 1.0
    loads: float = 1.0
    issue: float = 2.0


@dataclass(frozen=True)
class Isa:
    """How to multiply on a kind of CPU.

    Attributes:
        name: As device tables call it.
        lanes: int32 accumulators in one vector; 1: scalar code.
        operand: The type in which activations are multiplied.
        group: Products that one instruction adds to a lane.
        form: How vectors are multiplied: by an LLVM intrinsic that adds to its first argument, by
            one whose result is to be added, or by widening products that LLVM recognises.
        intrinsic: Its name.
        core: What a CPU that has it can hold and do.
        weights: How they lie in memory; int16 where widening them costs time and memory is there.
    """

    name: str
    lanes: int
    operand: str = "int16"
    group: int = 1
    form: Literal["accumulate", "add", "widen"] = "widen"
    intrinsic: str = ""
    core: Core = Core()
    weights: str = "int8"

    @property
    def is_scalar(self) -> bool:
        """Whether there are no vectors."""
        return self.lanes == 1

    @property
    def widens_weights(self) -> bool:
        """Whether each load of weights is followed by a conversion."""
        return self.operand == "int16" and self.weights == "int8"

    @property
    def step(self) -> int:
        """Elements of a run that are loaded together; runs are filled up to a multiple of it."""
        return _LANES_OF_LOAD if self.form == "widen" else self.group

    def load_activations(self, x: Buffer, at: Expr) -> Expr:
        """Return `step` activations from `at` on, ready for `multiply`."""
        if self.form == "widen":
            return emit.bind(emit.load(x, at, self.step))
        word = emit.reinterpret(emit.load(x, at, self.group), "int32", 1)
        kind = "int8" if self.operand in ("int8", "uint8") else "int16"
        words = tirx.Broadcast(word, self.lanes)
        return emit.bind(emit.reinterpret(words, kind, self.lanes * self.group))

    def load_weights(self, w: Buffer, at: Expr) -> list[Expr]:
        """Return the weights of `step` elements for `lanes` channels."""
        count = self.lanes * self.group
        found = []
        for part in range(self.step // self.group):
            packed = emit.load(w, at + part * count, count)
            if self.widens_weights:
                packed = emit.cast(packed, "int16", count)
            found.append(emit.bind(packed))
        return found

    def multiply(self, acc: Expr, x: Expr, w: list[Expr]) -> Expr:
        """Return `acc` with the products of `step` activations and `lanes` channels added."""
        kind = emit.vector("int32", self.lanes)
        if self.form == "accumulate":
            return tirx.call_llvm_pure_intrin(kind, self.intrinsic, acc, x, w[0])
        if self.form == "add":
            return acc + tirx.call_llvm_pure_intrin(kind, self.intrinsic, x, w[0])
        for index, weights in enumerate(w):
            acc = acc + self._widened(emit.part(x, index, 1), weights)
        return acc

    def _widened(self, x: Expr, w: Expr) -> Expr:
        if not self.intrinsic:
            both = (emit.cast(v, "int32", self.lanes) for v in (tirx.Broadcast(x, self.lanes), w))
            return next(both) * next(both)
        few = tirx.Broadcast(x, 4)
        parts = [emit.part(w, first, 4) for first in range(0, self.lanes, 4)]
        return emit.joined(
            [tirx.call_llvm_pure_intrin("int32x4", self.intrinsic, few, part) for part in parts], 4
        )


_ARM64 = Core(16, 32, dots=2.0, loads=2.0, issue=4.0)
_AVX512 = Core(64, 32, dots=2.0, loads=2.0, issue=6.0)
_AVX2 = Core(32, 16, dots=2.0, loads=2.0, issue=5.0)
_FEW = Core(16, 16)

ISAS = {
    isa.name: isa
    for isa in (
        Isa("vnni512", 16, "uint8", 4, "accumulate", "llvm.x86.avx512.vpdpbusd.512", _AVX512),
        Isa("vnni256", 8, "uint8", 4, "accumulate", "llvm.x86.avx512.vpdpbusd.256", _AVX2),
        Isa("avx2", 8, "int16", 2, "add", "llvm.x86.avx2.pmadd.wd", _AVX2, "int16"),
        Isa("sdot", 4, "int8", 4, "accumulate", "llvm.aarch64.neon.sdot.v4i32.v16i8", _ARM64),
        Isa("usdot", 4, "uint8", 4, "accumulate", "llvm.aarch64.neon.usdot.v4i32.v16i8", _ARM64),
        Isa("neon", 8),
        Isa("neon32", 8, intrinsic="llvm.arm.neon.vmulls.v4i32", core=_FEW, weights="int16"),
        Isa("rvv", 8),
        Isa("vector", 8, core=_FEW),
        Isa("simd128", 4, "int16", 2, "add", "llvm.wasm.dot", _FEW),
        Isa("scalar", 1, ""),
    )
}
