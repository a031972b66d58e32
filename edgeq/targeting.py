"""What a target is: what its device can do, how a model is lowered to it, and how it is run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import onnx_ir as ir
from numpy.typing import NDArray

from edgeq import by_name

PACKAGE = "edgeq.targets"
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Capabilities:
    """The arithmetic rules of a target, as data that passes read.

    Attributes:
        activation_qtype: The storage format of activations.
        weight_min: Smallest weight code that all CPUs multiply right.
        weight_max: Largest weight code that all CPUs multiply right.
        fused: Op types that the runtime fuses with the QDQ around them into a kernel with a
            formula of its own; used only where that formula is proven equal to the definition.
        channel_multiple: The number of channels that a Conv's kernel moves at a time.
        session_options: Options that the runtime needs, by its own names.
    """

    activation_qtype: str = "uint8"
    weight_min: int = -127
    weight_max: int = 127
    fused: frozenset[str] = frozenset()
    channel_multiple: int = 1
    session_options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Artifact:
    """What is deployed: files by name, the first of them the entry point."""

    files: Mapping[str, bytes]

    @property
    def entry(self) -> str:
        """Name of the file that a runtime opens."""
        return next(iter(self.files))


class Runner(ABC):
    """A lowered model, loaded and ready on the target's runtime."""

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return every output (and tap) by name."""


class Target(ABC):
    """A device or runtime that a quantized model is lowered to."""

    capabilities: ClassVar[Capabilities]
    summary: ClassVar[str]

    @classmethod
    def name(cls) -> str:
        """The file's name: `targets/ort_cpu.py` is `ort-cpu`."""
        return by_name.own_name(cls)

    @abstractmethod
    def lower(self, model: ir.Model) -> Artifact:
        """Turn the quantized model into what is deployed."""

    @abstractmethod
    def load(
        self,
        model: ir.Model,
        *,
        threads: int = 1,
        taps: Sequence[str] = (),
        all_options: bool = False,
    ) -> Runner:
        """Load the lowered form of `model`.

        Args:
            model: A quantized model, or a float one.
            threads: Of the runtime.
            taps: Names of values that become further outputs.
            all_options: Set also the options that only other machines need.
        """

    @abstractmethod
    def kernels(self, model: ir.Model) -> Mapping[str, int]:
        """Return how many kernels of each kind the runtime makes of `model`."""

    @abstractmethod
    def missing_kernels(self, model: ir.Model, kernels: Mapping[str, int]) -> tuple[str, ...]:
        """Return, in words, which integer ops of `model` have no integer kernel in `kernels`."""


def target_names() -> list[str]:
    """Return the names of all targets."""
    return by_name.names(PACKAGE)


def find_target(name: str) -> Target:
    """Return the target `name`.

    Raises:
        UnknownNameError: There is no such target.
    """
    found: type[Target] = by_name.find(PACKAGE, name, Target, "target")
    return found()
