"""Between a linear op of the graph and its rounding: moments in, codes, scales and biases out.

What a bias can take up is no error of the weights: for an op with a bias the moments are those
around the means, and the bias takes the rest, so that the mean of each channel is kept.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.float_weight import FloatWeight
from edgeq.layer_rounding import LayerRounding
from edgeq.linear_rows import LinearRows
from edgeq.second_moments import SecondMoments
from edgeq.weight_codes import BIAS_LIMIT

Array = NDArray[Any]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """One integer linear op whose weights are rounded anew.

    Attributes:
        rows: The op as a product of matrices.
        weight: What its codes were rounded from.
        moments: Of what it reads.
        follow: The share of the error of earlier layers that it takes back: 0 keeps the op what it
            was, 1 follows the float model's results alone.
    """

    rows: LinearRows
    weight: FloatWeight
    moments: SecondMoments
    follow: float

    def rounding(self, damping: float) -> LayerRounding:
        """Return what to make small.

        Args:
            damping: Pull towards the real weights, as a share of the mean of diag(H); more where
                there are fewer rows than weights.
        """
        moments, (groups, depth) = self.moments, self.moments.input_sums.shape
        real, flat = self._real(), self._flat()
        h = moments.inputs
        if self._centred:
            sums = moments.input_sums
            h = h - sums[:, :, None] * sums[:, None, :] / moments.count
        targets = real @ h
        if moments.targets is not None and moments.target_sums is not None and self.follow:
            mean = self._bias()
            if self._centred:
                mean = moments.target_sums / moments.count
            cross = moments.targets.reshape(targets.shape)
            cross = cross - mean.reshape(groups, -1, 1) * moments.input_sums[:, None]
            targets = self.follow * cross + (1 - self.follow) * targets
        share = damping * (1 + depth / moments.count)
        pull = share * np.trace(h, axis1=1, axis2=2) / depth + 1.0  # of a dead input, 1 alone
        h = h + pull[:, None, None] * np.eye(depth)
        scale = np.broadcast_to(self.rows.group.w.qparams.scale, (self.rows.outputs,))
        return LayerRounding(flat, scale, h, targets + pull[:, None, None] * real)

    @property
    def fixed(self) -> NDArray[np.bool_]:
        """Which outputs keep their scale: powers of two, and those that a large bias needs."""
        group = self.rows.group
        scale = np.broadcast_to(group.w.qparams.scale, (self.rows.outputs,))
        powers = bool((np.frexp(scale)[0] == 0.5).all())
        kept = np.full(scale.shape, powers or group.w.qparams.axis is None)
        if group.bias is not None and group.bias.array is not None:
            kept = kept | (np.abs(group.bias.array.astype(np.int64)) > BIAS_LIMIT // 2)
        return kept

    def write(self, base: Array, scale: NDArray[np.float32]) -> None:
        """Put new codes, scales and a new bias into the graph.

        Args:
            base: (groups, outputs, depth).
            scale: (groups * outputs,).
        """
        group = self.rows.group
        codes = self.weight.codes(self.rows.weight(base.reshape(self.rows.outputs, -1)))
        bias = self._new_bias(base, scale) if group.bias is not None else None
        _set(group.w.codes, codes)
        if group.w.qparams.axis is not None:
            _set(group.w.node.inputs[1], scale)
        if group.bias is None or bias is None:
            return
        step = np.asarray(group.x.qparams.scale * scale, np.float32)
        if group.w.qparams.axis is None:
            step = np.broadcast_to(group.bias.qparams.scale, step.shape)
        else:
            _set(group.bias.node.inputs[1], step)
        steps = np.rint(bias * float(group.x.qparams.scale) / step.astype(np.float64))
        _set(group.bias.codes, np.clip(steps, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32))

    @property
    def _centred(self) -> bool:
        return self.rows.group.bias is not None

    def _flat(self) -> FloatWeight:
        """Return the weight as (outputs, depth)."""
        weight, shift = self.weight.weight, self.weight.shift
        if shift is not None:
            shift = np.ascontiguousarray(self.rows.rows(np.broadcast_to(shift, weight.shape)))
        flat = np.ascontiguousarray(self.rows.rows(weight))
        return FloatWeight(flat, self.weight.qtype, self.weight.limit, shift, 0)

    def _real(self) -> Float64:
        groups, depth = self.moments.input_sums.shape
        return self._flat().weight.reshape(groups, -1, depth).astype(np.float64)

    def _bias(self) -> Float64:
        """Return the bias in steps of the input's scale, (outputs,)."""
        group = self.rows.group
        if group.bias is None or group.bias.array is None:
            return np.zeros(self.rows.outputs)
        bias = group.bias.array.astype(np.float64) * group.bias.qparams.scale
        return np.broadcast_to(bias / float(group.x.qparams.scale), (self.rows.outputs,))

    def _new_bias(self, base: Array, scale: NDArray[np.float32]) -> Float64:
        """Return the bias that keeps the mean of each output, in steps of the input's scale."""
        moments, real = self.moments, self._real()
        flat = self._flat()
        step = np.broadcast_to(scale[:, None].astype(np.float64), flat.weight.shape)
        if flat.shift is not None:
            step = np.ldexp(step, flat.shift)
        values = base * step.reshape(base.shape)
        mean = moments.input_sums[:, :, None] / moments.count
        bias = self._bias() + ((real - values) @ mean).reshape(-1)
        if moments.target_sums is None:
            return bias
        followed = moments.target_sums / moments.count - (values @ mean).reshape(-1)
        return np.asarray(self.follow * followed + (1 - self.follow) * bias)


def _set(value: ir.Value | None, array: Array) -> None:
    assert value is not None
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
