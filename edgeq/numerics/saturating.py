"""Products of uint8 and int8 codes as x86 CPUs with AVX2 and without VNNI add them up.

`vpmaddubsw` multiplies bytes and adds neighbours in 16 bits, with saturation:

    acc = sum over pairs of clip(a[2i] * b[2i] + a[2i+1] * b[2i+1], -2**15, 2**15 - 1)

Codes are multiplied as they are; what zero points are worth is added afterwards, exactly.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = -(2**15), 2**15 - 1
LARGEST = 255


def lost_products(a: NDArray[np.uint8], b: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return what saturation adds to each element of the product `a @ b`.

    Args:
        a: uint8 `(rows, depth)`.
        b: int8 `(depth, columns)`.

    Returns:
        int64 `(rows, columns)`; zero where nothing saturates.
    """
    lost = np.zeros((len(a), b.shape[1]), np.int64)
    for first in range(0, len(b) - 1, 2):
        columns = np.flatnonzero(saturable(b[first], b[first + 1]))
        if not columns.size:
            continue
        pair = np.outer(a[:, first].astype(np.int32), b[first, columns].astype(np.int32))
        pair += np.outer(a[:, first + 1].astype(np.int32), b[first + 1, columns].astype(np.int32))
        lost[:, columns] += np.clip(pair, LOW, HIGH) - pair
    return lost


def saturable(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for which pairs of int8 weights some pair of uint8 codes saturates."""
    one, other = first.astype(np.int32), second.astype(np.int32)
    high = LARGEST * (np.maximum(one, 0) + np.maximum(other, 0))
    low = LARGEST * (np.minimum(one, 0) + np.minimum(other, 0))
    return np.asarray((high > HIGH) | (low < LOW))
