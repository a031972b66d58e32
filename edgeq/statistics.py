"""What calibration keeps of one value: O(1) memory, however many samples go by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgeq.buckets import BucketMeter, BucketStatistics
from edgeq.clip_ratio import ClipMeter
from edgeq.histogram import BLOCK, GrowingHistogram, Histogram

MAX_LEVELS = 1024
MOMENTUM = 0.1  # weight of the newest sample in the moving average of the extremes

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Levels:
    """All distinct values, where they are few: images, codes, masks.

    They may lie on rounding ties of the scale in question, which no histogram shows.

    Attributes:
        values: float32, ascending.
        counts: int64, how often each was seen.
    """

    values: NDArray[np.float32]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the samples showed of one value.

    The channel axis is 1, or 0 for values of rank 1; a scalar is one channel. Reals are float64.

    Attributes:
        count: How many elements were seen.
        low: Smallest of them.
        high: Largest of them.
        average_low: Moving average over samples of the smallest element.
        average_high: Moving average over samples of the largest element.
        histogram: All elements, in bins.
        levels: All distinct elements, exactly, when they are at most `MAX_LEVELS`; else None.
        channel_low: Smallest element per channel.
        channel_high: Largest element per channel.
        channel_mean: Mean per channel.
        channel_square: Mean square per channel.
        buckets: By the value of an integer input, where that was asked for.
        clipped: The range that clips a share of the elements, by the share, where asked for.
    """

    count: int
    low: float
    high: float
    average_low: float
    average_high: float
    histogram: Histogram
    levels: Levels | None
    channel_low: Float64
    channel_high: Float64
    channel_mean: Float64
    channel_square: Float64
    buckets: BucketStatistics | None = None
    clipped: Mapping[float, tuple[float, float]] = field(
        default_factory=lambda: MappingProxyType({})
    )


class Observer:
    """Builds the statistics of one value, sample by sample."""

    def __init__(self, buckets: int = 0, clip_ratios: Sequence[float] = ()) -> None:
        """Begin.

        Args:
            buckets: How many there are of an integer input; 0: none are kept.
            clip_ratios: Find the ranges that clip these shares.
        """
        self._histogram = GrowingHistogram()
        self._levels: Levels | None = Levels(np.zeros(0, np.float32), np.zeros(0, np.int64))
        self._count = 0
        self._average = (0.0, 0.0)
        self._channels: Channels | None = None
        self._buckets = BucketMeter(buckets) if buckets else None
        self._clips = ClipMeter(clip_ratios)

    def add(self, array: NDArray[np.float32], bucket: int | None = None) -> None:
        """Take in one sample's array of any shape; an empty one says nothing.

        Args:
            array: The value.
            bucket: Which one the sample is in, if it is in one.

        Raises:
            ValueError: An element is NaN or infinite.
        """
        if not array.size:
            return
        array = np.ascontiguousarray(array, np.float32)
        low, high = float(array.min()), float(array.max())  # NaN if any element is
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("NaN" if np.isnan(low) else "an infinity")
        if self._count == 0:
            self._average = (low, high)
        self._average = (
            self._average[0] + MOMENTUM * (low - self._average[0]),
            self._average[1] + MOMENTUM * (high - self._average[1]),
        )
        self._count += array.size
        self._histogram.add(array)
        self._clips.add(array, low, high)
        if self._levels is not None:
            self._levels = merge_levels(self._levels, array.reshape(-1))
        by_channel = channels_first(array)
        if self._channels is None:
            self._channels = Channels(by_channel.shape[0])
        self._channels.add(by_channel)
        if self._buckets is not None and bucket is not None:
            self._buckets.add(bucket, array, low, high)

    def result(self) -> Statistics:
        """Return the statistics so far; zeros where no element was seen."""
        if self._channels is None:
            nothing = np.zeros(1)
            view = self._histogram.view()
            zeros = (nothing, nothing, nothing, nothing)
            empty = self._clips.result()
            return Statistics(0, 0.0, 0.0, 0.0, 0.0, view, None, *zeros, clipped=empty)
        channels = self._channels
        return Statistics(
            count=self._count,
            low=float(channels.low.min()),
            high=float(channels.high.max()),
            average_low=self._average[0],
            average_high=self._average[1],
            histogram=self._histogram.view(),
            levels=self._levels,
            channel_low=channels.low.copy(),
            channel_high=channels.high.copy(),
            channel_mean=channels.total / channels.count,
            channel_square=channels.squares / channels.count,
            buckets=None if self._buckets is None else self._buckets.result(),
            clipped=self._clips.result(),
        )


class Channels:
    """Extremes and sums per channel."""

    def __init__(self, channels: int) -> None:
        self.count = 0  # elements per channel
        self.low = np.full(channels, np.inf)
        self.high = np.full(channels, -np.inf)
        self.total = np.zeros(channels)
        self.squares = np.zeros(channels)

    def add(self, blocks: NDArray[np.float32]) -> None:
        """Take in `(channels, outer, inner)` elements.

        Where the number of channels changes from sample to sample (axis 1 of a sequence is its
        length), there are no channels to tell apart: all become one.
        """
        if len(blocks) != len(self.low):
            self._join()
            blocks = blocks.reshape(1, 1, -1)
        self.count += blocks[0].size
        step = max(1, BLOCK // max(1, blocks[0].size))  # channels at once: small temporaries
        for start in range(0, len(blocks), step):
            part = slice(start, start + step)
            wide = blocks[part].astype(np.float64).reshape(len(blocks[part]), -1)
            np.minimum(self.low[part], wide.min(1), out=self.low[part])
            np.maximum(self.high[part], wide.max(1), out=self.high[part])
            self.total[part] += wide.sum(1)
            self.squares[part] += np.square(wide, out=wide).sum(1)

    def _join(self) -> None:
        self.count *= len(self.low)
        self.low = self.low.min(keepdims=True)
        self.high = self.high.max(keepdims=True)
        self.total = self.total.sum(keepdims=True)
        self.squares = self.squares.sum(keepdims=True)


def channels_first(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a view of `array` as (channels, outer, inner)."""
    if array.ndim < 2:
        return array.reshape(-1, 1, 1)
    return array.reshape(len(array), array.shape[1], -1).swapaxes(0, 1)


def merge_levels(known: Levels, flat: NDArray[np.float32]) -> Levels | None:
    """Return the distinct values of both with their counts; None when they are too many."""
    if len(np.unique(flat[: 4 * MAX_LEVELS])) > MAX_LEVELS:  # most values show it at once
        return None
    values, counts = np.unique(flat, return_counts=True)
    if len(values) > MAX_LEVELS:
        return None
    merged, places = np.unique(np.concatenate([known.values, values]), return_inverse=True)
    if len(merged) > MAX_LEVELS:
        return None
    totals = np.zeros(len(merged), np.int64)
    np.add.at(totals, places, np.concatenate([known.counts, counts]))
    return Levels(merged, totals)
