"""Inputs made to find ties: where rounding, saturation and zero points show their differences.

Samples from the world sit between ties; a kernel that rounds half up, adds the zero point too
early or saturates a pair of products passes them by luck. These feeds cover the whole range of
codes, pile up at both ends, and stand one ulp to either side of the input's own rounding ties.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DataError
from edgeq.numerics.affine import QParams

KINDS = (
    # What tells most comes first: a bundle has room for some of them only.
    "random",
    "ties",
    "checkerboard",
    "sparse",
    "ramp",
    "outside",
    "low",
    "high",
    "equal",
    "zeros",
)


@dataclass(frozen=True, eq=False)
class StimulusInput:
    """One graph input to make values for.

    Attributes:
        name: Its name.
        dtype: What it is fed as: float32, or the codes' dtype.
        shape: All sizes known: symbolic dimensions as in the calibration samples.
        qparams: How the input is quantized, whether it is fed as reals or as codes; None if it is
            not quantized (token ids, a float input that stays float).
        low: Smallest value seen, for an input without `qparams`.
        high: Largest value seen, for an input without `qparams`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    qparams: QParams | None = None
    low: float = -1.0
    high: float = 1.0


def stimuli(
    inputs: Sequence[StimulusInput], *, seed: int = 0, rounds: int = 2
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield feeds that hunt ties: `rounds` of every kind in `KINDS`.

    Inputs get different kinds in the same feed (each starts one kind further), so that a pair of
    inputs meets in different ranges. The same arguments give the same feeds.

    Args:
        inputs: The graph's inputs.
        seed: Source of the random kinds.
        rounds: How often each kind is drawn; the constant kinds change with the round.

    Raises:
        DataError: There is no input, or one has no element.
    """
    if not inputs:
        raise DataError("the model has no inputs: no stimuli can be made for it")
    for item in inputs:
        if 0 in item.shape:
            raise DataError(f"input {item.name!r} has shape {item.shape}: no elements to test")
    for number in range(rounds):
        for position in range(len(KINDS)):
            yield {
                item.name: stimulus(KINDS[(position + offset) % len(KINDS)], item, seed, number)
                for offset, item in enumerate(inputs)
            }


def stimulus(kind: str, item: StimulusInput, seed: int = 0, number: int = 0) -> NDArray[Any]:
    """Return one input of the given kind, with `item`'s dtype and shape."""
    # crc32, not hash(): the latter changes with every process.
    generator = np.random.default_rng([seed, number, zlib.crc32(f"{kind}:{item.name}".encode())])
    if item.qparams is None:
        return _unquantized(kind, item, generator)
    qparams = item.qparams
    if item.dtype.kind in "iu":
        codes = _CODES[kind](item.shape, qparams, generator, number)
        return codes.astype(item.dtype)
    if kind == "ties":
        return _near_ties(item.shape, qparams, generator).astype(item.dtype)
    if kind == "outside":
        return _outside(item.shape, qparams, generator).astype(item.dtype)
    codes = _CODES[kind](item.shape, qparams, generator, number)
    return qparams.dequantize(codes).astype(item.dtype)


Shape = tuple[int, ...]
Codes = NDArray[np.int64]


def _random(shape: Shape, q: QParams, generator: np.random.Generator, number: int) -> Codes:
    return generator.integers(q.qtype.qmin, q.qtype.qmax, shape, endpoint=True)


def _zeros(shape: Shape, q: QParams, generator: np.random.Generator, number: int) -> Codes:
    return _random(shape, q, generator, number) * 0 + int(q.zero_point.reshape(-1)[0])


def _low(shape: Shape, q: QParams, generator: np.random.Generator, number: int) -> Codes:
    return np.full(shape, q.qtype.qmin + number, np.int64)


def _high(shape: Shape, q: QParams, generator: np.random.Generator, number: int) -> Codes:
    return np.full(shape, q.qtype.qmax - number, np.int64)


def _checkerboard(shape: Shape, q: QParams, generator: np.random.Generator, number: int) -> Codes:
    parity = (np.indices(shape).sum(axis=0) + number) % 2
    return np.where(parity == 0, q.qtype.qmin, q.qtype.qmax).astype(np.int64)


def _equal(shape: Shape, q: QParams, generator: np.random.Generator, number: int) -> Codes:
    code = generator.integers(q.qtype.qmin, q.qtype.qmax, endpoint=True)
    return np.full(shape, code, np.int64)


def _ramp(shape: Shape, q: QParams, generator: np.random.Generator, number: int) -> Codes:
    span = q.qtype.qmax - q.qtype.qmin + 1
    size = int(np.prod(shape))
    # A stride coprime to the 256 codes, so that later rounds walk them in another order.
    return ((np.arange(size) * (2 * number + 1)) % span + q.qtype.qmin).reshape(shape)


def _sparse(shape: Shape, q: QParams, generator: np.random.Generator, number: int) -> Codes:
    """Return zeros with a few extreme codes: small accumulators, where ties are dense."""
    codes = _zeros(shape, q, generator, number)
    extreme = generator.random(shape)
    step = generator.integers(-2, 2, shape, endpoint=True)
    codes = np.asarray(np.clip(codes + step, q.qtype.qmin, q.qtype.qmax), np.int64)
    codes[extreme < 0.02], codes[extreme > 0.98] = q.qtype.qmin, q.qtype.qmax
    return codes


_CODES: dict[str, Callable[[Shape, QParams, np.random.Generator, int], Codes]] = {
    "random": _random,
    "zeros": _zeros,
    "low": _low,
    "high": _high,
    "checkerboard": _checkerboard,
    "equal": _equal,
    "ramp": _ramp,
    "sparse": _sparse,
    # Fed as codes, an input has neither ties nor an outside.
    "ties": _random,
    "outside": _random,
}


def _near_ties(shape: Shape, q: QParams, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return reals at, one ulp below and one ulp above `(k + 1/2) * scale`."""
    scale, zero = _first(q)
    steps = generator.integers(q.qtype.qmin - 1, q.qtype.qmax, shape, endpoint=True) - zero
    tie = ((steps + np.float64(0.5)) * np.float64(scale)).astype(np.float32)
    side = generator.integers(-1, 1, shape, endpoint=True)
    toward = np.where(side < 0, -np.inf, np.inf).astype(np.float32)
    return np.where(side == 0, tie, np.nextafter(tie, toward)).astype(np.float32)


def _outside(shape: Shape, q: QParams, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return reals up to four times beyond both ends, with -0.0 and denormals among them."""
    low, high = q.range
    values = generator.uniform(4 * low - 1, 4 * high + 1, shape)
    largest = np.finfo(np.float32).max
    values = values.clip(-largest, largest).astype(np.float32)
    special = np.array([-0.0, 0.0, 1e-42, -1e-42, 3e38, -3e38], np.float32)
    chosen = generator.random(shape) < 0.1
    return np.where(chosen, generator.choice(special, shape), values).astype(np.float32)


def _first(q: QParams) -> tuple[np.float32, int]:
    return np.float32(q.scale.reshape(-1)[0]), int(q.zero_point.reshape(-1)[0])


def _unquantized(kind: str, item: StimulusInput, generator: np.random.Generator) -> NDArray[Any]:
    """Return values between the least and the greatest seen: others may not be legal."""
    low, high = item.low, item.high
    if item.dtype.kind == "b":
        return generator.integers(0, 2, item.shape).astype(item.dtype)
    if kind in ("low", "high", "zeros"):
        value = {"low": low, "high": high, "zeros": min(max(0.0, low), high)}[kind]
        return np.full(item.shape, value).astype(item.dtype)
    if item.dtype.kind in "iu":
        return generator.integers(int(low), int(high), item.shape, endpoint=True).astype(item.dtype)
    return generator.uniform(low, high, item.shape).astype(item.dtype)
