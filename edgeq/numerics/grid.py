"""The codes next to real numbers of steps, for formats of integers and for 4-bit floats.

`units` are reals in steps of a format: `w / scale`. Codes come back as integral floats of the dtype
of `units`, within [lowest, highest] of the format, or those within a smaller `limit`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.qtype import QType

Units = NDArray[Any]


def nearest(units: Units, qtype: QType, limit: int | None = None) -> Units:
    """Return the nearest codes; ties go to the even one.

    Of a 4-bit float that is the one whose mantissa, or else exponent, ends in 0, as IEEE rounds:
    the neighbours 6 and 8 of the E2M1 tie 7 are the patterns 101 and 110, so 7 becomes 8.
    NaN stays NaN.
    """
    low, high = _ends(qtype, limit)
    if qtype.values is None:
        return np.asarray(np.clip(np.rint(units), low, high))
    magnitudes = _magnitudes(qtype, units.dtype)
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    size = np.abs(units)
    first, last = (np.searchsorted(middles, size, side) for side in ("left", "right"))
    places = np.where(first % 2 == 0, first, last)
    codes = np.copysign(magnitudes[places], units)
    codes[np.isnan(units)] = np.nan
    return np.asarray(np.clip(codes, low, high))


def below(units: Units, qtype: QType, limit: int | None = None) -> Units:
    """Return the largest codes that are at most `units`; the lowest code where there is none."""
    low, high = _ends(qtype, limit)
    if qtype.values is None:
        return np.asarray(np.clip(np.floor(units), low, high))
    values = np.array(qtype.values, units.dtype)
    places = np.searchsorted(values, units, "right") - 1
    return np.asarray(np.clip(values[np.maximum(places, 0)], low, high))


def above(units: Units, qtype: QType, limit: int | None = None) -> Units:
    """Return the smallest codes greater than `units`; the highest code where there is none."""
    low, high = _ends(qtype, limit)
    if qtype.values is None:
        return np.asarray(np.clip(np.floor(units) + 1, low, high))
    values = np.array(qtype.values, units.dtype)
    places = np.searchsorted(values, units, "right")
    return np.asarray(np.clip(values[np.minimum(places, len(values) - 1)], low, high))


def _ends(qtype: QType, limit: int | None) -> tuple[int, int]:
    return (qtype.qmin, qtype.qmax) if limit is None else qtype.within(limit)


def _magnitudes(qtype: QType, dtype: np.dtype[Any]) -> Units:
    """Return the codes from 0 on, which stand in the order of their bit patterns."""
    return np.array([value for value in qtype.values or () if value >= 0], dtype)
