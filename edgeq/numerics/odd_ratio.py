"""Scales that leave no rounding ties, so that every CPU's fused kernel rounds alike.

Fused Add, Mul and pools differ between CPUs only where a result lies on, or within about 1e-4 of, a
rounding tie `k + 1/2`. Scales can be chosen so that none does.

**Add.** Let `sa = base * ma`, `sb = base * mb`, `sy = base * my`, with integers and `my` odd. Then
`v = (ma * A + mb * B) / my` for integers `A = a - za`, `B = b - zb`, and `v = k + 1/2` would mean
`2 * (ma * A + mb * B) = my * (2 * k + 1)`: an even number equal to an odd one. So no result is a
tie, and the nearest tie is at least `1 / (2 * my)` away, whatever the zero points.

How far may a CPU err? With `u = 2**-24` (one float32 rounding), 8-bit codes and
`R = (ma + mb) / my`, counting every rounding of each formula (those of the scales included) times
the largest magnitude it can act on gives at most `255 * u * (3 + 10 * R)` for x86 without FMA, less
with it, `255 * u * (2 + 6 * R)` for the definition, and `255 * u * (11.1 * R)` for Arm (a 22-bit
multiplier errs by half a unit in its last place). All stay below `1 / (2 * my)` while

    3 * my + 12 * (ma + mb) <= 2**15                                             (`add_is_safe`)

so three multiples of up to 1213 are always safe. Measured: no pair of codes differs on any CPU
within the bound; beyond it the first ones did at (ma + mb) / my near 20 and my above 1023; with all
three alike, none in a dozen triples up to 8191.

**Mul and pools.** There `v = S * p / q` for one integer `S` and one fraction: `p / q` is
`sa * sb / sy` for Mul, `sx / (sy * count)` for pools. If `q` is odd, no `v` is a tie and the
nearest is `1 / (2 * q)` away. Results are not differences of large terms, so the error where
nothing saturates is at most `256 * u * 8 = 2**-13`, whatever `p`: safe while `q <= 4095`.

A network whose activations all have odd multiples of one base has both an odd output in every Add
and, since products and quotients of odd numbers are odd, in every Mul by such a scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ADD_LIMIT = 1213  # three multiples of up to this are safe in any Add
FRACTION_LIMIT = 4095  # largest safe odd denominator of Mul and pools


@dataclass(frozen=True, eq=False)
class OddMultiples:
    """Scales replaced by odd multiples of one base.

    Attributes:
        base: The base; a float32 with as few bits as make every multiple of it exact.
        multiples: The odd multiples, in the order of the scales asked for.
        scales: float32, `base * multiples`, exact.
        relative_error: Largest `|scale / asked - 1|`.
    """

    base: float
    multiples: tuple[int, ...]
    scales: NDArray[np.float32]
    relative_error: float


def odd_multiples(scales: Sequence[float], limit: int = ADD_LIMIT) -> OddMultiples:
    """Return the odd multiples of one base that are closest to `scales`.

    Of all bases for which no multiple exceeds `limit`, one with the smallest largest relative error
    is returned (searched over the multiples of the largest scale). A scale `k` times smaller than
    the largest has an error of up to about `k / limit`; beyond `k = limit` there is no good answer,
    which `relative_error` shows.

    Args:
        scales: Positive and finite.
        limit: Largest multiple.

    >>> found = odd_multiples([0.1, 0.2, 0.3], limit=7)
    >>> found.multiples, round(found.relative_error, 3)
    ((3, 5, 7), 0.125)
    """
    asked = np.asarray(scales, np.float64)
    assert asked.size and np.all(asked > 0) and np.all(np.isfinite(asked)), "scales are positive"
    assert limit >= 1
    largest = np.arange(1, limit + 1, 2)
    ideal = asked[None, :] * (largest[:, None] / asked.max())
    multiples = np.minimum(2 * np.floor(ideal / 2) + 1, limit - (limit + 1) % 2)
    ratio = multiples / ideal
    low, high = ratio.min(1), ratio.max(1)
    # Scaling the base by the middle of the ratios makes both ends err alike.
    error = (high - low) / (high + low)
    best = int(np.argmin(error))
    chosen = multiples[best].astype(np.int64)
    base = asked.max() / largest[best] * 2 / (high[best] + low[best])
    base = _with_bits(base, 24 - int(chosen.max()).bit_length())
    exact = (base * chosen).astype(np.float32)
    assert np.array_equal(exact.astype(np.float64), base * chosen)
    found = float(np.max(np.abs(exact / asked - 1)))
    return OddMultiples(base, tuple(int(m) for m in chosen), exact, found)


def odd_fraction(
    value: float, limit: int = FRACTION_LIMIT, numerator_multiple: int = 1
) -> tuple[int, int]:
    """Return `(p, q)`, `q` odd and at most `limit`, with `p / q` closest to `value`.

    Args:
        value: Positive: the multiplier of a Mul, or `sx / (sy * count)` of a pool.
        limit: Largest denominator.
        numerator_multiple: `p` is a multiple of this. For a pool whose windows at the borders have
            other counts, pass the largest power of two that divides one of them: then every
            window's fraction has an odd denominator.

    >>> odd_fraction(0.25, limit=99)
    (25, 99)
    """
    assert value > 0 and limit >= 1
    q = np.arange(1, limit + 1, 2)
    steps = np.maximum(np.rint(value * q / numerator_multiple), 1)
    best = int(np.argmin(np.abs(steps * numerator_multiple / (value * q) - 1)))
    return int(steps[best]) * numerator_multiple, int(q[best])


def add_is_safe(ma: int, mb: int, my: int) -> bool:
    """Whether Add with scales of these multiples rounds alike on every CPU, by the theorem above.

    The scales are float32 values within one rounding of `base * m`.

    >>> add_is_safe(1213, 1213, 1213), add_is_safe(3, 5, 6), add_is_safe(2, 4, 7)
    (True, False, True)
    """
    return my % 2 == 1 and min(ma, mb) >= 1 and 3 * my + 12 * (ma + mb) <= 2**15


def _with_bits(value: float, bits: int) -> float:
    """Round `value` to a significand of `bits` bits."""
    fraction, exponent = np.frexp(value)
    return float(np.ldexp(np.rint(fraction * 2.0**bits) / 2.0**bits, exponent))
