"""Floating point of 8, 6 and 4 bits: a sign, some bits of exponent and some of mantissa.

A format is a grid: normal numbers `2**e * (1 + m / 2**M)`, below them subnormal ones of the step of
the smallest exponent. Reals become the nearest number, ties the one whose bit pattern is even, and
they saturate: what ONNX says of QuantizeLinear with `saturate=1`, and ml_dtypes of a conversion.

A tensor has a scale beside its format: `real = number * scale`. A format whose bias is any real
number b (A. Kuzmin et al., "FP8 Quantization: The Power of the Exponent", NeurIPS 2022) is the same
with the scale `2**(bias - b)`, so biases are searched as scales.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Array = NDArray[Any]


@dataclass(frozen=True)
class FloatFormat:
    """A small floating point format.

    Attributes:
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa, without the implicit one.
        lost: How many of the largest magnitudes are no numbers: infinity and NaN.
        dtype: The numpy dtype of its codes; None where ml_dtypes has none.
    """

    exponent: int
    mantissa: int
    lost: int = 0
    dtype: np.dtype[Any] | None = None

    @property
    def bits(self) -> int:
        """Width of a code, its sign included."""
        return 1 + self.exponent + self.mantissa

    @property
    def magnitudes(self) -> Float64:
        """All numbers from 0 on, in the order of their bit patterns.

        >>> FORMATS["e2m1fn"].magnitudes.tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        """
        patterns = np.arange(2 ** (self.bits - 1) - self.lost)
        exponents, fractions = patterns >> self.mantissa, patterns % 2**self.mantissa
        units = fractions + np.where(exponents > 0, 2**self.mantissa, 0)
        bias = 2 ** (self.exponent - 1) - 1
        steps = np.maximum(exponents, 1) - bias - self.mantissa
        return np.asarray(np.ldexp(units.astype(np.float64), steps))

    @property
    def middles(self) -> Float64:
        """Where rounding goes from each number to the next."""
        numbers = self.magnitudes
        return np.asarray((numbers[1:] + numbers[:-1]) / 2)

    @property
    def largest(self) -> float:
        """The largest number."""
        return float(self.magnitudes[-1])

    @property
    def width(self) -> int:
        """Bits of a signed integer that holds every number in units of the smallest.

        >>> FORMATS["e2m1fn"].width, FORMATS["e4m3fn"].width
        (5, 19)
        """
        return int(self.largest / self.magnitudes[1]).bit_length() + 1

    def patterns(self, x: Array) -> NDArray[np.uint8]:
        """Return the bit patterns of the nearest numbers; of reals, NaN is not among them."""
        middles, size = self.middles, np.abs(x)
        first, last = (np.searchsorted(middles, size, side) for side in ("left", "right"))
        places = np.where(first % 2 == 0, first, last)
        return np.asarray(places | (np.signbit(x) << (self.bits - 1)), np.uint8)

    def round(self, x: Array) -> Array:
        """Return the nearest numbers, of the dtype of `x`: float32 or float64."""
        places = self.patterns(np.abs(x))
        return np.asarray(np.copysign(self.magnitudes[places], x), x.dtype)


FORMATS = MappingProxyType(
    {
        "e5m2": FloatFormat(5, 2, 4, np.dtype(ml_dtypes.float8_e5m2)),
        "e4m3fn": FloatFormat(4, 3, 1, np.dtype(ml_dtypes.float8_e4m3fn)),
        "e3m4": FloatFormat(3, 4, 16, np.dtype(ml_dtypes.float8_e3m4)),
        "e2m5fn": FloatFormat(2, 5),
        "e3m2fn": FloatFormat(3, 2, 0, np.dtype(ml_dtypes.float6_e3m2fn)),
        "e2m3fn": FloatFormat(2, 3, 0, np.dtype(ml_dtypes.float6_e2m3fn)),
        "e3m0fn": FloatFormat(3, 0),
        "e2m1fn": FloatFormat(2, 1, 0, np.dtype(ml_dtypes.float4_e2m1fn)),
        "e1m2fn": FloatFormat(1, 2),
    }
)


_BY_DTYPE = MappingProxyType({f.dtype.name: f for f in FORMATS.values() if f.dtype is not None})


def format_of(dtype: np.dtype[Any]) -> FloatFormat:
    """Return the format whose codes have `dtype`.

    Raises:
        KeyError: There is none.
    """
    return _BY_DTYPE[dtype.name]


def saturating_cast(x: NDArray[np.float32], dtype: np.dtype[Any]) -> Array:
    """Return `x` as codes of an 8-bit float, saturated; NaN is all ones, with its sign.

    ml_dtypes has another pattern for NaN in E5M2; ONNX Runtime has this one.
    """
    largest = format_of(dtype).largest
    codes = np.clip(x, -largest, largest).astype(dtype)
    # A maximum is NaN if any element is.
    if x.size and np.isnan(x.max()):
        nan = np.isnan(x)
        codes.view(np.uint8)[nan] = np.where(np.signbit(x[nan]), 0xFF, 0x7F)
    return codes


def ordinals(codes: Array) -> NDArray[np.int16]:
    """Return the places of 8-bit float codes in their order, both zeros at 0.

    >>> ordinals(np.array([-448, 0, 2**-9], FORMATS["e4m3fn"].dtype)).tolist()
    [-126, 0, 1]
    """
    patterns = codes.view(np.uint8).astype(np.int16)
    return np.where(patterns < 0x80, patterns, 0x80 - patterns).astype(np.int16)
