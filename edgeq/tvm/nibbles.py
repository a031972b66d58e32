"""Weights of at most 4 bits, two to a byte in flash, and the kernel that unpacks them.

Byte i holds element i in its lower half and element `i + half` in its upper half, so that both are
written to places that follow each other. An element is an integer of 4 bits, or an index into a
table of 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx import PrimFunc

from edgeq.tvm import emit
from edgeq.tvm.emit import Buffer, Expr

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Nibbles:
    """An array in half its bytes, or less.

    Attributes:
        data: uint8, two elements each.
        table: What the 16 indices stand for; None where elements are integers from -8 to 7.
        dtype: numpy's name of the elements' type.
    """

    data: Array
    table: Array | None
    dtype: str

    @property
    def elements(self) -> int:
        """How many are written: one more than there are, where these are odd in number."""
        return 2 * self.data.size


def in_nibbles(array: Array) -> Nibbles | None:
    """Return a flat array of integers in nibbles; None where it has more than 16 different ones."""
    low, high = (int(f(array, initial=0)) for f in (np.min, np.max))
    table = None
    if low >= -8 and high <= 7:
        codes = array.astype(np.int64) & 15
    else:
        table, codes = np.unique(array, return_inverse=True)
        if len(table) > 16:
            return None
        table = np.pad(table, (0, 16 - len(table)))
    codes = np.pad(codes.astype(np.uint8), (0, array.size % 2))
    first, second = codes.reshape(2, -1)
    return Nibbles(first | second << 4, table, array.dtype.name)


def unpack(nibbles: Nibbles) -> tuple[str, PrimFunc]:
    """Return the kernel that writes all elements, of `data`, `table` if there is one, and `y`.

    Arrays of one size share it: its name in C tells what it does.
    """
    kind = nibbles.dtype if nibbles.table is None else f"{nibbles.dtype}_table"
    symbol = f"edgeq_unpack_{kind}_{nibbles.data.size}"
    parameters = {"data": ("uint8", nibbles.data.size)}
    if nibbles.table is not None:
        parameters["table"] = (nibbles.dtype, 16)
    parameters["y"] = (nibbles.dtype, nibbles.elements)

    def element(bits: Expr, buffers: Mapping[str, Buffer]) -> Expr:
        if nibbles.table is not None:
            return emit.load(buffers["table"], bits, 1)
        return emit.cast((bits ^ 8) - 8, nibbles.dtype, 1)

    def body(buffers: Mapping[str, Buffer]) -> None:
        with emit.loop(nibbles.data.size) as i:
            byte = emit.bind(emit.cast(emit.load(buffers["data"], i, 1), "int32", 1))
            emit.store(buffers["y"], i, element(byte & 15, buffers), 1)
            emit.store(buffers["y"], i + nibbles.data.size, element(byte >> 4, buffers), 1)

    return symbol, emit.function(symbol, parameters, body)
