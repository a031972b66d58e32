"""From an integer accumulator to a narrow code: one float32 multiply.

`q = saturate(round_half_even(float32(acc) * multiplier) + zero_point)`. One float32 multiply is the
same on every IEEE machine, so any scale is portable.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import Codes, Float32, along, saturate, saturate_in_place
from edgeq.numerics.qtype import QType

_BLOCK = 1 << 16  # elements: 256 kB of float32, half of a usual L2 cache


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


def requantize_rows(
    acc: NDArray[Any], multiplier: Float32, zero_point: int, qtype: QType, out: Codes
) -> None:
    """Requantize `acc` `(rows, columns)` into `out`, in blocks that stay in the cache.

    `acc` is destroyed if it is float32.

    Args:
        acc: Exact integers held in float32 or float64.
        multiplier: float32, `(rows, 1)`, `(1, columns)` or `(1, 1)`.
        zero_point: Per tensor.
        qtype: An 8-bit format.
        out: Codes, the shape of `acc`.
    """
    step = max(1, _BLOCK // max(1, acc.shape[1]))
    per_row = len(multiplier) > 1
    for start in range(0, len(acc), step):
        rows = slice(start, start + step)
        real = acc[rows].astype(np.float32, copy=False)
        real *= multiplier[rows] if per_row else multiplier
        np.rint(real, out=real)
        np.clip(
            real,
            np.float32(qtype.qmin - zero_point),
            np.float32(qtype.qmax - zero_point),
            out=real,
        )
        if zero_point:
            real += np.float32(zero_point)
        np.copyto(out[rows], real, casting="unsafe")
