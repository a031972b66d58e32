"""Round up or down as a gradient says: every weight starts between its two codes and leans.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": with the
rectified sigmoid h(a) = clip(1.2 sigmoid(a) - 0.1, 0, 1) and v = below + h (above - below), Adam
makes

    error(v) + strength * sum(1 - |2 h - 1|**beta)       beta from 20 down to 2, behind a warm-up

small, here with the exact error of the layer over all samples in the place of batches of them.
"""

import numpy as np
from numpy.typing import NDArray

from edgeq.layer_rounding import LayerRounding

Float64 = NDArray[np.float64]
LOW, HIGH = -0.1, 1.1  # what the sigmoid is stretched to
RATE, STRENGTH, WARM_UP = 0.02, 0.1, 0.2
BETA = (20.0, 2.0)
MOMENTS = (0.9, 0.999)


def adaround(layer: LayerRounding, iterations: int) -> Float64:
    """Return bases, (groups, outputs, depth); each is a neighbour of its real weight."""
    units = layer.real / layer.step
    low, high = layer.weight.below(units), layer.weight.above(units)
    width = np.where(high > low, high - low, 1.0)
    share = np.clip((units - low) / width, 0.0, 1.0)
    start = np.clip((share - LOW) / (HIGH - LOW), 1e-3, 1 - 1e-3)
    lean = np.log(start / (1 - start))
    # In units of what rounding to nearest costs a weight, so that one strength fits all layers.
    unit = layer.error(layer.nearest(layer.real, layer.step)).mean() / layer.inputs.shape[-1]
    first, second = np.zeros_like(lean), np.zeros_like(lean)
    for turn in range(1, iterations + 1):
        sigmoid = 1 / (1 + np.exp(-lean))
        soft = np.clip(sigmoid * (HIGH - LOW) + LOW, 0.0, 1.0)
        open_ = (soft > 0) & (soft < 1)
        values = (low + soft * width) * layer.step
        slope = 2 * (values @ layer.inputs - layer.targets) * width * layer.step / max(unit, 1e-300)
        progress = (turn / iterations - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - progress)
            centre = 2 * soft - 1
            slope -= STRENGTH * 2 * beta * np.abs(centre) ** (beta - 1) * np.sign(centre)
        slope *= (HIGH - LOW) * sigmoid * (1 - sigmoid) * open_
        first = MOMENTS[0] * first + (1 - MOMENTS[0]) * slope
        second = MOMENTS[1] * second + (1 - MOMENTS[1]) * slope**2
        corrected = np.sqrt(second / (1 - MOMENTS[1] ** turn)) + 1e-8
        lean -= RATE * first / (1 - MOMENTS[0] ** turn) / corrected
    return np.asarray(np.where(lean >= 0, low + width * (high > low), low))
