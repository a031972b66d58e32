"""Integers near given reals whose magnitudes add up to a bounded sum.

The Euclidean projection onto an l1 ball shrinks every magnitude by one amount, down to 0 (J. Duchi
et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008). The
nearest integers in the ball are those nearest to the reals shrunk so: rounding decides how much is
enough, so that nothing is lost to rounding towards zero afterwards, and the sum is one of integers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Codes = NDArray[Any]
HALVINGS = 30


def shrink(rows: Float32, amount: NDArray[np.float64]) -> Float32:
    """Return `rows`, (rows, n), each magnitude less by `amount`, (rows,), but not below 0."""
    magnitude = np.maximum(np.abs(rows) - amount[:, None].astype(np.float32), np.float32(0))
    return np.asarray(np.copysign(magnitude, rows), np.float32)


def project(
    rows: Float32, budget: NDArray[np.int64], round_to_codes: Callable[[Float32], Codes]
) -> Codes:
    """Return the codes of `rows` shrunk as little as brings their sum of magnitudes in the budget.

    Args:
        rows: Reals in steps of a code, `(rows, n)`.
        budget: The largest sum of each row, `(rows,)`, at least 0.
        round_to_codes: Rounds `(rows, n)`; monotone, and 0 to 0.

    >>> project(np.float32([[5.4, -3.2, 0.6]]), np.array([7]), np.rint)
    array([[ 5., -2.,  0.]], dtype=float32)
    """
    low, high = np.zeros(len(rows)), np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    codes = round_to_codes(rows)
    fits = _fits(codes, budget)
    if fits.all():
        return codes
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = _fits(round_to_codes(shrink(rows, middle)), budget)
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    enough = np.where(_fits(codes, budget), 0.0, high)
    found = round_to_codes(shrink(rows, enough))
    assert _fits(found, budget).all(), "shrunk to 0, everything fits"
    return found


def _fits(codes: Codes, budget: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(codes.astype(np.int64)).sum(axis=1) <= budget)
