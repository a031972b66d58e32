"""Which floating point format, with which scale, loses least of a tensor.

For each format 111 largest values from 0.1 to 1.2 of the largest magnitude are tried, as in A.
Kuzmin et al., "FP8 Quantization: The Power of the Exponent", NeurIPS 2022. The squared error of one
is a sum over the format's numbers: of the magnitudes that round to v,
`sum x**2 - 2 v sum x + v**2 n`. Magnitudes are sorted once and their sums kept, so that a candidate
costs as much as the format has numbers, however many elements there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.floating import FORMATS, FloatFormat
from edgeq.numerics.scale import MIN_EXPONENT
from edgeq.statistics import Statistics

Float64 = NDArray[np.float64]
SHARES = np.linspace(0.1, 1.2, 111)  # of the largest magnitude
EXPONENTS = 5  # powers of two tried, from the one that clips nothing downwards
PARTS = 8  # points that stand for the values in a bin of a histogram


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """Sorted magnitudes with their running sums.

    Attributes:
        values: float64, ascending, `(n,)`.
        sums: Of their counts, of them and of their squares, each from 0: `(3, n + 1)`.
    """

    values: Float64
    sums: Float64

    @property
    def power(self) -> float:
        """The sum of their squares."""
        return float(self.sums[2, -1])


def magnitudes(values: NDArray[Any], counts: NDArray[Any] | None = None) -> Magnitudes:
    """Return the magnitudes of `values`, each seen so often as `counts` says, else once."""
    size = np.abs(np.asarray(values, np.float64).reshape(-1))
    weight = np.ones(size.shape) if counts is None else np.asarray(counts, np.float64)
    order = np.argsort(size, kind="stable")
    size, weight = size[order], weight[order]
    running = np.cumsum([weight, weight * size, weight * size * size], axis=1)
    return Magnitudes(size, np.concatenate([np.zeros((3, 1)), running], axis=1))


def of_statistics(statistics: Statistics) -> Magnitudes:
    """Return the magnitudes that calibration saw, those in a bin spread evenly over it."""
    if statistics.levels is not None:
        return magnitudes(statistics.levels.values, statistics.levels.counts)
    histogram = statistics.histogram
    used = np.flatnonzero(histogram.counts)
    inside = (np.arange(PARTS) + 0.5) / PARTS * histogram.width
    points = histogram.edges[used][:, None] + inside
    points = np.clip(points, statistics.low, statistics.high)
    return magnitudes(points, np.repeat(histogram.counts[used] / PARTS, PARTS))


def squared_errors(seen: Magnitudes, form: FloatFormat, scales: Float64) -> Float64:
    """Return the sum of squared errors under each of many scales, `(scales,)`."""
    places = np.searchsorted(seen.values, scales[:, None] * form.middles)
    ends = np.zeros((len(scales), 1), places.dtype)
    places = np.concatenate([ends, places, ends + len(seen.values)], axis=1)
    count, total, squares = np.diff(seen.sums[:, places], axis=2)
    numbers = scales[:, None] * form.magnitudes
    errors = (squares - 2 * numbers * total + numbers * numbers * count).sum(axis=1)
    return np.asarray(np.maximum(errors, 0.0))


def candidates(largest: float, form: FloatFormat, *, power_of_two: bool = False) -> Float64:
    """Return the scales to try for magnitudes of up to `largest`, those that float32 holds."""
    if largest == 0:
        return np.ones(1)
    if power_of_two:
        _, exponent = np.frexp(largest / form.largest)
        scales = np.ldexp(1.0, int(exponent) - np.arange(EXPONENTS))
    else:
        scales = SHARES * (largest / form.largest)
    return np.maximum(scales, 2.0**MIN_EXPONENT).astype(np.float32).astype(np.float64)


@dataclass(frozen=True, eq=False)
class FloatChoice:
    """A format by name, its scales, `()` or `(channels,)`, and the squared errors of each."""

    form: str
    scale: NDArray[np.float32]
    errors: Float64


def choose(
    channels: Sequence[Magnitudes], formats: Sequence[str], *, power_of_two: bool = False
) -> FloatChoice:
    """Return the best format, which most channels prefer, with the best scale for each channel.

    Args:
        channels: What is known of each channel; one for a tensor with one scale.
        formats: Names in `edgeq.numerics.floating.FORMATS`; of equals the first one stays.
        power_of_two: Let every scale be one.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in formats}
    for seen in channels:
        largest = float(seen.values[-1]) if len(seen.values) else 0.0
        for name, best in found.items():
            scales = candidates(largest, FORMATS[name], power_of_two=power_of_two)
            errors = squared_errors(seen, FORMATS[name], scales)
            place = int(np.argmin(errors))
            best.append((float(scales[place]), float(errors[place])))
    table = np.array(list(found.values())).reshape(len(found), len(channels), 2)
    votes = np.bincount(np.argmin(table[:, :, 1], axis=0), minlength=len(found))
    chosen = int(np.argmax(votes))
    return FloatChoice(
        tuple(found)[chosen], table[chosen, :, 0].astype(np.float32), table[chosen, :, 1]
    )


def choose_for_weight(
    weight: NDArray[np.float32],
    formats: Sequence[str],
    axis: int | None,
    *,
    power_of_two: bool = False,
) -> FloatChoice:
    """Return the best format and scales of a weight, whose every value is known.

    Args:
        weight: Any shape.
        formats: Names of formats.
        axis: The channel axis; None for one scale.
        power_of_two: Let every scale be one.
    """
    rows = [weight] if axis is None else np.moveaxis(weight, axis, 0)
    found = choose([magnitudes(row) for row in rows], formats, power_of_two=power_of_two)
    if axis is not None:
        return found
    return FloatChoice(found.form, found.scale.reshape(()), found.errors.reshape(()))


def choose_for_activation(
    statistics: Statistics, formats: Sequence[str], *, power_of_two: bool = False
) -> FloatChoice:
    """Return the best format and scale of a value that calibration saw."""
    found = choose([of_statistics(statistics)], formats, power_of_two=power_of_two)
    return FloatChoice(found.form, found.scale.reshape(()), found.errors.reshape(()))
