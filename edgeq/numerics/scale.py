"""Choose scale and zero point for a range of reals.

The range always holds 0, and 0 has a code of its own: padding, Relu and dead channels need it.

- float scale: `scale = (high - low) / levels`, `zero_point = round(qmin - low / scale)`.
- symmetric: `scale = max(-low, high) / limit`, the zero point in the middle;
  a 4-bit float always is.
- power of two: the exponent nearest to the float scale's, in the logarithm, and an even zero point
  (where a kernel adds it before rounding, an odd one moves ties): the even neighbour that clips
  less of the range. The range of such parameters gives the same parameters again, so whoever
  searches for the best ones hands them on as their range.

Scales lie in [2**-40, float32 max / levels]: no scale, and no product of two, is denormal
(Armv7 flushes those to zero), and every code stands for a finite real.
"""

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import FORMATS, QType

MIN_EXPONENT = -40
MAX_SCALE = float(np.finfo(np.float32).max)

Float64 = NDArray[np.float64]


class Format(Protocol):
    """What decides the form of the parameters; a recipe's `QuantSpec` is one."""

    @property
    def qtype(self) -> str:
        """Storage format, by name."""

    @property
    def symmetric(self) -> bool:
        """Whether real 0 sits in the middle of the codes."""

    @property
    def scale(self) -> str:
        """`float` or `power_of_two`."""


def choose_qparams(
    low: ArrayLike,
    high: ArrayLike,
    spec: Format,
    *,
    axis: int | None = None,
    limit: int | None = None,
) -> QParams:
    """Return the parameters that spread the codes over [low, high], stretched to hold 0.

    Args:
        low: Smallest real to represent, `()` or `(channels,)`; finite.
        high: Largest real, the shape of `low`.
        spec: Storage format, symmetry and kind of scale.
        axis: The channel axis of the parameters, when `low` has one entry per channel.
        limit: Largest magnitude of a symmetric code, counted from the zero point; None: what the
            format holds on both sides.
    """
    qtype = FORMATS[spec.qtype]
    bottom = np.minimum(np.asarray(low, np.float64), 0.0)
    top = np.maximum(np.asarray(high, np.float64), 0.0)
    exact = spec.scale == "power_of_two"
    if spec.symmetric or qtype.values is not None:
        middle = 0 if qtype.signed else (qtype.qmax + 1) // 2
        steps = min(qtype.qmax - middle, qtype.qmax if limit is None else qtype.within(limit)[1])
        scale = _scale(np.maximum(-bottom, top) / steps, qtype, exact)
        return QParams(qtype, scale, np.full(scale.shape, middle, np.int32), axis)
    scale = _scale((top - bottom) / (qtype.qmax - qtype.qmin), qtype, exact)
    choose = _even_zero_point if exact else _zero_point
    return QParams(qtype, scale, choose(bottom, top, scale.astype(np.float64), qtype), axis)


def _scale(ideal: Float64, qtype: QType, exact: bool) -> NDArray[np.float32]:
    """Return the float32 scale nearest to `ideal` within the limits."""
    largest = np.nextafter(np.float32(MAX_SCALE / (qtype.qmax - qtype.qmin)), np.float32(0))
    scale = np.clip(ideal, 2.0**MIN_EXPONENT, float(largest))
    if not exact:
        return np.asarray(scale, np.float32)
    _, highest = np.frexp(np.float64(largest))
    exponent = np.minimum(nearest_exponent(scale), highest - 1)
    return np.asarray(np.ldexp(np.float32(1), exponent), np.float32)


def nearest_exponent(scale: ArrayLike) -> NDArray[np.int32]:
    """Return the k for which 2**k is nearest to `scale` > 0 in the logarithm.

    >>> nearest_exponent([1.0, 1.41, 1.42, 0.25]).tolist()
    [0, 0, 1, -2]
    """
    fraction, exponent = np.frexp(np.asarray(scale, np.float64))  # fraction in [1/2, 1)
    return np.asarray(exponent - (fraction < np.sqrt(0.5)), np.int32)


def _zero_point(low: Float64, high: Float64, scale: Float64, qtype: QType) -> NDArray[np.int32]:
    return np.asarray(np.clip(np.rint(qtype.qmin - low / scale), qtype.qmin, qtype.qmax), np.int32)


def _even_zero_point(
    low: Float64, high: Float64, scale: Float64, qtype: QType
) -> NDArray[np.int32]:
    """Return the even code next to real 0's ideal one that clips less of [low, high]."""
    ideal = qtype.qmin - low / scale
    first = np.clip(2 * np.floor(ideal / 2), qtype.qmin, qtype.qmax - 1)
    second = np.minimum(first + 2, qtype.qmax - 1)  # qmin is even and qmax odd in every format
    losses = [
        np.maximum((qtype.qmin - z) * scale - low, 0)
        + np.maximum(high - (qtype.qmax - z) * scale, 0)
        for z in (first, second)
    ]
    nearer = np.abs(second - ideal) < np.abs(first - ideal)
    better = (losses[1] < losses[0]) | ((losses[1] == losses[0]) & nearer)
    return np.asarray(np.where(better, second, first), np.int32)
