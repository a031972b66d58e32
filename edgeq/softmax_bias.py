"""What rounding takes from a softmax, and what giving it back is worth.

A row of probabilities adds up to 1; its codes do not: where a row is long, most elements round to
0. With `a` the probabilities and `Q(a)` what their codes stand for (Pandey et al. 2023, "Softmax
Bias Correction for Quantized Generative Models", ICCV workshops):

    beta = E[a - Q(a)]          over all elements that no mask hides; added to each of them
    rho  = 1 / E[sum of Q(a)]   a factor of the scale

`beta` costs a rank-1 term, `beta * sum of v`; `rho` nothing. Range shrinking leaves less to
correct, least where each row has a range of its own: codes that count in parts of the row's
largest, read with a scale found at run time. Such a row can be given what it lost itself,
`1 - sum of Q(a)`, spread over all elements that no mask hides.

What an attention gives is linear in the correction, so one sweep over the samples tells the squared
error of every form: sums are all that is kept, whatever the number of samples. What is found on
every other sample is measured on those between them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.blas import single_threaded

Form = Literal["none", "scale", "beta", "row", "row+beta"]
Granularity = Literal["tensor", "head", "timestep"]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


def softmax(scores: Float64, kept: Bool | None = None) -> Float64:
    """Return the probabilities of each row of the last axis; 0 for what is not `kept`."""
    if kept is not None:
        scores = np.where(kept, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    terms = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = terms.sum(-1, keepdims=True)
    return np.asarray(terms / np.where(total, total, 1.0))


@dataclass(frozen=True, eq=False)
class Observed:
    """One sample of an attention.

    Attributes:
        ideal: The probabilities, float64 (batch, heads, rows, keys).
        rounded: What their codes stand for, the same shape.
        by_row: What codes with a scale for each row stand for.
        v: The values, float64 (batch, heads, keys, width), or broadcastable to that.
        kept: Which elements no mask hides, broadcastable to `ideal`; None for all.
    """

    ideal: Float64
    rounded: Float64
    by_row: Float64
    v: Float64
    kept: Bool | None = None

    @property
    def mask(self) -> Float64:
        """1 for what no mask hides, 0 for the rest; the shape of `ideal`."""
        kept = np.True_ if self.kept is None else self.kept
        return np.broadcast_to(kept, self.ideal.shape).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Correction:
    """A form of the correction of one attention, and what it is worth.

    Attributes:
        form: `none`, `scale` or `beta`; `row`: a scale for each row; `row+beta`: and a beta for
            each row, both found at run time.
        granularity: What each value was found for: the `tensor`, a `head`, a head at a `timestep`.
        value: beta or rho, float64 (buckets, heads); 0 where there is none.
        sqnr_db: Of the attention's result, what rounding it costs included.
        row_sum: Mean sum of a row of probabilities with the correction; 1 is right.
    """

    form: Form
    granularity: Granularity
    value: Float64
    sqnr_db: float
    row_sum: float


class SoftmaxBiasMeter:
    """Adds up, sample by sample, what the corrections of one attention need.

    Memory grows with heads and buckets, not with the samples.

    Attributes:
        heads: The size of axis 1.
        buckets: Into how many parts the range of timesteps is cut.
    """

    def __init__(self, heads: int, buckets: int = 1, step: float = 0.0) -> None:
        """Start with nothing; results will be rounded to multiples of `step` unless it is 0."""
        self.heads, self.buckets = heads, buckets
        self._noise = step**2 / 12  # of an element, spread evenly over a step
        # Of every other sample: how codes with one scale do, with one for each row, with both.
        self._halves = [
            {form: _Sums.zeros(buckets, heads) for form in ("none", "row", "row+beta")}
            for _ in range(2)
        ]
        self._samples = 0

    def add(self, sample: Observed, bucket: int | NDArray[np.int64] = 0) -> None:
        """Take one sample in; `bucket` is that of its timestep, or one for each of its batch."""
        with single_threaded():  # small products, and the same sums whatever the machine
            self._add(sample, bucket)
        self._samples += 1

    def _add(self, sample: Observed, bucket: int | NDArray[np.int64]) -> None:
        half = self._halves[self._samples % 2]
        places = np.broadcast_to(bucket, len(sample.ideal))
        mask = sample.mask
        lost = 1 - sample.by_row.sum(-1, keepdims=True)
        refilled = sample.by_row + lost * mask / np.maximum(mask.sum(-1, keepdims=True), 1)
        seen, wanted, shift = mask.any(-1, keepdims=True), sample.ideal @ sample.v, mask @ sample.v
        for form, rounded in (
            ("none", sample.rounded),
            ("row", sample.by_row),
            ("row+beta", refilled),
        ):
            counted = rounded * seen
            results = wanted, counted @ sample.v, np.broadcast_to(shift, wanted.shape)
            half[form].add((sample.ideal, mask, counted), results, places)

    def correction(
        self,
        form: Form,
        granularity: Granularity = "tensor",
        rounded: Callable[[Float64], Float64] = lambda value: value,
    ) -> Correction:
        """Return the value of a form, `rounded` as it will be written, and its worth."""
        a, b = self._sums(form)
        value = rounded((a + b).value(form, granularity))
        if self._samples < 2:
            return self._correction(form, granularity, value, [a.effect(form, value)])
        found = [rounded(half.value(form, granularity)) for half in (a, b)]
        effects = [a.effect(form, found[1]), b.effect(form, found[0])]
        return self._correction(form, granularity, value, effects)

    def worth(self, form: Form, value: Float64) -> Correction:
        """Return what a given value is worth on the samples taken in."""
        a, b = self._sums(form)
        return self._correction(form, "tensor", value, [(a + b).effect(form, value)])

    def _sums(self, form: Form) -> list["_Sums"]:
        return [half[form if form in half else "none"] for half in self._halves]

    def _correction(
        self, form: Form, granularity: Granularity, value: Float64, effects: list["_Effect"]
    ) -> Correction:
        signal, noise, results, rows, mass = (
            sum(getattr(effect, field.name) for effect in effects) for field in fields(_Effect)
        )
        noise += results * self._noise
        decibels = 10 * math.log10(max(signal, 1e-300) / noise) if noise > 0 else math.inf
        return Correction(form, granularity, value, decibels, mass / rows if rows else 1.0)


@dataclass(frozen=True)
class _Effect:
    """What a correction leaves.

    Attributes:
        signal: Energy of the ideal results.
        noise: Energy of their error.
        results: Their number.
        rows: Rows of probabilities.
        mass: What they add up to together.
    """

    signal: float
    noise: float
    results: float
    rows: float
    mass: float


@dataclass(eq=False)
class _Sums:
    """Sums over samples, each (buckets, heads).

    Attributes:
        results: Elements of the results.
        rows: Rows; one that is hidden whole counts nothing.
        kept: Elements that no mask hides.
        mass: Of Q(a).
        ideal: Squares of `a @ v`.
        error: Squares of `(a - Q(a)) @ v`.
        plain: Squares of `Q(a) @ v`.
        shift: Squares of `kept @ v`, what a beta of 1 adds.
        cross: Products of the error and the shift.
        scaled: Products of the ideal and the plain result.
    """

    results: Float64
    rows: Float64
    kept: Float64
    mass: Float64
    ideal: Float64
    error: Float64
    plain: Float64
    shift: Float64
    cross: Float64
    scaled: Float64

    @classmethod
    def zeros(cls, buckets: int, heads: int) -> "_Sums":
        return cls(*np.zeros((10, buckets, heads)))

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(*(a + b for a, b in zip(self._arrays(), other._arrays(), strict=True)))

    def _arrays(self) -> list[Float64]:
        return [getattr(self, field.name) for field in fields(self)]

    def add(
        self,
        probabilities: tuple[Float64, Float64, Float64],
        results: tuple[Float64, Float64, Float64],
        buckets: NDArray[np.int64],
    ) -> None:
        """Take one sample in.

        Args:
            probabilities: The ideal ones, 1 for what is not hidden, and those that codes stand for.
            results: What comes of these: ideal, of codes, and what a beta of 1 adds.
            buckets: A number for each of the batch.
        """
        ideal, mask, rounded = probabilities
        wanted, plain, shift = results
        error = wanted - plain
        for total, array in (
            (self.results, np.ones_like(wanted)),
            (self.rows, ideal),
            (self.kept, mask),
            (self.mass, rounded),
        ):
            np.add.at(total, buckets, array.sum((2, 3)))
        for total, a, b in (
            (self.ideal, wanted, wanted),
            (self.error, error, error),
            (self.plain, plain, plain),
            (self.shift, shift, shift),
            (self.cross, error, shift),
            (self.scaled, wanted, plain),
        ):
            np.add.at(total, buckets, np.einsum("bhtd,bhtd->bh", a, b))

    def value(self, form: Form, granularity: Granularity) -> Float64:
        """Return beta or rho, (buckets, heads): all alike where they are found for more at once."""
        if form not in ("scale", "beta"):
            return np.zeros_like(self.rows)
        over, under = self.rows - self.mass, self.kept
        if form == "scale":
            over, under = self.rows, self.mass
        value = _ratio(over.sum(keepdims=True), under.sum(keepdims=True), 0.0)
        if granularity != "tensor":
            value = _ratio(over.sum(0, keepdims=True), under.sum(0, keepdims=True), value)
        if granularity == "timestep":
            value = _ratio(over, under, value)
        return np.broadcast_to(value, over.shape)

    def effect(self, form: Form, value: Float64) -> _Effect:
        """Return what a correction by `value` leaves."""
        if form == "scale":
            noise = self.ideal - 2 * value * self.scaled + value**2 * self.plain
            mass = self.mass * value
        else:
            noise = self.error - 2 * value * self.cross + value**2 * self.shift
            mass = self.mass + value * self.kept
        arrays = self.ideal, noise, self.results, self.rows, mass
        return _Effect(*(float(array.sum()) for array in arrays))


def _ratio(over: Float64, under: Float64, otherwise: Float64 | float) -> Float64:
    """Return `over / under`; where nothing was seen, what is found for more at once."""
    value = np.broadcast_to(otherwise, np.shape(over)).astype(np.float64)
    return np.divide(over, under, out=value, where=under > 0)


@dataclass(frozen=True)
class SoftmaxRow:
    """What a report says of one attention.

    Attributes:
        attention: Its name.
        form: How its softmax was corrected: a form, and what its value was found for.
        row_sum_before: Mean sum of a row of the quantized probabilities.
        row_sum_after: The same with the correction.
        sqnr_before_db: Of the result of the attention; None where nothing is lost.
        sqnr_after_db: The same with the correction.
    """

    attention: str
    form: str
    row_sum_before: float
    row_sum_after: float
    sqnr_before_db: float | None
    sqnr_after_db: float | None

    @classmethod
    def of(cls, attention: str, before: Correction, after: Correction) -> "SoftmaxRow":
        """Return the row of an attention; figures are rounded, so that all BLAS agree on them."""
        form = str(after.form)
        if form in ("scale", "beta"):
            form = f"{form} by {after.granularity}"
        sums = round(before.row_sum, 4), round(after.row_sum, 4)
        return cls(attention, form, *sums, _shown(before.sqnr_db), _shown(after.sqnr_db))


def _shown(sqnr_db: float) -> float | None:
    return round(sqnr_db, 2) if math.isfinite(sqnr_db) else None
