"""The clipping range of a weight, per channel or per tensor: known values, so errors are exact."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import QParams, along
from edgeq.numerics.grid import nearest
from edgeq.numerics.magnitudes import PIECE
from edgeq.numerics.qtype import FORMATS
from edgeq.numerics.scale import choose_qparams
from edgeq.recipe import QuantSpec

SHRINKS = np.linspace(1.0, 0.3, 71)
NARROW_SHRINKS = np.linspace(1.0, 0.1, 91)  # for fewer than 8 bits
# Twice the range first: the nearest exponent may clip, its neighbour above never does.
DOUBLINGS = np.array([2.0, 1.0, 0.5, 0.25])

Float64 = NDArray[np.float64]


def choose_weight_range(
    weight: NDArray[np.float32], spec: QuantSpec, axis: int | None, limit: int
) -> tuple[Float64, Float64]:
    """Return the range of a weight: its extremes, or those shrunk to the least squared error.

    Args:
        weight: Finite, any shape.
        spec: How it is to be quantized; observers of distributions mean `minmax` here.
        axis: The channel axis; None for one range, `()`, else `(channels,)` each.
        limit: Largest magnitude of a symmetric code.
    """
    rows = np.moveaxis(weight, axis, 0) if axis is not None else weight[None]
    rows = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
    low, high = np.empty(len(rows)), np.empty(len(rows))
    for part in _parts(*rows.shape):
        low[part], high[part] = _row_ranges(rows[part], spec, limit)
    return (low, high) if axis is not None else (low.reshape(()), high.reshape(()))


def _parts(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of about `PIECE` elements, none of them one row of several.

    numpy sums the elements of a lone row in another order than those of a row among others.
    """
    count = max(2, PIECE // max(1, columns))
    start = 0
    while start < rows:
        stop = start + count if rows - start - count > 1 else rows
        yield slice(start, stop)
        start = stop


def _row_ranges(rows: NDArray[np.float32], spec: QuantSpec, limit: int) -> tuple[Float64, Float64]:
    low = np.minimum(rows.min(1, initial=0), 0).astype(np.float64)
    high = np.maximum(rows.max(1, initial=0), 0).astype(np.float64)
    return _search(rows, low, high, spec, limit)


def _search(
    rows: NDArray[np.float32], low: Float64, high: Float64, spec: QuantSpec, limit: int
) -> tuple[Float64, Float64]:
    exact = spec.scale == "power_of_two"
    if spec.observer != "mse" and not exact:
        return low, high
    shrinks = NARROW_SHRINKS if FORMATS[spec.qtype].bits < 8 else SHRINKS
    factors = DOUBLINGS if exact else shrinks
    best, factor = np.full(len(rows), np.inf), np.full(len(rows), factors[0])
    for candidate in factors:
        qparams = choose_qparams(low * candidate, high * candidate, spec, axis=0, limit=limit)
        errors, covered = _errors(rows, qparams, limit)
        if spec.observer != "mse":  # the smallest power of two that clips nothing
            errors = np.where(covered, qparams.scale.astype(np.float64), np.inf)
        better = errors < best
        best, factor = np.where(better, errors, best), np.where(better, candidate, factor)
    return low * factor, high * factor


def _errors(
    rows: NDArray[np.float32], qparams: QParams, limit: int
) -> tuple[Float64, NDArray[np.bool_]]:
    """Return per row the sum of squared errors, and whether no value is clipped."""
    qtype = qparams.qtype
    zero = along(qparams.zero_point, 0, 2).astype(np.float32)
    first, last = qtype.qmin - zero, qtype.qmax - zero
    if qtype.signed:
        first, last = np.maximum(first, -limit), np.minimum(last, limit)
    scale = along(qparams.scale, 0, 2)
    units = rows / scale
    codes = np.rint(units)
    covered = ((codes >= first) & (codes <= last)).all(1)
    if qtype.values is None:
        np.clip(codes, first, last, out=codes)
    else:
        codes = nearest(units, qtype, limit)
    codes -= units
    errors = np.einsum("ij,ij->i", codes, codes, dtype=np.float64)
    return errors * qparams.scale.astype(np.float64) ** 2, covered
