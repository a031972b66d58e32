"""Bits against bits: every tensor of the device against the simulator's.

Two arrays are the same when dtype, shape and every bit agree: -0.0 is not 0.0, and NaNs are
compared by payload. Nothing passes uncompared: a verdict over no elements is an error.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import VerificationError
from edgeq.tolerance import distance

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Difference:
    """The first element that differs, or a tensor of another dtype or shape.

    Attributes:
        tensor: Its name.
        sample: Which of the feeds, counted from 0.
        index: Position in the tensor; empty when dtype or shape differ, or for a scalar.
        expected: The reference's value, as text.
        actual: The device's value, as text.
        expected_bits: In hexadecimal, most significant digit first; empty for a dtype or shape.
        actual_bits: The same for the device.
    """

    tensor: str
    sample: int
    index: tuple[int, ...]
    expected: str
    actual: str
    expected_bits: str = ""
    actual_bits: str = ""

    def __str__(self) -> str:
        if not self.expected_bits:
            return (
                f"tensor {self.tensor!r}, feed {self.sample}:"
                f" expected {self.expected}, found {self.actual}"
            )
        place = ", ".join(map(str, self.index))
        return (
            f"tensor {self.tensor!r}, feed {self.sample}, index [{place}]: expected {self.expected}"
            f" (0x{self.expected_bits}), found {self.actual} (0x{self.actual_bits})"
        )


@dataclass(frozen=True)
class TensorCount:
    """How much of one tensor was compared, in elements."""

    name: str
    compared: int
    mismatches: int


@dataclass(frozen=True, eq=False)
class Evidence:
    """What it takes to see the first difference again.

    Attributes:
        feeds: The model's inputs.
        expected: The reference's whole tensor.
        actual: The device's whole tensor.
    """

    feeds: Arrays
    expected: NDArray[Any]
    actual: NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to.

    Attributes:
        tensors: Different tensors compared.
        compared: Elements compared, over all feeds.
        mismatches: Elements whose bits differ.
        first: The first difference, in the order of feeds, then of the graph.
        counts: Per tensor, in graph order.
        evidence: The tensors around `first`.
    """

    tensors: int
    compared: int
    mismatches: int
    first: Difference | None
    counts: tuple[TensorCount, ...]
    evidence: Evidence | None = field(default=None, compare=False, repr=False)

    @property
    def same(self) -> bool:
        """Whether all bits agree."""
        return self.mismatches == 0

    def raise_for_mismatch(self) -> None:
        """Raise unless all bits agree.

        Raises:
            VerificationError: Bits differ; the message names the first difference.
        """
        if self.first is not None:
            raise VerificationError(
                f"{self.mismatches} of {self.compared} elements differ between the simulator and"
                f" the device; first: {self.first}"
            )


class Comparison:
    """Accumulates the comparison of many feeds."""

    def __init__(self, tolerances: Mapping[str, float] | None = None) -> None:
        """Prepare.

        Args:
            tolerances: Tensors that are not compared bit for bit, and how far they may differ, as
                `edgeq.tolerance.distance` says: mismatches only where they differ by more.
        """
        self._tolerances = tolerances or {}
        self._compared: dict[str, int] = {}
        self._mismatches: dict[str, int] = {}
        self._first: Difference | None = None
        self._evidence: Evidence | None = None
        self._feeds = 0

    def add(
        self,
        expected: Arrays,
        actual: Arrays,
        feeds: Arrays | None = None,
        sample: int | None = None,
    ) -> None:
        """Compare one feed's tensors.

        Args:
            expected: The reference's tensors, in graph order.
            actual: The device's; may hold more than `expected`.
            feeds: What both were fed, for the evidence.
            sample: The feed's number, where it is compared more than once; else they are counted.

        Raises:
            VerificationError: The device has no tensor of an expected name.
        """
        sample = self._feeds if sample is None else sample
        self._feeds = max(self._feeds, sample + 1)
        for name, want in expected.items():
            if name not in actual:
                raise VerificationError(
                    f"the device returned no tensor {name!r}: cannot compare it"
                )
            want, got = np.asarray(want), np.asarray(actual[name])
            count, first = compare(name, want, got, sample)
            limit = self._tolerances.get(name)
            if count and limit is not None and distance(want, got) <= limit:
                count, first = 0, None
            self._compared[name] = self._compared.get(name, 0) + want.size
            self._mismatches[name] = self._mismatches.get(name, 0) + count
            if first is not None and self._first is None:
                self._first = first
                self._evidence = Evidence(dict(feeds or {}), want.copy(), got.copy())

    def verdict(self) -> Verdict:
        """Return what the comparison came to.

        Raises:
            VerificationError: No element was compared, so nothing was verified.
        """
        compared = sum(self._compared.values())
        if compared == 0:
            raise VerificationError(
                f"nothing was compared ({self._feeds} feeds, {len(self._compared)} tensors):"
                " give samples, so that the bits can be verified"
            )
        counts = tuple(TensorCount(n, c, self._mismatches[n]) for n, c in self._compared.items())
        mismatches = sum(self._mismatches.values())
        return Verdict(len(counts), compared, mismatches, self._first, counts, self._evidence)


def compare(
    name: str, expected: NDArray[Any], actual: NDArray[Any], sample: int = 0
) -> tuple[int, Difference | None]:
    """Return how many elements of one tensor differ in their bits, and the first that does.

    A tensor of another dtype or shape differs in every element, in at least one when it is empty.
    """
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        texts = [f"{a.dtype.name}{list(a.shape)}" for a in (expected, actual)]
        return max(expected.size, 1), Difference(name, sample, (), *texts)
    want, got = _bits(expected), _bits(actual)
    differs = (want != got).any(axis=-1)
    count = int(np.count_nonzero(differs))
    if count == 0:
        return 0, None
    flat = int(np.argmax(differs))
    index = tuple(int(i) for i in np.unravel_index(flat, expected.shape))
    hexes = [
        bits[flat].astype(bits.dtype.newbyteorder(">")).tobytes().hex() for bits in (want, got)
    ]
    values = [str(a.reshape(-1)[flat]) for a in (expected, actual)]
    return count, Difference(name, sample, index, *values, *hexes)


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array's bits as unsigned words, shape `(elements, words per element)`."""
    size = array.dtype.itemsize
    word = np.dtype(f"u{size}" if size in (1, 2, 4, 8) else "u1")
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(word).reshape(array.size, size // word.itemsize)


def verify(
    reference: Callable[[Arrays], Arrays],
    device: Callable[[Arrays], Arrays],
    batches: Iterable[Arrays],
    on_batch: Callable[[int], None] = lambda done: None,
) -> Verdict:
    """Run both on every feed and compare all tensors that the reference returns.

    Args:
        reference: The simulator with its taps; its order of names is the graph's.
        device: The runner with the same taps.
        batches: Feeds, consumed one at a time.
        on_batch: Told how many feeds are done.

    Raises:
        VerificationError: There was nothing to compare, or the device lacks a tensor.
    """
    comparison = Comparison()
    for done, feeds in enumerate(batches, 1):
        comparison.add(reference(feeds), device(feeds), feeds)
        on_batch(done)
    return comparison.verdict()
