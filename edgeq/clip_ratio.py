"""Clip a given share of all values, found as they stream by: two numbers for each end of a range.

The rule by which D. Kim et al. choose the interval of gradients ("Toward INT4 Fixed-Point Training
via Exploring Quantization Error for Gradients", ECCV 2024, 2407.12637): after each sample the end
moves a step outwards where more than the share `alpha / (2**bits - 1)` lay beyond it, else inwards.

Three things differ, because a calibration is short and a share of a small tensor is less than one
element:

- an end moves when the elements beyond it, summed over samples, are one too many or one too few;
- steps grow by 1.2 while their direction stays and halve when it turns (M. Riedmiller, H. Braun,
  "RPROP", 1993), down to the paper's 0.001 of the end;
- where values have both signs each end gives up half of the share.

Where samples differ in scale, this is the share of a typical sample, not of all values together: an
end rests where it clips too much in half of the samples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

FIRST_STEP, LEAST_STEP, LARGEST_STEP = 0.02, 0.001, 0.25
GROWTH, SHRINKING = 1.2, 0.5
SMALLEST = 0.001  # of the largest magnitude seen


class ClipMeter:
    """Follows the ranges that clip each of some shares of a value's elements."""

    def __init__(self, ratios: Sequence[float]) -> None:
        """Begin.

        Args:
            ratios: The shares to clip, each above 0 and below 1.
        """
        self._ends = {ratio: (_End(ratio), _End(ratio)) for ratio in ratios}
        self._low = self._high = 0.0

    def add(self, array: NDArray[np.float32], low: float, high: float) -> None:
        """Take in one sample's elements, `low` and `high` the extremes among them."""
        self._low, self._high = min(self._low, low), max(self._high, high)
        half = 0.5 if self._low < 0 < self._high else 1.0
        for below, above in self._ends.values():
            if self._low < 0:
                beyond = int(np.count_nonzero(array < np.float32(-below.place or low)))
                below.add(beyond, array.size * half, -low, -self._low)
            if self._high > 0:
                beyond = int(np.count_nonzero(array > np.float32(above.place or high)))
                above.add(beyond, array.size * half, high, self._high)

    def result(self) -> Mapping[float, tuple[float, float]]:
        """Return the range of each share: low <= 0 <= high."""
        return {ratio: (0.0 - low.place, high.place) for ratio, (low, high) in self._ends.items()}


class _End:
    """One end of a range, as a distance from 0; 0 before any element was on its side."""

    def __init__(self, ratio: float) -> None:
        self.place = 0.0
        self._ratio, self._step, self._outwards, self._excess = ratio, FIRST_STEP, False, 0.0

    def add(self, beyond: int, count: float, reach: float, largest: float) -> None:
        """Move, if enough is known.

        Args:
            beyond: How many elements of the sample lay beyond the end.
            count: How many elements of the sample this end answers for.
            reach: How far the sample's elements reach on this side.
            largest: How far those of all samples do.
        """
        if self.place == 0.0:
            self.place = max(reach, 0.0)
            return
        self._excess += beyond - self._ratio * count
        if abs(self._excess) < 1:
            return
        outwards, self._excess = self._excess > 0, 0.0
        self._step *= GROWTH if outwards == self._outwards else SHRINKING
        self._step, self._outwards = min(max(self._step, LEAST_STEP), LARGEST_STEP), outwards
        moved = self.place * (1 + self._step if outwards else 1 - self._step)
        self.place = min(max(moved, SMALLEST * largest), largest)
