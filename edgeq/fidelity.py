"""How far a quantized tensor is from the float one: SQNR, and off by how many steps.

`SQNR = 10 log10(sum r^2 / sum (a - r)^2)` in dB, summed in float64 over all samples. Off by N: the
distance between the code and the code nearest to the float value, in steps of the scale.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import QParams
from edgeq.numerics.floating import ordinals

BINS = 5  # off by 0, 1, 2, 3, and 4 or more
PARTS = 256  # of a format's range that codes are counted in: one for each code of 8 bits


@dataclass(frozen=True)
class Fidelity:
    """How far one tensor is from its reference.

    Attributes:
        name: Of the tensor.
        sqnr_db: None where it is exact, or the reference is all zero.
        off_by: Elements off by 0, 1, 2, 3, and 4 or more steps; empty for a float tensor.
        elements: How many were compared.
        qtype: Format of its codes; empty for a float tensor.
    """

    name: str
    sqnr_db: float | None
    off_by: tuple[int, ...]
    elements: int
    qtype: str = ""


class FidelityMeter:
    """Accumulates one tensor's fidelity over samples; O(1) memory.

    Attributes:
        name: Of the tensor.
    """

    def __init__(self, name: str, qparams: QParams | None = None) -> None:
        self.name, self._qparams = name, qparams
        self._signal = self._noise = 0.0
        self._histogram = np.zeros(BINS, np.int64)
        self._parts = np.zeros(PARTS, np.int64)
        self._elements = 0

    def add(self, reference: NDArray[Any], actual: NDArray[Any]) -> None:
        """Compare one sample.

        Args:
            reference: Reals.
            actual: Codes where the meter has `qparams`, else reals; the shape of `reference`.
        """
        assert reference.shape == actual.shape, f"{self.name}: {reference.shape}, {actual.shape}"
        real = actual
        if self._qparams is not None:
            nearest = self._qparams.quantize(np.asarray(reference, np.float32))
            steps = np.abs(_places(nearest) - _places(actual))
            counts = np.bincount(np.minimum(steps, BINS - 1).reshape(-1), minlength=BINS)
            self._histogram += counts
            self._parts += count_codes(actual)
            real = self._qparams.dequantize(actual)
        wide = reference.astype(np.float64)
        self._signal += float(np.sum(wide * wide))
        self._noise += float(np.sum((real.astype(np.float64) - wide) ** 2))
        self._elements += reference.size

    @property
    def codes(self) -> NDArray[np.int64] | None:
        """How often codes were seen, as `count_codes` counts them; None for a float tensor."""
        return None if self._qparams is None else self._parts

    def result(self) -> Fidelity:
        """Return what was found."""
        off_by: tuple[int, ...] = ()
        qtype = ""
        if self._qparams is not None:
            off_by = tuple(int(n) for n in self._histogram)
            qtype = self._qparams.qtype.name
        sqnr = sqnr_db(self._signal, self._noise)
        return Fidelity(self.name, sqnr, off_by, self._elements, qtype)


def count_codes(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Count codes in equal parts of their dtype's range, `(PARTS,)`.

    A part is one code of 8 bits, or 256 of 16; dtypes of fewer bits are held in 8.

    >>> [int(n) for n in count_codes(np.array([[-128, 127, 127]], np.int8))[[0, 1, 255]]]
    [1, 0, 2]
    """
    first, size = code_parts(codes.dtype)
    return np.bincount((_places(codes.reshape(-1)) - first) // size, minlength=PARTS)


def _places(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Return codes as integers a step apart: of 8-bit floats, their places in their order."""
    floating = codes.dtype.name.startswith("float8")
    return np.asarray(ordinals(codes) if floating else codes, np.int64)


def code_parts(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the first code of the first part that `count_codes` counts in, and a part's size."""
    levels = 2 ** (8 * dtype.itemsize)
    return (0 if dtype.name.startswith("u") else -levels // 2), levels // PARTS


def is_fine(qtype: str) -> bool:
    """Whether a format has 16 bits: its steps are so fine that being off by many is no loss."""
    return qtype.endswith("16")


def sqnr_db(signal: float, noise: float) -> float | None:
    """Return `10 log10(signal / noise)` in dB; None where either is zero or not finite.

    >>> sqnr_db(100.0, 1.0)
    20.0
    """
    if not (0 < signal < math.inf and 0 < noise < math.inf):
        return None
    return 10 * math.log10(signal / noise)
