"""Round column by column; the columns that follow take back the error of those before.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1, with the columns in the order of falling diag(H): with U the upper
Cholesky factor of H^-1, H^-1 = U^T U, rounding column k by e changes each later column j by
-e U[k, j] / U[k, k], which is the best answer to it.
"""

import numpy as np
from numpy.typing import NDArray

from edgeq.layer_rounding import LayerRounding

Float64 = NDArray[np.float64]
BLOCK = 64


def gptq(layer: LayerRounding) -> Float64:
    """Return bases, (groups, outputs, depth)."""
    order = np.argsort(-np.diagonal(layer.inputs, axis1=1, axis2=2), axis=1, kind="stable")
    back = np.argsort(order, axis=1, kind="stable")
    h = np.take_along_axis(layer.inputs, order[:, :, None], 1)
    h = np.take_along_axis(h, order[:, None, :], 2)
    upper = _upper(h)
    rest = np.take_along_axis(layer.wanted, order[:, None, :], 2)
    step = np.take_along_axis(layer.step, order[:, None, :], 2)
    base = np.empty_like(rest)
    for start in range(0, rest.shape[-1], BLOCK):
        block = slice(start, min(start + BLOCK, rest.shape[-1]))
        near, own = rest[..., block].copy(), upper[:, block, block]
        errors = np.empty_like(near)
        for k in range(near.shape[-1]):
            found = layer.nearest(near[..., k], step[..., start + k])
            base[..., start + k] = found
            errors[..., k] = (near[..., k] - found * step[..., start + k]) / own[:, None, k, k]
            near[..., k:] -= errors[..., k, None] * own[:, None, k, k:]
        rest[..., block.stop :] -= errors @ upper[:, block, block.stop :]
    return np.take_along_axis(base, back[:, None, :], 2)


def _upper(h: Float64) -> Float64:
    """Return U with H^-1 = U^T U, from the Cholesky factor of H read backwards."""
    lower = np.linalg.cholesky(h[:, ::-1, ::-1])  # H = R R^T with R = reversed, upper
    reversed_factor = lower[:, ::-1, ::-1]
    return np.asarray(np.linalg.inv(reversed_factor))
