"""The report of a compilation, for people (`report.html`) and programs (`report.json`).

It holds no timings, dates or absolute paths: the same compilation gives the same bytes.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from edgeq.bit_choice import BitChoice
from edgeq.buckets import Buckets, BucketStatistics
from edgeq.fidelity import Fidelity
from edgeq.memory_use import MemoryUse
from edgeq.softmax_bias import SoftmaxRow
from edgeq.trajectory import TrajectoryComparison
from edgeq.value_histogram import ValueHistogram

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class VerdictRow:
    """Bits compared on one kind of feeds.

    Attributes:
        feeds: `calibration samples`, `tie-hunting inputs`, ...
        count: How many feeds.
        tensors: Tensors compared.
        compared: Elements compared.
        mismatches: Elements whose bits differ.
    """

    feeds: str
    count: int
    tensors: int
    compared: int
    mismatches: int


@dataclass(frozen=True)
class OperatorRow:
    """What one node of the deployed model runs as, and why its bits are the same on every CPU.

    Attributes:
        node: Its name, or that of its first output.
        op_type: Its operator.
        kind: Of its proof: `edgeq.certify.Proof`.
        detail: The proof, in words.
        kernel: What the runtime made of it; empty where it is part of another kernel, was computed
            when the model was loaded, or the runtime does not tell.
        formats: What it computes with: `uint8 * int8 -> uint8`, `float32`.
        float_reason: Why it computes in float32, where that is known.
    """

    node: str
    op_type: str
    kind: str
    detail: str
    kernel: str = ""
    formats: str = ""
    float_reason: str = ""


@dataclass(frozen=True)
class PassRow:
    """What one pass did.

    Attributes:
        name: Its step as written.
        rewrites: How many rewrites it made.
        notes: What it says about them.
        summary: What it is for, in a line.
    """

    name: str
    rewrites: int
    notes: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True)
class FloatRow:
    """A node that computes in float32, and why."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class MetricRow:
    """A figure of the deployed model.

    Attributes:
        name: Of the metric.
        deployed: Its value.
        float_model: That of the float model, where it has one.
        higher_is_better: Whether more is better.
    """

    name: str
    deployed: float
    float_model: float | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class NoiseRow:
    """Whether the noise of the first output is that of the weights or that of the activations.

    Attributes:
        weights_db: SQNR with the weights and biases alone quantized; None: exact.
        share: That noise's power, in parts of the deployed model's; None where one of them is 0.
        samples: How many samples were run.
    """

    weights_db: float | None
    share: float | None
    samples: int


@dataclass(frozen=True)
class BucketRow:
    """What calibration saw of a tensor, by the value of an integer input."""

    tensor: str
    statistics: BucketStatistics


@dataclass(frozen=True)
class BucketTable:
    """What calibration saw of every quantized tensor, by the value of an integer input."""

    buckets: Buckets
    rows: tuple[BucketRow, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole story of a compilation.

    Attributes:
        model: Name of the model: a file name without its folder.
        target: Name of the target.
        recipe: Name of the recipe.
        recipe_text: Its settings, as text.
        verdicts: Bits compared, by kind of feeds.
        bytes_float: Size of the float model in bytes.
        bytes_deployed: Size of the artifact in bytes.
        weights_float: Bytes of its weights alone.
        weights_deployed: Bytes of the artifact's weights alone.
        metrics: Accuracy and SQNR of the outputs.
        noise: Where the noise of the first output comes from, where that was measured.
        layers: Every quantized tensor against the float model, in graph order.
        histograms: How the values of the worst tensors lie, the worst first.
        softmaxes: What rounding takes from the softmax of each attention, and what it got back.
        bits: The formats that were chosen layer by layer, with what they cost.
        kernels: Operators of the runtime's optimized model, with their numbers.
        operators: What runs where: every node of the deployed model, with its proof.
        passes: What was done, in order.
        notes: What was done on loading, and what else the user should know: (subject, text); the
            subject may be a pass.
        islands: What computes in float32 in front of a linear op, outside of exact forms, is kept
            float32 by the user, or has no proof: `edgeq.float_islands`.
        tail: What computes in float32 behind the last linear op, with its proofs.
        versions: Of edgeq and the packages that the bits depend on.
        memory: Of a device that the model was compiled for ahead of time.
        verified_on: Of such a device: the machine that its kernels were verified on instead.
        buckets: Where an integer input with one value for a sample has a known range, a timestep
            say: what tensors are like at which values.
        trajectory: For a diffusion model: images drawn with it and the float model, where the user
            had that done.
    """

    model: str
    target: str
    recipe: str
    recipe_text: str = ""
    verdicts: tuple[VerdictRow, ...] = ()
    bytes_float: int = 0
    bytes_deployed: int = 0
    weights_float: int = 0
    weights_deployed: int = 0
    metrics: tuple[MetricRow, ...] = ()
    noise: NoiseRow | None = None
    layers: tuple[Fidelity, ...] = ()
    histograms: tuple[ValueHistogram, ...] = ()
    softmaxes: tuple[SoftmaxRow, ...] = ()
    bits: tuple[BitChoice, ...] = ()
    kernels: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    operators: tuple[OperatorRow, ...] = ()
    passes: tuple[PassRow, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    islands: tuple[FloatRow, ...] = ()
    tail: tuple[FloatRow, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    memory: MemoryUse | None = None
    verified_on: str | None = None
    buckets: BucketTable | None = None
    trajectory: TrajectoryComparison | None = None

    @property
    def compared(self) -> int:
        """Elements compared, over all kinds of feeds."""
        return sum(row.compared for row in self.verdicts)

    @property
    def mismatches(self) -> int:
        """Elements that differ."""
        return sum(row.mismatches for row in self.verdicts)

    @property
    def unproven(self) -> tuple[OperatorRow, ...]:
        """Nodes without a proof."""
        return tuple(row for row in self.operators if row.kind == "unproven")


def render_json(report: Report) -> str:
    """Return `report.json`."""
    entry: dict[str, object] = {"schema_version": SCHEMA_VERSION}
    for item in dataclasses.fields(report):
        entry[item.name] = _plain(getattr(report, item.name))
    return json.dumps(entry, indent=1, ensure_ascii=True) + "\n"


def worst_first(layers: Iterable[Fidelity]) -> list[Fidelity]:
    """Return the layers by rising SQNR; those without noise come last, in graph order."""
    return sorted(layers, key=lambda item: math.inf if item.sqnr_db is None else item.sqnr_db)


def alike(layers: Iterable[Fidelity]) -> list[list[Fidelity]]:
    """Return the layers with those that hold the same values, moved, behind the first of them."""
    found: dict[object, list[Fidelity]] = {}
    for item in layers:
        moved = dataclasses.replace(item, name="")
        found.setdefault(item if item.sqnr_db is None else moved, []).append(item)
    return list(found.values())


def _plain(value: object) -> object:
    """Return a value that JSON can hold: no NaN, no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
