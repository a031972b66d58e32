"""Exponentials of codes that every CPU rounds to the same integers.

IEEE does not define exp, and CPUs differ in its last bits. But of 256 indices i there are 256
results of `round(exp((i - zero_point) * step))`, and a step can be chosen so that none is near a
tie: then the operators Exp and Round give the same integers everywhere, faster than any table.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# No float32 exp errs by so much of its value: ONNX Runtime's by 2**-23.6 (measured: 20 million
# arguments on x86 with AVX-512, 400,000 on AVX2 and on Arm with and without dot product, emulated),
# textbook ones by a few units in the last place, 2**-22 and so on.
EXP_ERROR = 2.0**-18
_FIRST = 0.743  # the first term is exp(-0.743) or less: it rounds to 0
_FINER, _TRIES = 2.0**-18, 2**12  # from one step that is tried to the next, and how many


@dataclass(frozen=True)
class Exponentials:
    """The terms `round(exp((i - zero_point) * step))` of i = 0 .. count - 1.

    Attributes:
        step: Of a DequantizeLinear of i, float32.
        zero_point: Of the same.
        highest: The last term; the first is 0.
        count: How many there are.
    """

    step: float
    zero_point: int
    highest: int
    count: int


def margins(step: float, zero_point: int, count: int = 256) -> NDArray[np.float64]:
    """Return how much further each result is from a tie than any CPU may err; negative: nearer.

    >>> margins(1.0, 0, 2) > 0
    array([ True,  True])
    """
    reals = (np.arange(count) - zero_point).astype(np.float32) * np.float32(step)
    with np.errstate(over="ignore"):
        results = np.exp(reals.astype(np.float64))
        return np.abs(results - np.floor(results) - 0.5) - EXP_ERROR * results


@lru_cache
def certain_exponentials(highest: int, count: int = 256) -> Exponentials:
    """Return `count` terms of at most `highest`, with the first step that is certain.

    The more there are, and the larger, the fewer steps are: 1024 terms of up to 8191, 256 of up to
    16383 have some.

    >>> certain_exponentials(16383)
    Exponentials(step=0.040967218577861786, zero_point=19, highest=15808, count=256)
    """
    coarsest = (np.log(highest) + _FIRST) / (count - 1)
    for number in range(_TRIES):
        step = float(np.float32(coarsest * (1 - number * _FINER)))
        zero_point = int(np.ceil(_FIRST / step))
        last = int(np.rint(np.exp((count - 1 - zero_point) * step)))
        if last <= highest and margins(step, zero_point, count).min() > 0:
            return Exponentials(step, zero_point, last, count)
    raise AssertionError(f"no step is certain for {count} terms of up to {highest}")
