"""Groups of channels with parameters of their own (instance-aware group quantization).

After Moon et al. 2024, "Instance-Aware Group Quantization for Vision Transformers". A channel
belongs to the group whose limits are nearest to its own,

    (min - l)**2 + (max - u)**2

and a group's limits are the means of those of its channels, in turn. The paper assigns channels
anew for each instance at run time; integer kernels would have to gather them. Here they are
assigned once, over all instances, and the scales of groups become powers of two of the finest: then
they are shifts of weight codes, and one kernel serves all groups (`shift-channels`). The form of
the paper is here for reference: `instance_errors` is what it would have left.

Rows of a softmax are groups of one token each without this: `fold-softmax-bias` gives every row a
scale of its own, exactly.
"""

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import QType

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
ROUNDS = 50


def learn_groups(
    samples: Float32, groups: int, *, by_instance: bool = False
) -> tuple[Float64, NDArray[np.int64]]:
    """Return the limits of each group, (groups, 2), and the group of each channel.

    Args:
        samples: (instances, channels, elements).
        groups: How many there are; they begin with channels at even quantiles of their widths.
        by_instance: Assign channels for each instance, as the paper does.

    Returns:
        Limits, and groups of shape (1, channels) or (instances, channels).
    """
    ends = np.stack([samples.min(2), samples.max(2)], axis=-1).astype(np.float64)
    first = ends.reshape(-1, 2) if by_instance else ends.mean(0)
    order = np.argsort(first[:, 1] - first[:, 0], kind="stable")
    limits = first[order[((np.arange(groups) + 0.5) * len(order) / groups).astype(int)]]
    assigned = assign(ends, limits, by_instance=by_instance)
    for _ in range(ROUNDS):
        members = np.broadcast_to(assigned, ends.shape[:2])
        for group in range(groups):
            mine = ends[members == group]
            if len(mine):
                limits[group] = mine.mean(0)
        again = assign(ends, limits, by_instance=by_instance)
        if np.array_equal(again, assigned):
            break
        assigned = again
    return limits, assigned


def assign(ends: Float64, limits: Float64, *, by_instance: bool) -> NDArray[np.int64]:
    """Return the nearest group of each channel, (1, channels) or (instances, channels).

    Args:
        ends: The least and the greatest element, (instances, channels, 2).
        limits: (groups, 2).
        by_instance: Whether each instance counts alone.
    """
    distance = np.stack([np.square(ends - limit).sum(-1) for limit in limits])
    if not by_instance:
        distance = distance.sum(1, keepdims=True)
    return np.asarray(distance.argmin(0), np.int64)


def grouped_shifts(
    samples: Float32, *, groups: int, depth: int, zero_share: float
) -> NDArray[np.int32]:
    """Return the shift of each channel, by what its group needs at most.

    Args:
        samples: (instances, channels, elements).
        groups: How many there are.
        depth: The largest shift.
        zero_share: Where real 0 lies between the ends of the codes' range, from 0 to 1: the zero
            point is the same for all channels.
    """
    assigned = learn_groups(samples, groups)[1][0]
    low, high = samples.min(axis=(0, 2)), samples.max(axis=(0, 2))
    reach = np.maximum(-low / max(zero_share, 1e-3), high / max(1 - zero_share, 1e-3))
    needed = np.array([reach[assigned == g].max(initial=0) for g in range(groups)], np.float64)
    widest = needed.max()
    if widest <= 0:
        return np.zeros(samples.shape[1], np.int32)
    room = np.floor(np.log2(widest / np.maximum(needed, widest * 2.0**-depth)))
    return np.asarray((depth - room)[assigned], np.int32)


def instance_errors(samples: Float32, limits: Float64, qtype: QType) -> Float64:
    """Return the mean squared error of each instance when its channels are assigned anew.

    Args:
        samples: (instances, channels, elements).
        limits: (groups, 2), from `learn_groups(..., by_instance=True)`.
        qtype: The format of the codes.
    """
    ends = np.stack([samples.min(2), samples.max(2)], axis=-1).astype(np.float64)
    assigned = assign(ends, limits, by_instance=True)
    low, high = np.minimum(limits[:, 0], 0), np.maximum(limits[:, 1], 0)
    scale = np.maximum((high - low) / (qtype.qmax - qtype.qmin), np.finfo(np.float32).tiny)
    zero = np.clip(np.rint(qtype.qmin - low / scale), qtype.qmin, qtype.qmax)
    errors = []
    for sample, members in zip(samples, assigned, strict=True):
        qparams = QParams(
            qtype, scale[members].astype(np.float32), zero[members].astype(np.int32), 0
        )
        error = qparams.fake_quantize(sample).astype(np.float64) - sample
        errors.append(np.square(error).mean())
    return np.array(errors)
