"""The devices that TVM compiles for: one row each, with all that code generation and tools read.

Every row keeps floats as IEEE has them: no contraction, no fast math, one rounding per operation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from edgeq.errors import UnknownNameError, suggest

Platform = Literal["hosted", "semihosting", "wasm"]
TargetDict = Mapping[str, str | int | tuple[str, ...]]

DEBIAN = MappingProxyType(
    {
        "make": "make",
        "gcc": "gcc",
        "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        "arm-linux-gnueabihf-gcc": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
        "riscv64-linux-gnu-gcc": "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross",
        "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
        "clang": "clang",
        "wasm-ld": "lld",
        "qemu-aarch64": "qemu-user",
        "qemu-arm": "qemu-user",
        "qemu-riscv64": "qemu-user",
        "qemu-system-arm": "qemu-system-arm",
    }
)
PIP = MappingProxyType({"wasmtime": "wasmtime"})

_EXACT = ("-std=c11", "-O2", "-ffp-contract=off", "-fno-fast-math", "-fno-strict-aliasing")
_SEMIHOSTED = (
    "-display none -serial none -monitor none -chardev stdio,id=out"
    " -semihosting-config enable=on,target=native,chardev=out -kernel {}"
)


@dataclass(frozen=True)
class Memory:
    """What a microcontroller has, in bytes."""

    flash: int
    ram: int


@dataclass(frozen=True)
class Device:
    """A device, as the compiler, the generated C and the checks see it.

    Attributes:
        name: As the user types it.
        summary: One line for people.
        target: TVM's target; an LLVM triple with its features, or the kind `c`.
        isa: How kernels multiply: a name in `edgeq.tvm.dot.ISAS`.
        compiler: The C compiler for everything around the kernels.
        flags: Its options.
        runner: The command that runs a program made for the device; `{}` is the program.
        platform: How the program prints and exits.
        libraries: Modules of Python that the runner needs.
        alignment: Of the workspace and of each buffer in it, in bytes.
        memory: Where it limits what fits.
        golden_bytes: How many bytes of golden vectors go into the check program at most.
        cpu_flags: What `/proc/cpuinfo` must list where the program runs natively.
    """

    name: str
    summary: str
    target: TargetDict
    isa: str
    compiler: str
    flags: tuple[str, ...] = ()
    runner: str = "{}"
    platform: Platform = "hosted"
    libraries: tuple[str, ...] = ()
    alignment: int = 64
    memory: Memory | None = None
    golden_bytes: int = 2**24
    cpu_flags: tuple[str, ...] = ()

    @property
    def is_source(self) -> bool:
        """Whether kernels are C source, not an object file."""
        return self.target["kind"] == "c"

    @property
    def is_native(self) -> bool:
        """Whether the program runs without an emulator."""
        return self.runner == "{}"

    @property
    def cflags(self) -> tuple[str, ...]:
        """All options of the C compiler."""
        return (*_EXACT, *self.flags)

    @property
    def build_tools(self) -> tuple[str, ...]:
        """Commands that building needs."""
        linker = ("wasm-ld",) if self.platform == "wasm" else ()
        return ("make", self.compiler, *linker)

    @property
    def tools(self) -> tuple[str, ...]:
        """Commands that building and running need."""
        runner = self.runner.split()[0]
        return (*self.build_tools, *((runner,) if runner in DEBIAN else ()))

    @property
    def packages(self) -> tuple[str, ...]:
        """What to install, as `apt-get install` and `pip install` name it."""
        debian = [package for tool in self.tools for package in DEBIAN[tool].split()]
        return (*dict.fromkeys(debian), *(f"{PIP[name]} (pip)" for name in self.libraries))


def _llvm(
    triple: str,
    cpu: str,
    *features: str,
    abi: str | None = None,
    float_abi: str | None = None,
    vector_width: int | None = None,
) -> TargetDict:
    """Return TVM's target for an LLVM triple; without a vector width TVM may print a warning.

    The triple has all four parts. LLVM does not see the EABI in `thumbv7em-none-eabihf`, and calls
    `__muldf3` with floats in registers where `__aeabi_dmul` wants integers: other bits, no error.
    """
    entries: dict[str, str | int | tuple[str, ...] | None] = {
        "kind": "llvm",
        "mtriple": triple,
        "mcpu": cpu,
        "mattr": features or None,
        "mabi": abi,
        "mfloat-abi": float_abi,
        "vector-width": vector_width,
    }
    return MappingProxyType({key: value for key, value in entries.items() if value is not None})


def _cortex_m(name: str, summary: str, cpu: str, fpu: str, board: str) -> Device:
    return Device(
        name,
        summary,
        _llvm("thumbv7em-unknown-none-eabihf", cpu, float_abi="hard", vector_width=32),
        isa="scalar",
        compiler="arm-none-eabi-gcc",
        flags=(f"-mcpu={cpu}", "-mthumb", "-mfloat-abi=hard", f"-mfpu={fpu}"),
        runner=f"qemu-system-arm -M {board} {_SEMIHOSTED}",
        platform="semihosting",
        alignment=16,
        memory=Memory(flash=4 * 2**20, ram=4 * 2**20),
        golden_bytes=2**20,
    )


_RISCV = ("+m", "+a", "+f", "+d", "+c")
_DEVICES = (
    Device(
        "tvm-x86-64",
        "x86-64 CPUs with AVX2, Linux",
        _llvm("x86_64-unknown-linux-gnu", "haswell"),
        isa="avx2",
        compiler="gcc",
        cpu_flags=("avx2", "fma", "bmi2"),
    ),
    Device(
        "tvm-x86-64-vnni",
        "x86-64 CPUs with AVX-512 VNNI, Linux",
        _llvm("x86_64-unknown-linux-gnu", "cascadelake"),
        isa="vnni512",
        compiler="gcc",
        cpu_flags=("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    ),
    Device(
        "tvm-aarch64",
        "64-bit Arm (from Cortex-A53 on), Linux and Android",
        _llvm("aarch64-unknown-linux-gnu", "cortex-a53"),
        isa="neon",
        compiler="aarch64-linux-gnu-gcc",
        runner="qemu-aarch64 -cpu cortex-a53 {}",
    ),
    Device(
        "tvm-aarch64-dotprod",
        "64-bit Arm with dot product (from Cortex-A76 on), Linux and Android",
        _llvm("aarch64-unknown-linux-gnu", "cortex-a76"),
        isa="sdot",
        compiler="aarch64-linux-gnu-gcc",
        runner="qemu-aarch64 -cpu cortex-a76 {}",
    ),
    Device(
        "tvm-armv7",
        "32-bit Arm with NEON (from Cortex-A7 on), hard float, Linux",
        _llvm("armv7a-unknown-linux-gnueabihf", "cortex-a7", "+neon", float_abi="hard"),
        isa="neon32",
        compiler="arm-linux-gnueabihf-gcc",
        flags=("-mcpu=cortex-a7", "-mfpu=neon-vfpv4", "-mfloat-abi=hard"),
        runner="qemu-arm -cpu cortex-a7 {}",
    ),
    Device(
        "tvm-riscv64",
        "64-bit RISC-V (rv64gc), Linux",
        _llvm("riscv64-unknown-linux-gnu", "generic-rv64", *_RISCV, abi="lp64d"),
        isa="scalar",
        compiler="riscv64-linux-gnu-gcc",
        runner="qemu-riscv64 -cpu rv64 {}",
    ),
    Device(
        "tvm-riscv64-v",
        "64-bit RISC-V with vectors (rv64gcv), Linux",
        _llvm("riscv64-unknown-linux-gnu", "generic-rv64", *_RISCV, "+v", abi="lp64d"),
        isa="rvv",
        compiler="riscv64-linux-gnu-gcc",
        runner="qemu-riscv64 -cpu rv64,v=true,vext_spec=v1.0,vlen=128 {}",
    ),
    _cortex_m(
        "tvm-cortex-m4", "Arm Cortex-M4F, bare metal", "cortex-m4", "fpv4-sp-d16", "mps2-an386"
    ),
    _cortex_m("tvm-cortex-m7", "Arm Cortex-M7, bare metal", "cortex-m7", "fpv5-d16", "mps2-an500"),
    Device(
        "tvm-wasm32",
        "WebAssembly with 128-bit SIMD: browsers and wasm runtimes",
        _llvm("wasm32-unknown-unknown", "generic", "+simd128", vector_width=128),
        isa="simd128",
        compiler="clang",
        flags=("--target=wasm32", "-ffreestanding", "-msimd128", "-mbulk-memory"),
        runner="python3 run_wasm.py {}",
        platform="wasm",
        libraries=("wasmtime",),
    ),
    Device(
        "tvm-c",
        "C11 source for any compiler; checked on this machine",
        MappingProxyType({"kind": "c"}),
        isa="scalar",
        compiler="gcc",
        flags=("-O3",),  # all vectors are the compiler's
        golden_bytes=2**22,
    ),
)
DEVICES: Mapping[str, Device] = MappingProxyType({device.name: device for device in _DEVICES})


def find_device(name: str) -> Device:
    """Return the device `name`.

    Raises:
        UnknownNameError: There is no such device.
    """
    if name in DEVICES:
        return DEVICES[name]
    known = list(DEVICES)
    raise UnknownNameError(
        f"no device is named {name!r}{suggest(name, known)}; there are: {', '.join(known)}"
    )
