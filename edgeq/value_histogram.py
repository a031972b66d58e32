"""How values of a tensor lie, in the float model and quantized, and where the codes end.

Bins are whole numbers of codes wide and their edges lie half-way between codes, so no bin is empty
because no code falls into it. They go on at the same width beyond the range, as far as values do.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeq.fidelity import PARTS, code_parts
from edgeq.histogram import Histogram
from edgeq.numerics.affine import QParams

BINS = 64  # within the range of the codes, at most
BEYOND = 32  # on either side of it, at most: values further out count in the last one

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ValueHistogram:
    """Values of one tensor on the calibration samples, in bins of equal width.

    Attributes:
        tensor: Its name in the float model.
        low: Lower edge of the first bin.
        width: Of a bin.
        real: Share of the float model's values in each bin, in percent.
        quantized: The same of what the codes stand for.
        clip_low: What the smallest code stands for; None where there are no codes.
        clip_high: What the largest code stands for.
        seen_low: The smallest value of the float model.
        seen_high: The largest.
        clipped: Share of its values that lie beyond `clip_low` and `clip_high` by more than half a
            step, in percent.
    """

    tensor: str
    low: float
    width: float
    real: tuple[float, ...]
    quantized: tuple[float, ...]
    clip_low: float | None
    clip_high: float | None
    seen_low: float
    seen_high: float
    clipped: float


def value_histogram(
    tensor: str,
    histogram: Histogram,
    seen: tuple[float, float],
    codes: NDArray[np.int64],
    qparams: QParams,
) -> ValueHistogram:
    """Return the histogram of a tensor.

    Args:
        tensor: Its name.
        histogram: Of the float model's values; at least one.
        seen: The smallest and the largest of them.
        codes: How often codes were seen, as `edgeq.fidelity.count_codes` counts them.
        qparams: Of the codes, per tensor.
    """
    qtype, scale, zero = qparams.qtype, float(qparams.scale), int(qparams.zero_point)
    levels = qtype.qmax - qtype.qmin + 1
    per_bin = max(1, levels // BINS)
    width, start = per_bin * scale, (qtype.qmin - zero - 0.5) * scale
    inside = -(-levels // per_bin)
    stop = start + levels * scale
    below = min(BEYOND, max(0, math.ceil((start - seen[0]) / width)))
    above = min(BEYOND, max(0, math.ceil((seen[1] - stop) / width)))
    edges = start + width * np.arange(-below, inside + above + 1, dtype=np.float64)
    real = histogram_shares(histogram, edges)
    ends = np.array([-np.inf, start if below else -np.inf, stop if above else np.inf, np.inf])
    outside = histogram_shares(histogram, ends)[[0, 2]].sum()
    return ValueHistogram(
        tensor=tensor,
        low=float(edges[0]),
        width=width,
        real=_rounded(real),
        quantized=_rounded(np.pad(_code_shares(codes, qparams, per_bin, inside), (below, above))),
        clip_low=(qtype.qmin - zero) * scale,
        clip_high=(qtype.qmax - zero) * scale,
        seen_low=seen[0],
        seen_high=seen[1],
        clipped=float(f"{outside:.6g}"),
    )


def float_histogram(
    tensor: str, left: Histogram, right: Histogram, seen: tuple[float, float]
) -> ValueHistogram:
    """Return the histogram of a tensor that both of two models hold in floats.

    Args:
        tensor: Its name.
        left: Of the first model's values; at least one.
        right: Of the second's, in the place of quantized ones.
        seen: The smallest and the largest of the first's.
    """
    low = min(float(left.edges[0]), float(right.edges[0]))
    high = max(float(left.edges[-1]), float(right.edges[-1]))
    edges = np.linspace(low, high, BINS + 1)
    return ValueHistogram(
        tensor=tensor,
        low=low,
        width=(high - low) / BINS,
        real=_rounded(histogram_shares(left, edges)),
        quantized=_rounded(histogram_shares(right, edges)),
        clip_low=None,
        clip_high=None,
        seen_low=seen[0],
        seen_high=seen[1],
        clipped=0.0,
    )


def histogram_shares(histogram: Histogram, edges: Float64) -> Float64:
    """Return the share in percent of all values between two edges, ascending, spread evenly.

    Values beyond the first and the last edge count in the bins beside them.
    """
    below = np.concatenate([[0], np.cumsum(histogram.counts)]).astype(np.float64)
    shares = np.interp(edges, histogram.edges, below) + histogram.zeros * (edges > 0)
    shares[0], shares[-1] = 0, histogram.total
    return np.asarray(100 * np.diff(shares) / histogram.total)


def _code_shares(codes: NDArray[np.int64], qparams: QParams, per_bin: int, bins: int) -> Float64:
    """Return the share in percent of the codes in each bin within their range."""
    first, size = code_parts(qparams.qtype.dtype)
    places = (first - qparams.qtype.qmin + size * np.arange(PARTS)) // per_bin
    found = np.zeros(bins)
    np.add.at(found, np.clip(places, 0, bins - 1), codes)
    return np.asarray(100 * found / max(1, codes.sum()))


def _rounded(shares: Float64) -> tuple[float, ...]:
    """Return six significant digits: more would be noise, and make reports long."""
    return tuple(float(f"{share:.6g}") for share in shares)
