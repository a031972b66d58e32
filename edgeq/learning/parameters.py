"""Learned parameters as tensors: what an executor takes instead of initializers, and its commit.

    codes of a weight   nearest codes of the grid to a latent number of steps, straight through
    scale               scale0 * exp(t): a rate of 0.001 is a change by a thousandth
    bias                bias0 + t * (step of the result), in codes of float32(sx * sw)

The forward pass rounds as the committed graph will, at every iteration: what is learned is what is
deployed, and nothing is left to be hardened at the end.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.graph import constant
from edgeq.learning.learnable import Bias, Weight
from edgeq.learning.straight_through import nearest_of, round_half_even

BIAS_LIMIT = 2**30
_INSIDE = 0.499  # of the way to the next code: there it begins
_CHOSEN = 0.25  # where a code begins that is not the nearest: somebody chose it, so not at the edge


@dataclass(frozen=True)
class Rates:
    """How fast parameters are learned (Adam's rates); 0: not at all.

    Attributes:
        weights: In steps of a code.
        scales: Relative, of the scales of weights.
        activations: Relative, of the scales of activations.
        biases: In steps of the op's result.
    """

    weights: float
    scales: float
    activations: float
    biases: float


class Parameters:
    """The leaves that are learned, and what they make.

    Attributes:
        leaves: Every leaf by a name of its own, in a fixed order.
        rates: The rate of each leaf.
    """

    leaves: dict[str, Tensor]
    rates: dict[str, float]

    def __init__(
        self,
        weights: list[Weight],
        scales: list[ir.Value],
        biases: list[Bias],
        rates: Rates,
        device: torch.device,
    ) -> None:
        """Make a leaf for everything whose rate is not 0.

        Args:
            weights: Their codes, and the scales of these.
            scales: The scales of activations.
            biases: Biases.
            rates: How fast.
            device: Where tensors are.
        """
        self.leaves, self.rates = {}, {}
        self._device = device
        self._start: dict[str, Tensor] = {}  # scales as they are in the graph
        self._scales = scales if rates.activations else []
        for scale in self._scales:
            self._leaf(scale, torch.zeros(()), rates.activations)
        self._weights = weights if rates.weights or rates.scales else []
        self._codes = [_Codes(weight, device) for weight in weights] if rates.weights else []
        for codes in self._codes:
            self._leaf(codes.value, codes.latent, rates.weights)
        self._weight_scales = [weight.scale for weight in weights] if rates.scales else []
        for scale in self._weight_scales:
            self._leaf(scale, torch.zeros(_array(scale).shape), rates.scales)
        # The bias keeps its real value when a scale moves: it is remade with every scale.
        self._biases = [_RealBias(bias, device) for bias in biases]
        for bias in self._biases if rates.biases else []:
            self._leaf(
                bias.bias.codes, torch.zeros_like(bias.real, dtype=torch.float32), rates.biases
            )

    def _leaf(self, value: ir.Value, start: Tensor, rate: float) -> None:
        name = str(value.name)
        if name not in self.leaves:
            self.leaves[name] = start.to(self._device, torch.float32).requires_grad_()
            self.rates[name] = rate

    def learn_only(self, names: Iterable[str]) -> None:
        """Let only these leaves have a gradient."""
        wanted = set(names)
        for name, leaf in self.leaves.items():
            leaf.requires_grad_(name in wanted)

    def tensors(self) -> dict[str, Tensor]:
        """Return what the leaves make now, by initializer name, with a gradient."""
        made = {str(codes.value.name): codes(self.leaves) for codes in self._codes}
        for scale in (*self._scales, *self._weight_scales):
            made[str(scale.name)] = self._scale(scale)
        for bias in self._biases:
            step = self._scale(bias.bias.scale_x) * self._scale(bias.bias.scale_w)
            made[str(bias.bias.codes.name)] = bias.codes(self.leaves, step)
        return made

    def _scale(self, value: ir.Value) -> Tensor:
        name = str(value.name)
        if name not in self._start:
            self._start[name] = torch.from_numpy(np.array(_array(value))).to(self._device)
        start = self._start[name]
        return start * torch.exp(self.leaves[name]) if name in self.leaves else start

    @torch.no_grad()
    def keep_within_limits(self) -> None:
        """Bring latent numbers back to where their codes are the outermost ones."""
        for codes in self._codes:
            self.leaves[str(codes.value.name)].clamp_(codes.lowest, codes.highest)

    @torch.no_grad()
    def commit(self) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Write codes, scales and biases into their initializers.

        Returns:
            The old and the new value of each scale of activations that changed, by its name.
        """
        made = {name: tensor.cpu().numpy() for name, tensor in self.tensors().items()}
        moved = {}
        for scale in (*self._scales, *self._weight_scales):
            old, new = _array(scale), made[str(scale.name)].astype(np.float32)
            if scale in self._scales and not np.array_equal(old, new):
                moved[str(scale.name)] = (old, new)
            _write(scale, new)
        for codes in self._codes:
            _write(codes.value, made[str(codes.value.name)].astype(_array(codes.value).dtype))
        for bias in self._biases:
            found = np.rint(made[str(bias.bias.codes.name)].astype(np.float64))
            limited = np.clip(found, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
            _write(bias.bias.codes, limited)
            step = np.float32(1) * _array(bias.bias.scale_x) * _array(bias.bias.scale_w)
            shape = _array(bias.bias.scale).shape
            _write(bias.bias.scale, np.asarray(step, np.float32).reshape(shape))
        return moved


class _Codes:
    """Codes on a grid, from a latent number of steps for each.

    Attributes:
        value: The initializer.
        latent: Where learning begins: steps of the base, on the side of the code that is there.
        lowest: The least latent number.
        highest: The greatest one.
    """

    def __init__(self, weight: Weight, device: torch.device) -> None:
        self.value, source = weight.codes, weight.source
        low, high = source.qtype.within(source.limit)
        allowed = source.qtype.values or range(low, high + 1)
        grid = np.array([v for v in allowed if low <= v <= high], np.float32)
        codes, zero = _array(weight.codes).astype(np.int32), weight.group.w.qparams.zero_point
        places = [1] * codes.ndim
        if source.axis is not None:
            places[source.axis] = -1
        offset = zero.reshape(places if zero.size > 1 else [1] * codes.ndim)
        shift = np.zeros([1] * codes.ndim, np.int32) if source.shift is None else source.shift
        base = np.right_shift((codes - offset).astype(np.int64), shift).astype(np.float32)
        index = np.clip(np.searchsorted(grid, base), 0, len(grid) - 1)
        left = np.concatenate([grid[:1] - 1, grid])[index]
        right = np.concatenate([grid, grid[-1:] + 1])[index + 1]
        units = source.units(_array(weight.scale))
        gap = np.where(units < base, base - left, right - base)
        chosen = base + np.sign(units - base) * _CHOSEN * gap
        start = np.where(np.abs(units - base) < _INSIDE * gap, units, chosen)
        self.latent = torch.from_numpy(start.astype(np.float32))
        self.lowest, self.highest = float(grid[0]) - _INSIDE, float(grid[-1]) + _INSIDE
        self._even = source.qtype.values is None
        self._grid = torch.from_numpy(grid).to(device)
        self._factor = torch.from_numpy(np.exp2(shift).astype(np.float32)).to(device)
        self._offset = torch.from_numpy(offset.astype(np.float32)).to(device)

    def __call__(self, leaves: dict[str, Tensor]) -> Tensor:
        latent = leaves[str(self.value.name)]
        base = round_half_even(latent) if self._even else nearest_of(latent, self._grid)
        return base * self._factor + self._offset


class _RealBias:
    """A bias as a real number.

    Attributes:
        bias: Where it is.
        real: float64, its value in the graph.
    """

    def __init__(self, bias: Bias, device: torch.device) -> None:
        self.bias = bias
        scale = np.asarray(_array(bias.scale_x) * _array(bias.scale_w), np.float32)
        real = _array(bias.codes).astype(np.float64) * scale
        self.real = torch.from_numpy(real).to(device)
        y = bias.group.y
        # A float result has no step: that of 64 codes of weight counts as one.
        self._unit = 64.0 * float(scale.mean()) if y is None else float(y.qparams.scale)

    def codes(self, leaves: dict[str, Tensor], step: Tensor) -> Tensor:
        leaf = leaves.get(str(self.bias.codes.name))
        real = self.real if leaf is None else self.real + self._unit * leaf.double()
        return round_half_even(real / step.double())


def _array(value: ir.Value) -> NDArray[np.float32]:
    array = constant(value)
    assert array is not None, f"{value.name} is an initializer"
    return array


def _write(value: ir.Value, array: NDArray[np.generic]) -> None:
    old = _array(value)
    assert old.shape == array.shape and old.dtype == array.dtype, value.name
    value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
