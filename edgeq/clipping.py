"""The range whose quantization parameters lose least: the MSE observer.

The error is that of the parameters that `choose_qparams` makes of a range, with saturation and the
rounded zero point; not that of an ideal uniform quantizer. Within a histogram's bin the values are
taken as spread evenly, and the squared error is integrated exactly: that covers bins narrower than
a step, bins that span many, and bins that saturation cuts.
"""

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import QParams, quantize
from edgeq.numerics.qtype import FORMATS, QType
from edgeq.numerics.scale import Format, choose_qparams, nearest_exponent
from edgeq.statistics import Levels, Statistics

Float64 = NDArray[np.float64]
Ranges = tuple[Float64, Float64]

SHRINKS: Float64 = np.power(
    0.95, np.arange(54.0)
)  # coarse: an end shrinks to 1/16 of what was seen
REFINEMENTS = (0.0125, 0.003)  # relative steps around the best so far
REACH = 4  # steps to each side
EXPONENTS = 5  # powers of two tried, from the one that covers everything downwards
BLOCK = 2**21  # elements of a block of candidates times bins
ROWS = 2**17  # elements of a block of candidates times values: it stays in a cache


def least_error_range(statistics: Statistics, spec: Format) -> tuple[float, float]:
    """Return the range with the smallest mean squared error."""
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if low == high:
        return low, high
    if spec.scale == "power_of_two" and not spec.symmetric:
        ranges = power_of_two_ranges(low, high, FORMATS[spec.qtype])
        return _best(ranges, statistics, spec)
    if spec.scale == "power_of_two":
        ends = np.ldexp(max(-low, high), 1 - np.arange(EXPONENTS))
        return _best((-ends, ends), statistics, spec)
    best = _best(_grid(low * SHRINKS, high * SHRINKS), statistics, spec)
    for step in REFINEMENTS:
        around = 1 + step * np.arange(-REACH, REACH + 1)
        lows, highs = np.maximum(best[0] * around, low), np.minimum(best[1] * around, high)
        best = _best(_grid(lows, highs), statistics, spec)
    return best


def power_of_two_ranges(low: float, high: float, qtype: QType) -> Ranges:
    """Return the ranges of the parameters that may fit [low, high] best, widest scale first.

    Each reproduces its parameters exactly: 2**k times the codes around an even zero point.
    """
    levels = qtype.qmax - qtype.qmin
    top = int(nearest_exponent((high - low) / levels)) + 1
    lows, highs = [], []
    for exponent in range(top, top - EXPONENTS, -1):
        scale = 2.0**exponent
        # The codes from qmin to real 0 that keep the lower end, and the upper; all between them.
        ends = sorted((-low / scale, levels - high / scale))
        first, last = (2 * (int(min(max(end, 0), levels)) // 2) for end in ends)
        zeros = np.arange(max(first - 2, 0), min(last + 2, levels - 1) + 1, 2, dtype=np.float64)
        lows.append(-zeros * scale)
        highs.append((levels - zeros) * scale)
    return np.concatenate(lows), np.concatenate(highs)


def _grid(lows: Float64, highs: Float64) -> Ranges:
    """Return all pairs, the widest first: it stays where none is better."""
    lows, highs = np.unique(lows), np.unique(highs)[::-1]
    first, second = np.meshgrid(lows, highs, indexing="ij")
    return first.reshape(-1), second.reshape(-1)


def _best(ranges: Ranges, statistics: Statistics, spec: Format) -> tuple[float, float]:
    """Return the range with the least error; the first of equals."""
    qparams = choose_qparams(*ranges, spec, axis=0)
    place = int(np.argmin(squared_errors(statistics, qparams)))
    return float(ranges[0][place]), float(ranges[1][place])


def squared_errors(statistics: Statistics, qparams: QParams) -> Float64:
    """Return the sum of squared errors under each of many parameters.

    Args:
        statistics: What calibration saw.
        qparams: One scale and zero point per candidate, `(candidates,)`.
    """
    if statistics.levels is not None:
        return _exact_errors(statistics.levels, qparams)
    histogram = statistics.histogram
    used = np.flatnonzero(histogram.counts)
    counts = histogram.counts[used].astype(np.float64)
    scale = qparams.scale.astype(np.float64)
    first = (qparams.qtype.qmin - qparams.zero_point).astype(np.float64)
    last = (qparams.qtype.qmax - qparams.zero_point).astype(np.float64)
    errors = np.empty(len(scale))
    rows = max(1, BLOCK // max(len(used), 1))
    for start in range(0, len(scale), rows):
        part = slice(start, start + rows)
        s, a, b = (array[part, None] for array in (scale, first, last))
        inside = _integral(histogram.edges[used + 1] / s, a, b)
        inside -= _integral(histogram.edges[used] / s, a, b)
        # Over a bin of `width / s` steps, in squared steps.
        sums = np.einsum("ij,j->i", inside, counts)  # no BLAS: its sums depend on its threads
        errors[part] = sums * scale[part] ** 3 / histogram.width
    return errors


def _integral(x: Float64, first: Float64, last: Float64) -> Float64:
    """Return an antiderivative of `(x - clip(round(x), first, last))**2`.

    Within the cell of the code k it is `(x - k)**3 / 3`, plus 1/12 for every cell passed.
    """
    code = np.rint(x)
    np.clip(code, first, last, out=code)
    rest = x - code
    return rest * rest * rest / 3 + code / 12


def _exact_errors(levels: Levels, qparams: QParams) -> Float64:
    """Do the same for values that are all known, with the arithmetic of the device."""
    errors = np.empty(len(qparams.scale))
    values, exact = levels.values, levels.values.astype(np.float64)
    rows = max(1, ROWS // len(values))
    for start in range(0, len(errors), rows):
        part = slice(start, start + rows)
        scale, zero = qparams.scale[part], qparams.zero_point[part]
        codes = quantize(values[None, :], scale, zero, qparams.qtype, axis=0).astype(np.float64)
        codes -= zero[:, None]
        codes *= scale[:, None].astype(np.float64)
        codes -= exact
        errors[part] = (codes * codes * levels.counts).sum(axis=1)
    return errors
