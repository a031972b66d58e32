"""Formats of codes, and their inclusive ranges.

`QTYPES` are the types that tensors have, `FORMATS` what a recipe may ask for. Between the passes,
codes of a format with fewer than 8 bits lie in int8 or uint8 arrays: kernels read nothing narrower.

A 4-bit float is a grid of integers times a scale. Its codes are those integers, so that integer
kernels multiply them exactly: E2M1 in units of its smallest step, 0.5, is 0, 1, 2, 3, 4, 6, 8, 12.

An 8-bit float is no such grid. Its codes are numbers of its own type, `FLOAT8`, that float kernels
multiply: `real = number * scale`.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class QType:
    """A quantized storage format.

    Attributes:
        name: The ONNX spelling, in lower case: `uint8`, `int4`, ...; others alike: `uint6`.
        qmin: Smallest code.
        qmax: Largest code.
        dtype: The numpy dtype of arrays of codes.
        values: The codes that exist, ascending, when they are not all of qmin..qmax.
    """

    name: str
    qmin: int
    qmax: int
    dtype: np.dtype[np.generic]
    values: tuple[int, ...] | None = None

    @property
    def bits(self) -> int:
        """Width in bits.

        >>> INT4.bits, UINT8.bits, INT32.bits, FORMATS["uint6"].bits, FORMATS["float4e3m0"].bits
        (4, 8, 32, 6, 4)
        >>> FLOAT8["float8e4m3fn"].bits
        8
        """
        if self.floating:
            return 8 * self.dtype.itemsize
        count = self.qmax - self.qmin + 1 if self.values is None else len(self.values)
        return (count - 1).bit_length()

    @property
    def floating(self) -> bool:
        """Whether codes are floating point numbers, not integers."""
        return self.dtype.name.startswith("float")

    @property
    def signed(self) -> bool:
        """Whether negative codes exist."""
        return self.qmin < 0

    @property
    def storage(self) -> "QType":
        """The format of the tensors that hold the codes: uint8 for uint6.

        >>> FORMATS["uint6"].storage.name, UINT8.storage.name, FORMATS["float4e2m1"].storage.name
        ('uint8', 'uint8', 'int8')
        """
        return QTYPES[self.dtype.name]

    def within(self, limit: int) -> tuple[int, int]:
        """Return the smallest and the largest code whose magnitude is at most `limit`.

        >>> INT8.within(127), INT4.within(127), FORMATS["float4e2m1"].within(7)
        ((-127, 127), (-8, 7), (-6, 6))
        """
        if self.values is None:
            return max(self.qmin, -limit), min(self.qmax, limit)
        fitting = [value for value in self.values if abs(value) <= limit]
        return fitting[0], fitting[-1]


INT4 = QType("int4", -8, 7, np.dtype(ml_dtypes.int4))
UINT4 = QType("uint4", 0, 15, np.dtype(ml_dtypes.uint4))
INT8 = QType("int8", -128, 127, np.dtype(np.int8))
UINT8 = QType("uint8", 0, 255, np.dtype(np.uint8))
INT16 = QType("int16", -(2**15), 2**15 - 1, np.dtype(np.int16))
UINT16 = QType("uint16", 0, 2**16 - 1, np.dtype(np.uint16))
INT32 = QType("int32", -(2**31), 2**31 - 1, np.dtype(np.int32))

QTYPES = {q.name: q for q in (INT4, UINT4, INT8, UINT8, INT16, UINT16, INT32)}


def _narrow(bits: int) -> tuple[QType, QType]:
    half = 2 ** (bits - 1)
    signed = QType(f"int{bits}", -half, half - 1, INT8.dtype)
    return signed, QType(f"uint{bits}", 0, 2 * half - 1, UINT8.dtype)


def _float4(name: str, *positive: int) -> QType:
    values = (*(-v for v in reversed(positive)), 0, *positive)
    return QType(name, values[0], values[-1], INT8.dtype, values)


FLOAT4 = {
    q.name: q
    for q in (
        _float4("float4e2m1", 1, 2, 3, 4, 6, 8, 12),
        _float4("float4e1m2", 1, 2, 3, 4, 5, 6, 7),
        _float4("float4e3m0", 1, 2, 4, 8, 16, 32, 64),
    )
}
FORMATS = QTYPES | {q.name: q for bits in range(2, 8) for q in _narrow(bits)} | FLOAT4


FLOAT8 = {
    q.name: q
    for q in (
        QType("float8e4m3fn", -448, 448, np.dtype(ml_dtypes.float8_e4m3fn)),
        QType("float8e5m2", -57344, 57344, np.dtype(ml_dtypes.float8_e5m2)),
    )
}
TENSOR_TYPES = QTYPES | FLOAT8


def qtype_of(dtype: np.dtype[np.generic]) -> QType:
    """Return the format whose codes have `dtype`.

    Raises:
        KeyError: `dtype` is not a quantized storage format.
    """
    return TENSOR_TYPES[dtype.name.replace("_", "")]


def all_codes(qtype: QType) -> NDArray[Any]:
    """Return every code of an 8- or 16-bit format, in the order of a table's index.

    A negative index counts from the end: behind 127 come -128, -127, ...
    """
    unsigned = np.uint8 if qtype.bits == 8 else np.uint16
    return np.arange(2**qtype.bits).astype(unsigned).view(qtype.dtype)
