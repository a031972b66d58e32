"""Softmax and LogSoftmax, computed in float64 and rounded once.

IEEE does not define exp, so no two runtimes agree on the last bit; exact forms for deployment are
made of other operators (GatherElements, ReduceSum, Div).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def softmax(x: Array, *, axis: int = -1) -> Array:
    """`exp(x) / sum(exp(x))` along one axis."""
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True), x.dtype)


def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """The logarithm of the softmax."""
    wide = x.astype(np.float64)
    wide -= wide.max(axis=axis, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=axis, keepdims=True)), x.dtype)
