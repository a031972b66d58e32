"""Observers: from what calibration saw, or from a weight, to the range that the codes cover.

- `minmax`: everything that was seen.
- `moving_average`: the extremes averaged over samples, the newest weighted by `MOMENTUM` (0.1).
- `percentile`: holds a share of all values; both ends give up the same number.
- `clip_ratio`: found while samples stream by, so that the share `clip_alpha / (2**bits - 1)` is
  clipped in a typical sample (`edgeq/clip_ratio.py`).
- `entropy`: the threshold that loses least information (Kullback-Leibler divergence, after
  S. Migacz, "8-bit Inference with TensorRT", GTC 2017).
- `mse`: the parameters with the least mean squared error.

With power-of-two scales all but `mse` take the smallest scale that covers their range.
"""

import numpy as np

from edgeq.clipping import least_error_range
from edgeq.entropy import entropy_threshold
from edgeq.histogram import Histogram
from edgeq.numerics.qtype import QType
from edgeq.recipe import QuantSpec
from edgeq.statistics import MOMENTUM as MOMENTUM
from edgeq.statistics import Observer as Observer
from edgeq.statistics import Statistics as Statistics
from edgeq.weight_range import choose_weight_range as choose_weight_range


def choose_range(statistics: Statistics, spec: QuantSpec, qtype: QType) -> tuple[float, float]:
    """Return the range that the observer of `spec` decides: low <= 0 <= high, finite.

    `choose_qparams` makes the parameters that the observer had in mind of it.
    """
    if spec.observer == "mse":
        return least_error_range(statistics, spec)
    low, high = _observed(statistics, spec, qtype)
    low, high = min(low, 0.0), max(high, 0.0)
    return covering_range(low, high, spec, qtype) if spec.scale == "power_of_two" else (low, high)


def _observed(statistics: Statistics, spec: QuantSpec, qtype: QType) -> tuple[float, float]:
    low, high = statistics.low, statistics.high
    if spec.observer == "moving_average":
        return statistics.average_low, statistics.average_high
    if spec.observer == "percentile":
        return percentile_range(statistics, spec.percentile)
    if spec.observer == "clip_ratio":
        return statistics.clipped[spec.clip_ratio(qtype.bits)]
    if spec.observer == "entropy":
        threshold = entropy_threshold(statistics.histogram, qtype)
        return max(low, -threshold), min(high, threshold)
    assert spec.observer == "minmax", f"no observer {spec.observer}"
    return low, high


def covering_range(low: float, high: float, spec: QuantSpec, qtype: QType) -> tuple[float, float]:
    """Return the range of the smallest power-of-two scale whose codes cover [low, high].

    A value half a step beyond the last code rounds to it and counts as covered.
    """
    if low == high:
        return low, high
    if spec.symmetric:
        end = max(-low, high)
        steps = min(qtype.qmax - (0 if qtype.signed else (qtype.qmax + 1) // 2), qtype.qmax)
        reach = steps * 2.0 ** _exponent_above(end / (steps + 0.5))
        return -reach, reach
    levels = qtype.qmax - qtype.qmin
    exponent = _exponent_above((high - low) / (levels + 1))
    while True:
        scale = 2.0**exponent
        # The even distances from qmin to real 0 that leave room for both ends.
        zero = 2 * int(np.ceil((-low / scale - 0.5) / 2))
        if zero + high / scale <= levels + 0.5:
            return -zero * scale, (levels - zero) * scale
        exponent += 1


def _exponent_above(scale: float) -> int:
    """Return the smallest k with `2**k >= scale`."""
    fraction, exponent = np.frexp(scale)
    return int(exponent) - int(fraction == 0.5)


def percentile_range(statistics: Statistics, share: float) -> tuple[float, float]:
    """Return a range that holds `share` percent of all values, to within a bin.

    Where all values have one sign, the other end is 0 and gives up none.
    """
    outside = 1 - share / 100
    if statistics.low < 0 < statistics.high:
        outside /= 2
    low = quantile(statistics.histogram, outside) if statistics.low < 0 else 0.0
    high = quantile(statistics.histogram, 1 - outside) if statistics.high > 0 else 0.0
    return max(low, statistics.low), min(high, statistics.high)


def quantile(histogram: Histogram, share: float) -> float:
    """Return the real below which `share` of all values lie, spread evenly in their bins."""
    counts, edges = histogram.counts.astype(np.float64), histogram.edges
    below = np.concatenate([[0.0], np.cumsum(counts)])
    # Zeros are a step at the edge 0: behind it they all lie below.
    behind = below + histogram.zeros * (edges >= 0)
    before = below + histogram.zeros * (edges > 0)
    reals = np.stack([edges, edges], axis=1).reshape(-1)
    shares = np.stack([before, behind], axis=1).reshape(-1)
    return float(np.interp(share * histogram.total, shares, reals))
