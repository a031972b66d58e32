"""Operators that treat each element alone, in torch; signatures are the ONNX schemas.

What IEEE does not define is computed in the dtype of the input: within an ulp or two of the
definition, which the certificates of quantized graphs allow for.
"""

import math
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgeq.learning.straight_through import round_half_even, truncate


def add(a: Tensor, b: Tensor) -> Tensor:
    """`a + b`."""
    return a + b


def subtract(a: Tensor, b: Tensor) -> Tensor:
    """`a - b`."""
    return a - b


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """`a * b`."""
    return a * b


def divide(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`; integers are divided towards zero."""
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder: with the sign of `a` if `fmod`, else of `b`."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def total(*operands: Tensor) -> Tensor:
    """Sum, from the left."""
    return reduce(torch.add, operands)


def mean(*operands: Tensor) -> Tensor:
    """Sum from the left, times the rounded reciprocal of their number."""
    return total(*operands) * torch.tensor(1.0 / len(operands), dtype=operands[0].dtype)


def maximum(*operands: Tensor) -> Tensor:
    """The largest operand."""
    return reduce(torch.maximum, operands)


def minimum(*operands: Tensor) -> Tensor:
    """The smallest operand."""
    return reduce(torch.minimum, operands)


def power(a: Tensor, b: Tensor) -> Tensor:
    """`a ** b`: squares and cubes by multiplication."""
    exponent = float(b) if b.numel() == 1 and not b.requires_grad else math.nan
    if exponent == 2.0:
        return a * a
    if exponent == 3.0:
        return a * a * a
    return torch.pow(a, b)


def rounded(x: Tensor) -> Tensor:
    """The nearest integer, ties to even."""
    return round_half_even(x)


def floor(x: Tensor) -> Tensor:
    """The next integer below; the gradient is that of `x`."""
    return x + (torch.floor(x) - x).detach() if x.requires_grad else torch.floor(x)


def ceil(x: Tensor) -> Tensor:
    """The next integer above; the gradient is that of `x`."""
    return x + (torch.ceil(x) - x).detach() if x.requires_grad else torch.ceil(x)


def integral(x: Tensor) -> Tensor:
    """`x` cut towards zero, held in its float dtype; an integer as it is."""
    return truncate(x) if x.is_floating_point() else x


def gelu(x: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """`x` times the normal distribution function, exact or by the tanh formula."""
    return functional.gelu(x, approximate=approximate)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """`x`, below 0 `alpha * x`."""
    return functional.leaky_relu(x, alpha)


def parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    """`x`, below 0 `x * slope`."""
    return torch.where(x < 0, x * slope, x)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`x` above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`x`, below 0 `alpha * (exp(x) - 1)`."""
    return functional.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`x`, below 0 `alpha * (exp(x / alpha) - 1)`."""
    return functional.celu(x, alpha)


def selu(
    x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.05070098735548
) -> Tensor:
    """`gamma * x`, below 0 `gamma * alpha * (exp(x) - 1)`."""
    return gamma * functional.elu(x, alpha)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """`min(max(x, low), high)`."""
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """`max(0, min(1, alpha * x + beta))`."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def hard_swish(x: Tensor) -> Tensor:
    """`x * hard_sigmoid(x)` with alpha 1/6 and beta 1/2."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where the condition holds, else `b`."""
    return torch.where(condition, a, b)
