"""Rounding, saturation and look-ups whose gradient is the straight-through one.

Forward they are the definition, bit for bit. Backward, rounding counts as the identity, saturation
lets nothing through, and a table has the slope between its neighbours (Bengio et al. 2013,
"Estimating or Propagating Gradients Through Stochastic Neurons"; Esser et al. 2020, "Learned Step
Size Quantization", whose gradient of a scale is what these make together with DequantizeLinear).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def _reduced(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Return the sum of `gradient` over the axes along which `shape` was broadcast."""
    return gradient if gradient.shape == shape else gradient.sum_to_size(shape)


class _Round(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        return gradient


class _Truncate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        return torch.trunc(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        return gradient


class _Requantize(Function):
    """`clamp(round(acc * multiplier), low, high)`."""

    @staticmethod
    def forward(ctx: Any, acc: Tensor, multiplier: Tensor, low: float, high: float) -> Tensor:  # noqa: ANN401
        rounded = (acc * multiplier).round_()
        units = rounded.clamp(low, high)
        inside = units == rounded
        ctx.save_for_backward(inside, multiplier, acc if ctx.needs_input_grad[1] else None)
        return units

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        inside, multiplier, acc = ctx.saved_tensors
        gradient = gradient * inside
        of_multiplier = None if acc is None else _reduced(gradient * acc, multiplier.shape)
        return gradient * multiplier, of_multiplier, None, None


class _Quantize(Function):
    """`clamp(round(x / scale), low, high)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:  # noqa: ANN401
        rounded = (x / scale).round_()
        units = rounded.clamp(low, high)
        inside = units == rounded
        ctx.save_for_backward(inside, scale, x if ctx.needs_input_grad[1] else None)
        return units

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        inside, scale, x = ctx.saved_tensors
        gradient = gradient * inside / scale
        of_scale = None if x is None else _reduced(-gradient * x / scale, scale.shape)
        return gradient, of_scale, None, None


class _Nearest(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        return grid[torch.bucketize(x, (grid[1:] + grid[:-1]) / 2)]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        del ctx
        return gradient, None


class _LookUp(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, codes: Tensor) -> Tensor:  # noqa: ANN401
        index = codes.long()
        ctx.save_for_backward(table, index)
        return table[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        table, index = ctx.saved_tensors
        of_table = None
        if ctx.needs_input_grad[0]:
            flat = gradient.reshape(-1).to(table.dtype)
            of_table = torch.zeros_like(table).index_add_(0, index.reshape(-1), flat)
        slope = torch.gradient(table)[0] if len(table) > 1 else torch.zeros_like(table)
        return of_table, gradient * slope[index].to(gradient.dtype)


def round_half_even(x: Tensor) -> Tensor:
    """Return `x` rounded; the gradient is that of `x`."""
    rounded: Tensor = _Round.apply(x)
    return rounded


def truncate(x: Tensor) -> Tensor:
    """Return `x` cut towards zero; the gradient is that of `x`."""
    cut: Tensor = _Truncate.apply(x)
    return cut


def requantize(acc: Tensor, multiplier: Tensor, low: float, high: float) -> Tensor:
    """Return `saturate(round_half_even(acc * multiplier))`.

    Args:
        acc: float32 accumulators.
        multiplier: float32, broadcastable to `acc`.
        low: Least result, the zero point not yet added.
        high: Greatest result.
    """
    units: Tensor = _Requantize.apply(acc, multiplier, low, high)
    return units


def quantize(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """Return `saturate(round_half_even(x / scale))`; arguments as those of `requantize`."""
    units: Tensor = _Quantize.apply(x, scale, low, high)
    return units


def saturate(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return `x` within limits, which may have a gradient; beyond them that of `x` is 0."""
    clamped: Tensor = torch.clamp(x, low, high)
    return clamped


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """Return `table[codes]` for codes held in a float dtype.

    Backward, the derivative by a code is half the difference of the entries beside it.
    """
    found: Tensor = _LookUp.apply(table, codes)
    return found


def nearest_of(x: Tensor, grid: Tensor) -> Tensor:
    """Return the nearest entries of an ascending grid, the lower one of two; gradient as of `x`."""
    found: Tensor = _Nearest.apply(x, grid)
    return found
