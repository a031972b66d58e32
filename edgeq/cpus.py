"""The kinds of CPU whose kernels of ONNX Runtime are written down, by name.

What sets them apart is data: which formulas their fused kernels follow, whether pairs of
uint8 * int8 products saturate, and whether int8 activations reach integer kernels at all. Each row
names the emulator's CPU on which the formulas were compared with the stock wheels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from edgeq.errors import UnknownNameError, suggest
from edgeq.numerics.ort_kernels import ARM, AVX2, SSE

INT8_ALLOWED = "session.qdqisint8allowed"


@dataclass(frozen=True)
class Cpu:
    """A kind of CPU.

    Attributes:
        name: What users call it.
        summary: What it is, in a line.
        kernels: Whose formulas it follows: one of `edgeq.numerics.ort_kernels.CPUS`.
        emulated: The CPU of qemu-user that behaves so; empty where qemu has none.
        saturates: Whether the sum of two uint8 * int8 products saturates at 16 bits.
        overflows: Whether the sum of two products of -128 * -128 overflows 16 bits. The kernels of
            depthwise Convs overflow on every Arm.
    """

    name: str
    summary: str
    kernels: str
    emulated: str = ""
    saturates: bool = False
    overflows: bool = False

    @property
    def widened(self) -> "Cpu":
        """The same CPU where products are widened first, as the precision option makes it do."""
        return replace(self, saturates=False)

    @property
    def arm(self) -> bool:
        """Whether it is a 64-bit Arm."""
        return self.kernels == ARM

    @property
    def session_options(self) -> Mapping[str, str]:
        """What makes ONNX Runtime fuse on any machine as it does on this CPU."""
        return MappingProxyType({INT8_ALLOWED: "1" if self.arm else "0"})


CPUS: Mapping[str, Cpu] = MappingProxyType(
    {
        cpu.name: cpu
        for cpu in (
            Cpu("x86-64-vnni", "x86-64 with AVX2 and VNNI", AVX2),
            Cpu("x86-64-avx2", "x86-64 with AVX2, without VNNI", AVX2, "Haswell", saturates=True),
            Cpu("x86-64-sse4", "x86-64 with SSE4.2, without AVX", SSE, "Nehalem"),
            Cpu("aarch64", "64-bit Arm without dot product", ARM, "cortex-a72", overflows=True),
            Cpu("aarch64-dotprod", "64-bit Arm with dot product", ARM, "neoverse-n1"),
            Cpu("aarch64-i8mm", "64-bit Arm with i8mm and SVE", ARM, "max"),
        )
    }
)


ALL = tuple(CPUS)
X86 = tuple(name for name, cpu in CPUS.items() if not cpu.arm)
ARM64 = tuple(name for name, cpu in CPUS.items() if cpu.arm)
SATURATING = tuple(name for name, cpu in CPUS.items() if cpu.saturates)
OVERFLOWING = tuple(name for name, cpu in CPUS.items() if cpu.overflows)


def with_kernels(*kinds: str) -> tuple[str, ...]:
    """Return the names of the CPUs whose fused kernels follow the formulas of `kinds`."""
    return tuple(name for name, cpu in CPUS.items() if cpu.kernels in kinds)


def in_words(names: Iterable[str]) -> str:
    """Return a set of CPUs as short as it can be said.

    >>> in_words(X86), in_words(ALL), in_words(["armv7", "aarch64"])
    ('every x86-64', 'every CPU', 'aarch64, armv7')
    """
    found = set(names)
    if found == set(ALL):
        return "every CPU"
    words = []
    for family, word in ((X86, "every x86-64"), (ARM64, "every aarch64")):
        if found >= set(family):
            words.append(word)
            found -= set(family)
    others = sorted(found.difference(ALL))  # no kernels of theirs are written down
    return ", ".join([*words, *(name for name in ALL if name in found), *others])


def find_cpu(name: str) -> Cpu:
    """Return the CPU that users, or qemu, call `name`.

    >>> find_cpu("cortex-a72").name
    'aarch64'

    Raises:
        UnknownNameError: There is no such CPU.
    """
    for cpu in CPUS.values():
        if name and name.lower() in (cpu.name, cpu.emulated.lower()):
            return cpu
    known = list(CPUS)
    raise UnknownNameError(f"no CPU {name!r}{suggest(name, known)}; known: {', '.join(known)}")
