"""Integer storage formats and their inclusive ranges."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class QType:
    """A quantized storage format.

    Attributes:
        name: The ONNX spelling, in lower case: `uint8`, `int4`, ...
        qmin: Smallest code.
        qmax: Largest code.
        dtype: The numpy dtype of arrays of codes.
    """

    name: str
    qmin: int
    qmax: int
    dtype: np.dtype[np.generic]

    @property
    def bits(self) -> int:
        """Width in bits.

        >>> INT4.bits, UINT8.bits, INT32.bits
        (4, 8, 32)
        """
        return (self.qmax - self.qmin).bit_length()

    @property
    def signed(self) -> bool:
        """Whether negative codes exist."""
        return self.qmin < 0


INT4 = QType("int4", -8, 7, np.dtype(ml_dtypes.int4))
UINT4 = QType("uint4", 0, 15, np.dtype(ml_dtypes.uint4))
INT8 = QType("int8", -128, 127, np.dtype(np.int8))
UINT8 = QType("uint8", 0, 255, np.dtype(np.uint8))
INT16 = QType("int16", -(2**15), 2**15 - 1, np.dtype(np.int16))
UINT16 = QType("uint16", 0, 2**16 - 1, np.dtype(np.uint16))
INT32 = QType("int32", -(2**31), 2**31 - 1, np.dtype(np.int32))

QTYPES = {q.name: q for q in (INT4, UINT4, INT8, UINT8, INT16, UINT16, INT32)}


def qtype_of(dtype: np.dtype[np.generic]) -> QType:
    """Return the format whose codes have `dtype`.

    Raises:
        KeyError: `dtype` is not a quantized storage format.
    """
    return QTYPES[dtype.name]
