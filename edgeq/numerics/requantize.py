"""From an integer accumulator to a narrow code: one float32 multiply.

`q = saturate(round_half_even(float32(acc) * multiplier) + zero_point)`. One float32 multiply is the
same on every IEEE machine, so any scale is portable.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import Codes, Float32, along, saturate, saturate_in_place
from edgeq.numerics.qtype import QType


def multiplier(scale_x: Float32, scale_w: Float32, scale_y: Float32) -> Float32:
    """Return `float32(float32(scale_x * scale_w) / scale_y)`, per tensor or per channel."""
    product = np.asarray(scale_x, np.float32) * np.asarray(scale_w, np.float32)
    return np.asarray(product / np.asarray(scale_y, np.float32), np.float32)


def requantize(
    acc: NDArray[Any],
    multiplier: Float32,
    zero_point: NDArray[Any],
    qtype: QType,
    axis: int | None = None,
) -> Codes:
    """Return `saturate(round_half_even(float32(acc) * multiplier) + zero_point)`.

    Args:
        acc: Exact integers, as any integer or float dtype that holds them; beyond 2**24 they are
            rounded to float32 first, which is part of the definition.
        multiplier: float32, `()` or `(channels,)`.
        zero_point: Per tensor.
        qtype: Format of the result.
        axis: Channel axis, when `multiplier` is per channel.
    """
    real = acc.astype(np.float32)
    real *= along(np.asarray(multiplier, np.float32), axis, acc.ndim)
    np.rint(real, out=real)
    if qtype.bits > 16:
        return saturate(real, np.asarray(zero_point), qtype)
    return saturate_in_place(real, np.asarray(zero_point), qtype)


def requantize_in_place(
    acc: NDArray[Any], multiplier: Float32, zero_point: int, qtype: QType
) -> Float32:
    """Do the same as `requantize`, for formats of 8 bits, and return the codes held in float32.

    Args:
        acc: Exact integers held in float32, which then become the result, or float64.
        multiplier: float32, broadcastable to `acc`.
        zero_point: Per tensor.
        qtype: Format of the result, to which the caller casts it.
    """
    real: Float32 = acc.astype(np.float32, copy=False)
    real *= multiplier
    np.rint(real, out=real)
    low, high = np.float32(qtype.qmin - zero_point), np.float32(qtype.qmax - zero_point)
    np.clip(real, low, high, out=real)
    if zero_point:
        real += np.float32(zero_point)
    return real
