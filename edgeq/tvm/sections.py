"""How much of an object file is code, and how much is data that a device holds."""

import struct
from dataclasses import dataclass

from edgeq.memory_use import BufferRow, MemoryUse
from edgeq.tvm.memory_plan import plan
from edgeq.tvm.program import Program
from edgeq.tvm.weights import lay_out

ALLOCATED, EXECUTABLE = 2, 4  # SHF_ALLOC, SHF_EXECINSTR


@dataclass(frozen=True)
class Sections:
    """Bytes of an object's sections that are loaded."""

    code: int
    data: int


def sections(data: bytes) -> Sections | None:
    """Return the sizes of the sections of an ELF object; None for other files.

    Source: Tool Interface Standard, ELF specification 1.2, and its 64-bit form.
    """
    if data[:4] != b"\x7fELF":
        return None
    wide = data[4] == 2
    order = "<" if data[5] == 1 else ">"
    start = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", data, 40 if wide else 32)[0]
    entry, count = struct.unpack_from(f"{order}HH", data, 58 if wide else 46)
    code = rest = 0
    for number in range(count):
        at = start + number * entry
        if wide:
            flags, size = (struct.unpack_from(f"{order}Q", data, at + n)[0] for n in (8, 32))
        else:
            flags, size = (struct.unpack_from(f"{order}I", data, at + n)[0] for n in (8, 20))
        if flags & EXECUTABLE:
            code += size
        elif flags & ALLOCATED:
            rest += size
    return Sections(code, rest)


def memory_use(program: Program, kernels: bytes, alignment: int) -> MemoryUse:
    """Return what a program takes.

    Args:
        program: The lowered model.
        kernels: The object file, or source.
        alignment: Of the device.
    """
    memory, found = plan(program, alignment), sections(kernels)
    sizes = {b.name: b.size for kernel in program.kernels for b in kernel.arguments}
    values = {tap.buffer.name: tap.name for tap in program.taps}
    rows = [
        BufferRow(values.get(name, name), offset, sizes[name], life.first, life.last)
        for name, offset in memory.offsets.items()
        for life in [memory.lives[name]]
    ]
    return MemoryUse(
        None if found is None else found.code,
        0 if found is None else found.data,
        len(lay_out(program, alignment).data),
        memory.size,
        memory.peak,
        len(program.kernels),
        tuple(sorted(rows, key=lambda row: (row.first, row.offset))),
    )
