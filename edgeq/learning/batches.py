"""Seeded batches of calibration samples: the same ones for the same number, in bounded memory.

Samples are read as a stream, a window at a time; an epoch is one window in an order of its own.
Every eighth sample is held out: learning never sees it.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.errors import DataError

Feed = Mapping[str, NDArray[Any]]
_HELD_EVERY = 8
_MOST_HELD = 32
_WINDOW_BYTES = 256 * 2**20


class Batches:
    """Batches to learn from, and what is held out.

    Attributes:
        held: Batches of the held-out samples; of all where there are too few to hold any out.
    """

    def __init__(
        self,
        samples: Iterable[Feed],
        inputs: Iterable[ir.Value],
        *,
        size: int,
        seed: int,
        device: str = "cpu",
        window_bytes: int = _WINDOW_BYTES,
    ) -> None:
        """Read the stream once, to know how much there is.

        Args:
            samples: Feeds of one sample; each iteration streams them anew.
            inputs: The model's inputs: only where all have an open first axis are samples stacked.
            size: Samples in a batch.
            seed: Of the order.
            device: Where batches go.
            window_bytes: Memory for samples.

        Raises:
            DataError: There is no sample.
        """
        self._samples, self._seed, self._device = samples, seed, device
        self._stackable = all(
            v.shape is not None and len(v.shape) > 0 and not isinstance(v.shape[0], int)
            for v in inputs
        )
        self._size = max(1, size)
        count, largest = 0, 1
        held: list[Feed] = []
        for number, feed in enumerate(samples):
            count += 1
            largest = max(largest, sum(array.nbytes for array in feed.values()))
            if number % _HELD_EVERY == _HELD_EVERY - 1 and len(held) < _MOST_HELD:
                held.append(feed)
        if not count:
            raise DataError("learning needs calibration samples, and there is none")
        self._held_count = len(held)
        self._count = count - len(held)
        capacity = max(self._size, window_bytes // largest)
        windows = -(-self._count // capacity)
        self._length = -(-self._count // windows)
        self._windows = -(-self._count // self._length)
        self._window: tuple[int, list[Feed]] = (-1, [])
        self.held = list(self._stacked(held or list(self._window_of(0))))

    def batch(self, number: int) -> list[dict[str, Tensor]]:
        """Return the batch `number`: one feed, or several where samples cannot be stacked."""
        per_window = max(1, self._length // self._size)
        epoch, place = divmod(number, per_window)
        window = self._window_of(epoch % self._windows)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(window))
        chosen = sorted(order[place * self._size : (place + 1) * self._size].tolist())
        return list(self._stacked([window[i] for i in chosen or order[: self._size].tolist()]))

    def _window_of(self, number: int) -> list[Feed]:
        if self._window[0] != number:
            first = number * self._length
            self._window = (number, list(islice(self._learned(), first, first + self._length)))
        return self._window[1]

    def _learned(self) -> Iterator[Feed]:
        held = 0
        for number, feed in enumerate(self._samples):
            if number % _HELD_EVERY == _HELD_EVERY - 1 and held < self._held_count:
                held += 1
                continue
            yield feed

    def _stacked(self, feeds: list[Feed]) -> Iterator[dict[str, Tensor]]:
        """Yield feeds of up to `size` samples: those of one shape together."""
        alike: dict[tuple[tuple[int, ...], ...], list[Feed]] = {}
        for number, feed in enumerate(feeds):
            shapes = tuple(array.shape[1:] for array in feed.values())
            alike.setdefault(shapes if self._stackable else ((number,),), []).append(feed)
        for group in alike.values():
            for start in range(0, len(group), self._size):
                part = group[start : start + self._size]
                yield {
                    name: torch.from_numpy(
                        np.concatenate([feed[name] for feed in part]) if len(part) > 1
                        else np.array(part[0][name])
                    ).to(self._device)
                    for name in part[0]
                }  # fmt: skip
