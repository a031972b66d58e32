"""The clipping threshold that keeps most information, by Kullback-Leibler divergence.

S. Migacz, "8-bit Inference with TensorRT" (GTC 2017): clip the distribution of |x| at a threshold,
merge what is left into as many levels as there are codes, and compare both.
"""

import numpy as np
from numpy.typing import NDArray

from edgeq.histogram import Histogram
from edgeq.numerics.qtype import QType

CANDIDATES = 128


def entropy_threshold(histogram: Histogram, qtype: QType) -> float:
    """Return the threshold on |x| with the least divergence; the largest of equals."""
    counts = magnitudes(histogram)
    two_sided = histogram.edges[0] < 0 < histogram.edges[-1]
    levels = (qtype.qmax - qtype.qmin + 1) // (2 if two_sided else 1)
    bins = len(counts)
    if bins <= levels:
        return bins * histogram.width
    ends = np.unique(np.linspace(levels, bins, CANDIDATES).astype(int))[::-1]
    losses = [_divergence(counts, int(end), levels) for end in ends]
    return float(ends[int(np.argmin(losses))] * histogram.width)


def magnitudes(histogram: Histogram) -> NDArray[np.float64]:
    """Return the counts of |x| per bin; zeros, which any threshold keeps exact, left out."""
    middle = int(np.searchsorted(histogram.edges, 0.0))  # 0 is an edge
    positive, negative = histogram.counts[middle:], histogram.counts[:middle][::-1]
    counts = np.zeros(max(len(positive), len(negative)))
    counts[: len(positive)] += positive
    counts[: len(negative)] += negative
    return counts


def _divergence(counts: NDArray[np.float64], end: int, levels: int) -> float:
    """Return KL(clipped || merged) for the first `end` bins merged into `levels`."""
    kept = counts[:end]
    clipped = kept.copy()
    clipped[-1] += counts[end:].sum()
    level = np.arange(end) * levels // end
    present = kept > 0
    sums = np.bincount(level, weights=kept, minlength=levels)
    members = np.bincount(level, weights=present, minlength=levels)
    merged = np.where(present, sums[level] / np.maximum(members[level], 1), 0.0)
    used = clipped > 0
    if not used.any() or not merged.any():
        return np.inf
    p, q = clipped[used] / clipped.sum(), merged[used] / merged.sum()
    # Outliers may land in a bin that was empty: nothing is likelier than a guess there.
    q = np.maximum(q, np.finfo(np.float64).eps)
    return float((p * np.log(p / q)).sum())
