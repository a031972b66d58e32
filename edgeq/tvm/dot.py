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
        accumulators: Vectors that registers hold besides the operands.
        dots: Vector products per cycle.
        loads: Vector loads per cycle.
        bytes: In a register.
    """

    name: str
    lanes: int
    operand: str = "int16"
    group: int = 1
    form: Literal["accumulate", "add", "widen"] = "widen"
    intrinsic: str = ""
    accumulators: int = 12
    dots: float = 1.0
    loads: float = 2.0
    bytes: int = 16

    @property
    def is_scalar(self) -> bool:
        """Whether there are no vectors."""
        return self.lanes == 1

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
            if self.operand == "int16":
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
            activation = emit.lane(x, index, self.lanes)
            acc = acc + emit.cast(weights, "int32", self.lanes) * emit.cast(
                activation, "int32", self.lanes
            )
        return acc


ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            "vnni512", 16, "uint8", 4, "accumulate", "llvm.x86.avx512.vpdpbusd.512",
            accumulators=28, dots=2, bytes=64,
        ),
        Isa(
            "vnni256", 8, "uint8", 4, "accumulate", "llvm.x86.avx512.vpdpbusd.256",
            accumulators=12, dots=2, bytes=32,
        ),
        Isa("avx2", 8, "int16", 2, "add", "llvm.x86.avx2.pmadd.wd", accumulators=12, bytes=32),
        Isa(
            "sdot", 4, "int8", 4, "accumulate", "llvm.aarch64.neon.sdot.v4i32.v16i8",
            accumulators=24,
        ),
        Isa(
            "usdot", 4, "uint8", 4, "accumulate", "llvm.aarch64.neon.usdot.v4i32.v16i8",
            accumulators=24,
        ),
        Isa("neon", 8, accumulators=12),
        Isa("neon32", 8, accumulators=5),
        Isa("rvv", 8, accumulators=12),
        Isa("vector", 8, accumulators=6),
        Isa("simd128", 4, "int16", 2, "add", "llvm.wasm.dot", accumulators=12),
        Isa("scalar", 1, ""),
    )
}  # fmt: skip
