"""All constants of a program as one array of bytes: where each lies in it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeq.tvm.program import SLACK, Program


@dataclass(frozen=True)
class Weights:
    """The array.

    Attributes:
        data: Its bytes, little-endian.
        offsets: Of each constant buffer that a kernel reads, by name.
    """

    data: bytes
    offsets: Mapping[str, int]


def lay_out(program: Program, alignment: int) -> Weights:
    """Lay the constants one behind the other: behind each there are bytes that may be read."""
    data, offsets = bytearray(), {}
    for kernel in program.kernels:
        for buffer in kernel.arguments:
            if buffer.kind != "constant" or buffer.name in offsets:
                continue
            array = np.ascontiguousarray(program.constants[buffer.name])
            little = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            assert array.dtype.name == buffer.dtype, f"{buffer.name} is {array.dtype.name}"
            assert len(little) == buffer.size, f"{buffer.name}: {len(little)} bytes"
            data += bytes(-len(data) % alignment)
            offsets[buffer.name] = len(data)
            data += little
    return Weights(bytes(data) + bytes(SLACK) if data else b"", offsets)
