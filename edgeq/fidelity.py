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

BINS = 5  # off by 0, 1, 2, 3, and 4 or more


@dataclass(frozen=True)
class Fidelity:
    """How far one tensor is from its reference.

    Attributes:
        name: Of the tensor.
        sqnr_db: None where it is exact, or the reference is all zero.
        off_by: Elements off by 0, 1, 2, 3, and 4 or more steps; empty for a float tensor.
        elements: How many were compared.
    """

    name: str
    sqnr_db: float | None
    off_by: tuple[int, ...]
    elements: int


class FidelityMeter:
    """Accumulates one tensor's fidelity over samples; O(1) memory."""

    def __init__(self, name: str, qparams: QParams | None = None) -> None:
        self._name, self._qparams = name, qparams
        self._signal = self._noise = 0.0
        self._histogram = np.zeros(BINS, np.int64)
        self._elements = 0

    def add(self, reference: NDArray[Any], actual: NDArray[Any]) -> None:
        """Compare one sample.

        Args:
            reference: Reals.
            actual: Codes where the meter has `qparams`, else reals; the shape of `reference`.
        """
        assert reference.shape == actual.shape, f"{self._name}: {reference.shape}, {actual.shape}"
        real = actual
        if self._qparams is not None:
            nearest = self._qparams.quantize(np.asarray(reference, np.float32))
            steps = np.abs(nearest.astype(np.int64) - actual.astype(np.int64))
            counts = np.bincount(np.minimum(steps, BINS - 1).reshape(-1), minlength=BINS)
            self._histogram += counts
            real = self._qparams.dequantize(actual)
        wide = reference.astype(np.float64)
        self._signal += float(np.sum(wide * wide))
        self._noise += float(np.sum((real.astype(np.float64) - wide) ** 2))
        self._elements += reference.size

    def result(self) -> Fidelity:
        """Return what was found."""
        off_by = () if self._qparams is None else tuple(int(n) for n in self._histogram)
        return Fidelity(self._name, sqnr_db(self._signal, self._noise), off_by, self._elements)


def sqnr_db(signal: float, noise: float) -> float | None:
    """Return `10 log10(signal / noise)` in dB; None where either is zero or not finite.

    >>> sqnr_db(100.0, 1.0)
    20.0
    """
    if not (0 < signal < math.inf and 0 < noise < math.inf):
        return None
    return 10 * math.log10(signal / noise)
