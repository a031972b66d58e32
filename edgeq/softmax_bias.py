"""What rounding takes from a softmax, and what giving it back is worth.

A row of probabilities adds up to 1; its codes do not: where a row is long, most elements round to
0. With `a` the probabilities and `Q(a)` what their codes stand for (Pandey et al. 2023, "Softmax
Bias Correction for Quantized Generative Models", ICCV workshops):

    beta = E[a - Q(a)]          over all elements that no mask hides; added to each of them
    rho  = 1 / E[sum of Q(a)]   the other form: a factor of the scale

`beta` costs a rank-1 term, `beta * sum of v`; `rho` nothing. What an attention gives with either is
linear in it, so one sweep over the samples tells the squared error of every form: sums are all
that is kept, whatever the number of samples.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["none", "scale", "beta"]
Float64 = NDArray[np.float64]


def softmax(scores: Float64, kept: NDArray[np.bool_] | None = None) -> Float64:
    """Return the probabilities of each row of the last axis, masked elements 0."""
    if kept is not None:
        scores = np.where(kept, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    terms = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = terms.sum(-1, keepdims=True)
    return np.asarray(terms / np.where(total, total, 1.0))


@dataclass(frozen=True, eq=False)
class Correction:
    """A form of the correction of one attention, and what it is worth.

    Attributes:
        form: `none`, `scale` or `beta`.
        value: beta or rho, float64 (heads,): all alike unless it was asked for per head.
        sqnr_db: Of the attention's result, before it is rounded.
        row_sum: Mean sum of a row of probabilities with the correction; 1 is right.
    """

    form: Form
    value: Float64
    sqnr_db: float
    row_sum: float


class SoftmaxBiasMeter:
    """Adds up, sample by sample, what the corrections of one attention need; O(heads) memory."""

    def __init__(self, heads: int) -> None:
        """Start with nothing; `heads` is the size of axis 1, 1 where there is none."""
        # Per head: rows, elements kept, sum of Q(a); energies and products of the results.
        self._rows, self._kept, self._mass = (np.zeros(heads) for _ in range(3))
        self._ideal, self._error, self._plain = (np.zeros(heads) for _ in range(3))
        self._shift, self._cross, self._scaled = (np.zeros(heads) for _ in range(3))

    def add(
        self,
        ideal: Float64,
        rounded: Float64,
        v: Float64,
        kept: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take one sample in.

        Args:
            ideal: The probabilities, float64 (batch, heads, rows, keys).
            rounded: What their codes stand for, the same shape.
            v: The values, float64 (batch, heads, keys, width).
            kept: Which elements no mask hides, broadcastable to `ideal`; None for all.
        """
        assert ideal.ndim == 4 and ideal.shape == rounded.shape, (ideal.shape, rounded.shape)
        wanted, plain = ideal @ v, rounded @ v
        if kept is None:
            shift = np.broadcast_to(v.sum(-2, keepdims=True), wanted.shape)
            count = np.full(ideal.shape[1], ideal[:, 0].size, np.float64)
        else:
            mask = np.broadcast_to(kept, ideal.shape).astype(np.float64)
            shift, count = mask @ v, mask.sum((0, 2, 3))
        error = wanted - plain
        self._rows += ideal.sum((0, 2, 3))  # a row that is hidden whole counts nothing
        self._kept += count
        self._mass += rounded.sum((0, 2, 3))
        for total, a, b in (
            (self._ideal, wanted, wanted),
            (self._error, error, error),
            (self._plain, plain, plain),
            (self._shift, shift, shift),
            (self._cross, error, shift),
            (self._scaled, wanted, plain),
        ):
            total += np.einsum("bhtd,bhtd->h", a, b)

    def correction(self, form: Form, *, per_head: bool = False) -> Correction:
        """Return a form's value and its worth on the samples taken in."""
        if form == "none":
            return self._worth(form, np.zeros_like(self._rows))
        if form == "scale":
            value = _ratio(self._rows, self._mass, per_head)
        else:
            value = _ratio(self._rows - self._mass, self._kept, per_head)
        return self._worth(form, value)

    def worth_of(self, form: Form, value: Float64) -> Correction:
        """Return what a given value is worth: one that was rounded, or found on other samples."""
        return self._worth(form, np.broadcast_to(value, self._rows.shape))

    def _worth(self, form: Form, value: Float64) -> Correction:
        mass = self._mass
        if form == "scale":
            error = self._ideal - 2 * value * self._scaled + value**2 * self._plain
            mass = mass * value
        else:
            error = self._error - 2 * value * self._cross + value**2 * self._shift
            mass = mass + value * self._kept
        rows = float(self._rows.sum())
        return Correction(
            form, value, _decibels(self._ideal, error), float(mass.sum()) / rows if rows else 1.0
        )


def _ratio(over: Float64, under: Float64, per_head: bool) -> Float64:
    if not per_head:
        over, under = np.full_like(over, over.sum()), np.full_like(under, under.sum())
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)


def _decibels(signal: Float64, noise: Float64) -> float:
    if noise.sum() <= 0:
        return math.inf
    return 10 * math.log10(max(float(signal.sum()), 1e-300) / float(noise.sum()))


def rounded_codes(probabilities: Float64, scale: float, bits: int) -> NDArray[Any]:
    """Return what unsigned codes of `bits` bits with zero point 0 stand for, in float64."""
    return np.clip(np.rint(probabilities / scale), 0, 2**bits - 1) * scale
