"""What it means to round the weights of one layer: the error to make small, and the grid.

With w the real weights of a group, (outputs, depth), v = base * step their rounded values, H the
second moment of the inputs and T that of the float results with the inputs,

    error(v) = sum over rows of (y - v x)**2 + const  =  v H v^T - 2 v T^T + const

Where the float results are not known T = w H, and the error is (v - w) H (v - w)^T (Nagel et al.
2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", section 3).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.float_weight import FloatWeight

Array = NDArray[Any]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerRounding:
    """One layer, its outputs split into groups that have inputs of their own.

    Attributes:
        weight: float32 (groups * outputs, depth), its scales along axis 0.
        scale: float32 (groups * outputs,).
        inputs: float64 (groups, depth, depth): H, positive definite.
        targets: float64 (groups, outputs, depth): T.
    """

    weight: FloatWeight
    scale: NDArray[np.float32]
    inputs: Float64
    targets: Float64

    @property
    def step(self) -> Float64:
        """What one step of a base is worth, (groups, outputs, depth)."""
        step = self._like(np.asarray(self.scale, np.float64)[:, None])
        return step if self.weight.shift is None else np.ldexp(step, self._like(self.weight.shift))

    @property
    def real(self) -> Float64:
        """The real weights, (groups, outputs, depth)."""
        return self._like(self.weight.weight).astype(np.float64)

    @property
    def wanted(self) -> Float64:
        """The real weights with the least error: T H^-1."""
        return np.asarray(np.linalg.solve(self.inputs, self.targets.swapaxes(1, 2)).swapaxes(1, 2))

    def nearest(self, values: Float64, step: Float64) -> Float64:
        """Return the nearest bases of real values."""
        return np.asarray(self.weight.nearest(values / step), np.float64)

    def error(self, base: Float64) -> Float64:
        """Return how far each output is from the least error that reals have: (groups, outputs)."""
        off = base * self.step - self.wanted
        return np.asarray(((off @ self.inputs) * off).sum(-1))

    def with_scale(self, scale: Array) -> "LayerRounding":
        """Return the same with other scales, (outputs of all groups,)."""
        return replace(self, scale=np.asarray(scale, np.float32))

    def refitted(self, base: Float64) -> "LayerRounding":
        """Return the same with the scales that are best for these bases: T q / (q H q^T).

        A scale stays within a factor of two of what it was, and where no base is left.
        """
        q = base if self.weight.shift is None else np.ldexp(base, self._like(self.weight.shift))
        curve, slope = ((q @ self.inputs) * q).sum(-1), (q * self.targets).sum(-1)
        old = self.scale.reshape(curve.shape).astype(np.float64)
        best = np.divide(slope, curve, out=old.copy(), where=(curve > 0) & (slope > 0))
        return self.with_scale(np.clip(best, old / 2, old * 2).reshape(-1))

    def _like(self, array: Array) -> Array:
        return np.broadcast_to(array, self.weight.weight.shape).reshape(self.targets.shape)
