"""Inputs made to find ties: where rounding, saturation and zero points show their differences.

Samples from the world sit between ties; a kernel that rounds half up, adds the zero point too
early or saturates a pair of products passes them by luck. These feeds cover the whole range of
codes, pile up at both ends, and stand one ulp to either side of the input's own rounding ties.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DataError
from edgeq.longest import MAX_DIM
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
_BATCHES = (3, 2, 5)
_LENGTHS = (17, 3, 2)


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
        symbols: Of each axis: the name of a dimension that the model leaves open; else None.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    qparams: QParams | None = None
    low: float = -1.0
    high: float = 1.0
    symbols: tuple[str | None, ...] = ()


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


def other_sizes(
    inputs: Sequence[StimulusInput],
    largest: Mapping[str, int] | None = None,
    max_dim: int = MAX_DIM,
) -> Iterator[dict[str, int]]:
    """Yield further sizes for the dimensions that the model leaves open, by symbol.

    The first axes count samples: 3, 2, 5. Others are lengths: half of what was seen, then 17, 3 and
    2, none above what was seen, as a table of positions may end there. All change at once, and the
    model need not take what is yielded: an image may have to be a multiple of 8.

    Args:
        inputs: The graph's inputs.
        largest: The largest size seen of each symbol; those of `inputs` where there is none.
        max_dim: The most that any of them can be.
    """
    now = {
        symbol: size
        for item in inputs
        for symbol, size in zip(item.symbols, item.shape, strict=bool(item.symbols))
        if symbol is not None
    }
    first = {item.symbols[0] for item in inputs if item.symbols}
    candidates: dict[str, list[int]] = {}
    for symbol, size in now.items():
        longest = max(size, (largest or {}).get(symbol, 0))
        lengths = [n for n in (longest // 2, *_LENGTHS) if 0 < n <= longest]
        wanted = dict.fromkeys(_BATCHES if symbol in first else lengths)
        candidates[symbol] = [n for n in wanted if n != size and n <= max_dim] or [size]
    # Where there are only samples to count, one other number of them will do.
    turns = [len(found) for symbol, found in candidates.items() if symbol not in first]
    seen = [now]
    for turn in range(max(turns, default=1)):
        sizes = {symbol: found[turn % len(found)] for symbol, found in candidates.items()}
        if sizes not in seen:
            seen.append(sizes)
            yield sizes


def resized(item: StimulusInput, sizes: Mapping[str, int]) -> StimulusInput:
    """Return `item` with other sizes of its open dimensions."""
    symbols = (*item.symbols, *(None,) * (len(item.shape) - len(item.symbols)))
    shape = tuple(
        size if symbol is None else sizes.get(symbol, size)
        for symbol, size in zip(symbols, item.shape, strict=True)
    )
    return replace(item, shape=shape)


def stimulus(kind: str, item: StimulusInput, seed: int = 0, number: int = 0) -> NDArray[Any]:
    """Return one input of the given kind, with `item`'s dtype and shape."""
    # numpy gives scalars where there is no axis, which runtimes do not take.
    return np.asarray(_made(kind, item, seed, number), item.dtype)


def _made(kind: str, item: StimulusInput, seed: int, number: int) -> NDArray[Any]:
    # crc32, not hash(): the latter changes with every process.
    generator = np.random.default_rng([seed, number, zlib.crc32(f"{kind}:{item.name}".encode())])
    if item.dtype.kind in "iu":
        return _CODES[kind](item.shape, _limits(item), generator, number)
    qparams = item.qparams
    if qparams is None:
        return _unquantized(kind, item, generator)
    if kind == "ties":
        return _near_ties(item.shape, qparams, generator)
    if kind == "outside":
        return _outside(item.shape, qparams, generator)
    return qparams.dequantize(_CODES[kind](item.shape, _limits(item), generator, number))


def _limits(item: StimulusInput) -> "_Limits":
    """Return the codes of an input, or the integers that it was seen to take."""
    if item.qparams is None:
        low, high = int(item.low), int(item.high)
        return _Limits(low, high, min(max(0, low), high))
    qtype = item.qparams.qtype
    return _Limits(qtype.qmin, qtype.qmax, int(item.qparams.zero_point.reshape(-1)[0]))


@dataclass(frozen=True)
class _Limits:
    """The integers that may be fed, and the one that stands for zero."""

    low: int
    high: int
    zero: int


Shape = tuple[int, ...]
Codes = NDArray[np.int64]


def _random(shape: Shape, to: _Limits, generator: np.random.Generator, number: int) -> Codes:
    return generator.integers(to.low, to.high, shape, endpoint=True)


def _zeros(shape: Shape, to: _Limits, generator: np.random.Generator, number: int) -> Codes:
    return _random(shape, to, generator, number) * 0 + to.zero


def _low(shape: Shape, to: _Limits, generator: np.random.Generator, number: int) -> Codes:
    return np.full(shape, min(to.low + number, to.high), np.int64)


def _high(shape: Shape, to: _Limits, generator: np.random.Generator, number: int) -> Codes:
    return np.full(shape, max(to.high - number, to.low), np.int64)


def _checkerboard(shape: Shape, to: _Limits, generator: np.random.Generator, number: int) -> Codes:
    parity = (np.indices(shape).sum(axis=0) + number) % 2
    return np.where(parity == 0, to.low, to.high).astype(np.int64)


def _equal(shape: Shape, to: _Limits, generator: np.random.Generator, number: int) -> Codes:
    return np.full(shape, generator.integers(to.low, to.high, endpoint=True), np.int64)


def _ramp(shape: Shape, to: _Limits, generator: np.random.Generator, number: int) -> Codes:
    span = to.high - to.low + 1
    size = int(np.prod(shape))
    # A stride coprime to the 256 codes, so that later rounds walk them in another order.
    return ((np.arange(size) * (2 * number + 1)) % span + to.low).reshape(shape)


def _sparse(shape: Shape, to: _Limits, generator: np.random.Generator, number: int) -> Codes:
    """Return zeros with a few extreme codes: small accumulators, where ties are dense."""
    codes = _zeros(shape, to, generator, number)
    extreme = generator.random(shape)
    step = generator.integers(-2, 2, shape, endpoint=True)
    codes = np.asarray(np.clip(codes + step, to.low, to.high), np.int64)
    codes[extreme < 0.02], codes[extreme > 0.98] = to.low, to.high
    return codes


_CODES: dict[str, Callable[[Shape, _Limits, np.random.Generator, int], Codes]] = {
    "random": _random,
    "zeros": _zeros,
    "low": _low,
    "high": _high,
    "checkerboard": _checkerboard,
    "equal": _equal,
    "ramp": _ramp,
    "sparse": _sparse,
    # Integers have neither ties nor an outside.
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
    return generator.uniform(low, high, item.shape).astype(item.dtype)
