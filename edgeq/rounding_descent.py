"""Round by coordinate descent: every weight in turn takes the code that is best for the others.

The error of one output is a parabola in each of its weights, so the best code is the one nearest to
its vertex, on any grid; the error never grows, and the sweeps end when no code changes (Behdin et
al. 2023, "QuantEase: Optimization-based Quantization for Language Models").
"""

import numpy as np
from numpy.typing import NDArray

from edgeq.layer_rounding import LayerRounding

Float64 = NDArray[np.float64]
BLOCK = 64  # columns whose changes are added to the rest of the gradient in one product
SWEEPS = 50


def descend(layer: LayerRounding, base: Float64, sweeps: int = SWEEPS) -> Float64:
    """Return bases with an error no larger than that of `base`.

    Args:
        layer: What to round.
        base: (groups, outputs, depth).
        sweeps: At most so many times over all weights.
    """
    h, step, base = layer.inputs, layer.step, base.copy()
    diagonal = np.diagonal(h, axis1=1, axis2=2)[:, None, :]
    gradient = (base * step) @ h - layer.targets
    for _ in range(sweeps):
        moved = 0.0
        for start in range(0, base.shape[-1], BLOCK):
            block = slice(start, min(start + BLOCK, base.shape[-1]))
            near, own = gradient[..., block].copy(), h[:, block, block]
            old = base[..., block].copy()
            for k in range(near.shape[-1]):
                at, curve, g = start + k, diagonal[..., start + k], near[..., k]
                best = layer.nearest(base[..., at] * step[..., at] - g / curve, step[..., at])
                delta = (best - base[..., at]) * step[..., at]
                worth = delta * (2 * g + delta * curve) < 0  # at a tie it stays
                delta = np.where(worth, delta, 0.0)
                base[..., at] = np.where(worth, best, base[..., at])
                near += delta[..., None] * own[:, None, k]
            change = (base[..., block] - old) * step[..., block]
            if change.any():
                moved += np.count_nonzero(change)
                gradient += change @ h[:, block]
        if not moved:
            break
    return base
