"""What a target is: what its device can do, how a model is lowered to it, and how it is run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import onnx_ir as ir
from numpy.typing import NDArray

from edgeq import by_name
from edgeq.errors import UnknownNameError, suggest
from edgeq.memory_use import MemoryUse
from edgeq.qdq import quantized_tensors

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
        float8: Whether 8-bit floats can be stored, with float kernels behind them.
    """

    activation_qtype: str = "uint8"
    weight_min: int = -127
    weight_max: int = 127
    fused: frozenset[str] = frozenset()
    channel_multiple: int = 1
    session_options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    float8: bool = False


# Of every target that computes the definition: one quantized model, the same bits on all of them.
EXACT = Capabilities(
    fused=frozenset(
        {"Add", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax"}
    ),
    channel_multiple=4,
)


@dataclass(frozen=True)
class Artifact:
    """What is deployed: files by name, the first of them the entry point.

    Attributes:
        files: By path in the bundle.
        deployed: Bytes that reach the device; None: those of all files.
    """

    files: Mapping[str, bytes]
    deployed: int | None = None

    @property
    def entry(self) -> str:
        """Name of the file that a runtime opens."""
        return next(iter(self.files))

    @property
    def size(self) -> int:
        """Bytes that reach the device."""
        return sum(map(len, self.files.values())) if self.deployed is None else self.deployed


@dataclass(frozen=True)
class GoldenRun:
    """One run of a quantized model on the host.

    Attributes:
        inputs: By name.
        outputs: The simulator's, by name.
        taps: `edgeq.check_bits.digest` of each quantized tensor, by name.
    """

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]
    taps: Mapping[str, bytes]


class Runner(ABC):
    """A lowered model, loaded and ready on the target's runtime."""

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return every output (and tap) by name."""


class Target(ABC):
    """A device or runtime that a quantized model is lowered to."""

    capabilities: ClassVar[Capabilities]

    @property
    @abstractmethod
    def summary(self) -> str:
        """What it is, in a line."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What compiling for it and checking its bundles need installed, besides edgeq."""
        return ()

    @property
    def missing(self) -> tuple[str, ...]:
        """What of that this machine lacks, in words."""
        return ()

    @classmethod
    def variants(cls) -> Mapping[str, "Target"]:
        """Return the targets that the file defines: `targets/ort_cpu.py` is `ort-cpu`."""
        return {by_name.own_name(cls): cls()}

    def name(self) -> str:
        """Return what users call it."""
        return by_name.own_name(type(self))

    def specialize(self, model: ir.Model, sample: Feeds) -> ir.Model:
        """Return the quantized model as the device runs it; sizes may be those of a sample."""
        del sample
        return model

    def taps(self, model: ir.Model) -> list[str]:
        """Return the names of the quantized tensors that the device can show."""
        return quantized_tensors(model)

    @abstractmethod
    def lower(self, model: ir.Model) -> Artifact:
        """Turn the quantized model into what is deployed."""

    def complete(
        self, model: ir.Model, artifact: Artifact, golden: Sequence[GoldenRun]
    ) -> Artifact:
        """Return the artifact with what checks it, where that is not `check.py`."""
        del model, golden
        return artifact

    @property
    def verified_on(self) -> str | None:
        """What `load` runs on, where that is not the device: its own check has yet to run there."""
        return None

    def memory(self, model: ir.Model) -> MemoryUse | None:
        """Return what the model takes of the device's memory, where that is known."""
        del model
        return None

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

    def placement(self, model: ir.Model) -> Mapping[str, str]:
        """Return the kernel of each node by name, where the runtime tells; parts of others none."""
        del model
        return {}

    @abstractmethod
    def missing_kernels(self, model: ir.Model, kernels: Mapping[str, int]) -> tuple[str, ...]:
        """Return, in words, which integer ops of `model` have no integer kernel in `kernels`."""


def target_names() -> list[str]:
    """Return the names of all targets."""
    return [name for file in by_name.names(PACKAGE) for name in _variants(file)]


def find_target(name: str) -> Target:
    """Return the target `name`.

    Raises:
        UnknownNameError: There is no such target.
    """
    for file in by_name.names(PACKAGE):
        if name == file or name.startswith(f"{file}-"):
            found = _variants(file)
            if name in found:
                return found[name]
    known = target_names()
    raise UnknownNameError(f"no target {name!r}{suggest(name, known)}; known: {', '.join(known)}")


def _variants(file: str) -> Mapping[str, Target]:
    found: type[Target] = by_name.find(PACKAGE, file, Target, "target")
    return found.variants()
