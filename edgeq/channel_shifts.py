"""Powers of two by channel: how many steps of the finest scale a channel's own step is.

They are chosen by vote (Lee et al. 2025, "DMQ: Dissecting Outliers of Diffusion Models for
Post-Training Quantization", power-of-two scaling): each sample votes, channel by channel, for the
scale among `s / 2**depth, ..., s / 2, s` with the least squared error; a channel takes what most
samples vote for if their share reaches the threshold, and keeps s otherwise. Samples of all
timesteps vote together: a static graph has one scale. Groups of channels are the other way
(`edgeq.channel_groups`).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import QParams

Float64 = NDArray[np.float64]
Shifts = NDArray[np.int32]
VOTERS = 64  # rows of one token each that vote together: one element has no error to compare


def as_samples(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows as (samples, channels, elements); tokens are gathered, `VOTERS` to a sample."""
    if x.ndim > 2:
        return x.reshape(*x.shape[:2], -1)
    count = max(1, len(x) // VOTERS)
    return x[: count * (len(x) // count)].reshape(count, -1, x.shape[1]).swapaxes(1, 2)


def held_out(count: int, together: int = 1) -> NDArray[np.bool_]:
    """Return which of `count` rows units are judged by: every third, or third block of rows.

    Units bring the largest values of many channels close to the ends of the range. What rows that
    were not seen have beyond them is cut off, and only such rows show what that costs.
    """
    together = max(1, min(together, count // 3))
    return np.asarray(np.arange(count) // together % 3 == 2)


def split(samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the samples to choose ranges by, and those to judge by; fewer than three are both."""
    apart = held_out(len(samples))
    return (samples[~apart], samples[apart]) if apart.any() else (samples, samples)


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
