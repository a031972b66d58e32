"""Fused multiply-add: `a * b + c` with one rounding, exactly, on a machine without it.

A float64 holds the product of two float32 exactly (24 + 24 bits). Its sum with `c` may not fit, and
rounding it to float64 and then to float32 would round twice. So the float64 sum is rounded to odd:
where bits were lost and the last bit is even, it moves one step towards the lost part. A number
rounded to odd with two or more spare bits rounds to float32 like the exact one (Boldo and
Melquiond, Emulation of a FMA and Correctly Rounded Sums, 2008).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> NDArray[np.float32]:
    """Return `round_to_float32(a * b + c)`, elementwise.

    Args:
        a: float32, or integers that float32 holds.
        b: The same; the shapes broadcast.
        c: The same.

    >>> float(fma(np.float32(1 + 2**-12), np.float32(1 - 2**-12), np.float32(-1))) == -(2.0**-24)
    True
    """
    x, y, z = (np.asarray(v, np.float32) for v in (a, b, c))
    product = np.multiply(x, y, dtype=np.float64)
    addend = z.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.atleast_1d(product + addend)
        # TwoSum (Knuth): total + lost == product + addend, exactly.
        part = total - product
        lost = (product - (total - part)) + (addend - part)
        bits = total.view(np.int64)
        even = (lost != 0) & np.isfinite(total) & ((bits & 1) == 0)
        if even.any():
            # One step away from zero is +1 on the bits of either sign.
            bits[even] += np.where((lost > 0) == (total > 0), 1, -1)[even]
        return total.astype(np.float32).reshape(np.broadcast_shapes(product.shape, addend.shape))
