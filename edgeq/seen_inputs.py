"""What samples show of the inputs themselves: their integers, and the sizes of open dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class SeenInputs:
    """What all samples together showed.

    Attributes:
        spans: The least and the greatest value of each integer input, by name.
        sizes: The largest size of each symbolic dimension, by its symbol.
    """

    spans: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    sizes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


def symbols(value: ir.Value) -> tuple[str | None, ...]:
    """Return the symbol of each axis; None where the size is known, or has no name."""
    return tuple(None if isinstance(d, int) else d.value for d in value.shape or ())


class InputObserver:
    """Watches feeds go by."""

    def __init__(self, model: ir.Model) -> None:
        self._symbols = {str(value.name): symbols(value) for value in model.graph.inputs}
        self._spans: dict[str, tuple[int, int]] = {}
        self._sizes: dict[str, int] = {}

    def add(self, feed: Mapping[str, NDArray[Any]]) -> None:
        """Take in one feed."""
        for name, array in feed.items():
            if array.dtype.kind in "iu" and array.size:
                low, high = int(array.min()), int(array.max())
                known = self._spans.get(name, (low, high))
                self._spans[name] = min(low, known[0]), max(high, known[1])
            for symbol, size in zip(self._symbols.get(name, ()), array.shape, strict=False):
                if symbol is not None:
                    self._sizes[symbol] = max(size, self._sizes.get(symbol, 0))

    def result(self) -> SeenInputs:
        """Return what was seen so far."""
        return SeenInputs(MappingProxyType(dict(self._spans)), MappingProxyType(dict(self._sizes)))
