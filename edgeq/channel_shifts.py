"""Powers of two by channel: how many steps of the finest scale a channel's own step is.

Two ways to choose them, from rows of what a layer reads:

- by vote (Lee et al. 2025, "DMQ: Dissecting Outliers of Diffusion Models for Post-Training
  Quantization", power-of-two scaling): each sample votes, channel by channel, for the scale among
  `s / 2**depth, ..., s / 2, s` with the least squared error; a channel takes what most samples
  vote for if their share reaches the threshold, and keeps s otherwise. Samples of all timesteps
  vote together: a static graph has one scale.
- by groups (Moon et al. 2024, "Instance-Aware Group Quantization for Vision Transformers"):
  channels are assigned to the group whose limits are nearest to their own,
  `(min - l)**2 + (max - u)**2` summed over instances, and a group's limits are the mean of its
  channels', in turn. The paper assigns for each instance at run time; here it is done once, and
  the scales of groups are rounded up to powers of two of the finest, so that one integer kernel
  serves them all.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import QParams

Float64 = NDArray[np.float64]
Shifts = NDArray[np.int32]
VOTERS = 64  # rows of one token each that vote together: one element has no error to compare
ROUNDS = 50


def as_samples(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows as (samples, channels, elements); tokens are gathered, `VOTERS` to a sample."""
    if x.ndim > 2:
        return x.reshape(*x.shape[:2], -1)
    count = max(1, len(x) // VOTERS)
    return x[: count * (len(x) // count)].reshape(count, -1, x.shape[1]).swapaxes(1, 2)


def voted_shifts(
    samples: NDArray[np.float32], qparams: QParams, *, depth: int, agreement: float
) -> Shifts:
    """Return the shift of each channel, from 0 to `depth`, that the samples agree on.

    Args:
        samples: (samples, channels, elements).
        qparams: Per tensor: what all channels have without shifts.
        depth: The finest scale is that of `qparams` over `2**depth`.
        agreement: The share of samples that must vote alike.
    """
    votes = np.stack([errors.argmin(0) for errors in _errors(samples, qparams, depth)])
    counts = np.stack([(votes == i).sum(0) for i in range(depth + 1)])
    # Coarse first: what does not matter keeps the range.
    winners = counts.argmax(0)
    agreed = counts.max(0) >= agreement * len(samples)
    return np.where(agreed, depth - winners, depth).astype(np.int32)


def _errors(samples: NDArray[np.float32], qparams: QParams, depth: int) -> Iterator[Float64]:
    """Yield for each sample the mean squared errors, (depth + 1, channels), coarse scale first."""
    for sample in samples:
        yield np.stack([channel_errors(sample[None], finer(qparams, i)) for i in range(depth + 1)])


def finer(qparams: QParams, steps: int) -> QParams:
    """Return the map with the scale over `2**steps` and the same zero point."""
    return QParams(qparams.qtype, np.ldexp(qparams.scale, -steps), qparams.zero_point)


def channel_errors(samples: NDArray[np.float32], qparams: QParams) -> Float64:
    """Return the mean squared error of rounding, (channels,); parameters per tensor or channel."""
    error = qparams.fake_quantize(samples).astype(np.float64) - samples
    return np.asarray(np.square(error, out=error).mean(axis=(0, 2)))


def grouped_shifts(
    samples: NDArray[np.float32], *, groups: int, depth: int, zero_share: float
) -> Shifts:
    """Return the shift of each channel by the group that it is assigned to.

    Args:
        samples: (samples, channels, elements).
        groups: How many there are at most.
        depth: The largest shift; groups of still larger range get it, too.
        zero_share: Where real 0 lies between the ends of the codes' range, from 0 to 1.
    """
    low, high = samples.min(2).astype(np.float64), samples.max(2).astype(np.float64)
    assigned = assign_groups(low, high, groups)
    # How far codes reach on both sides is in the proportion of the zero point, the same for all.
    reach = np.maximum(-low.min(0) / max(zero_share, 1e-3), high.max(0) / max(1 - zero_share, 1e-3))
    widths = np.array([reach[assigned == g].max(initial=0) for g in range(groups)])
    widest = widths.max(initial=0)
    if widest <= 0:
        return np.zeros(samples.shape[1], np.int32)
    with np.errstate(divide="ignore"):
        room = np.floor(np.log2(widest / np.maximum(widths, widest * 2.0**-depth)))
    return np.asarray(depth - np.minimum(room, depth), np.int32)[assigned]


def assign_groups(low: Float64, high: Float64, groups: int) -> NDArray[np.int64]:
    """Return the group of each channel, (channels,).

    Args:
        low: The least value of each channel on each instance, (instances, channels).
        high: The greatest.
        groups: How many groups there are; each begins at a quantile of the widths.
    """
    width = (high - low).mean(0)
    order = np.argsort(width, kind="stable")
    middles = ((np.arange(groups) + 0.5) * len(order) / groups).astype(int)
    chosen = order[middles]
    limits = np.stack([low.mean(0)[chosen], high.mean(0)[chosen]])
    assigned = np.zeros(len(order), np.int64)
    for _ in range(ROUNDS):
        distance = np.stack([((low - a) ** 2 + (high - b) ** 2).sum(0) for a, b in limits.T])
        new = distance.argmin(0)
        if np.array_equal(new, assigned):
            break
        assigned = new
        for g in range(groups):
            mine = assigned == g
            if mine.any():
                limits[:, g] = low[:, mine].mean(), high[:, mine].mean()
    return assigned
