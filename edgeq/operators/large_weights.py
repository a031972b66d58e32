"""Products with large constant weights, which stay codes and become floats a few columns at a time.

The sums are exact, so the bits do not depend on how a product is divided.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import along
from edgeq.numerics.magnitudes import pieces
from edgeq.qdq import Operand

HELD = 2**22  # elements; a float copy of smaller weights is held instead


def is_large(w: Operand) -> bool:
    """Whether `w` is a constant matrix that is not to be held as floats."""
    return w.array is not None and w.array.ndim == 2 and w.array.size > HELD


def multiply(x: NDArray[Any], w: Operand, *, transposed: bool) -> NDArray[Any]:
    """Return `x @ (w - zero_point)` in the dtype of `x`, in which every sum is exact.

    Args:
        x: `(..., K)`, float.
        w: Codes `(K, N)`, or `(N, K)` where transposed.
        transposed: Which of both.
    """
    codes = w.array
    assert codes is not None
    axis = 0 if transposed else 1
    product = np.empty((*x.shape[:-1], codes.shape[axis]), x.dtype)
    for piece in pieces(codes.shape, axis):
        part = codes[piece] if transposed else codes[:, piece]
        units = np.ascontiguousarray(part.T if transposed else part, x.dtype)
        if np.any(w.qparams.zero_point):
            # A matrix has its channels, if any, along the columns of the product.
            zero = along(w.qparams.of_channels(piece).zero_point, w.qparams.axis, 2)
            units -= (zero.T if transposed else zero).astype(x.dtype)
        product[..., piece] = np.matmul(x, units)
    return product
