"""The report of a compilation, for people (`report.html`) and programs (`report.json`).

It holds no timings, dates or absolute paths: the same compilation gives the same bytes.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from edgeq.buckets import Buckets, BucketStatistics
from edgeq.fidelity import Fidelity
from edgeq.memory_use import MemoryUse
from edgeq.softmax_bias import SoftmaxRow
from edgeq.trajectory import TrajectoryComparison
from edgeq.trajectory_chart import draw_chart

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
class ProofRow:
    """Why the bits of one node are the same on every CPU."""

    node: str
    op_type: str
    kind: str
    detail: str


@dataclass(frozen=True)
class PassRow:
    """What one pass did: its step as written, how many rewrites, its notes."""

    name: str
    rewrites: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FloatRow:
    """A node that computes in float32, and why."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class MetricRow:
    """A figure of the deployed model; of the float one where it has it."""

    name: str
    deployed: float
    float_model: float | None = None


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
        layers: Every quantized tensor against the float model, in graph order.
        softmaxes: What rounding takes from the softmax of each attention, and what it got back.
        kernels: Operators of the runtime's optimized model, with their numbers.
        certificate: Every node's proof.
        passes: What was done, in order.
        notes: What was done on loading, and what else the user should know: (subject, text).
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
    layers: tuple[Fidelity, ...] = ()
    softmaxes: tuple[SoftmaxRow, ...] = ()
    kernels: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    certificate: tuple[ProofRow, ...] = ()
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
    def unproven(self) -> tuple[ProofRow, ...]:
        """Nodes without a proof."""
        return tuple(row for row in self.certificate if row.kind == "unproven")


@dataclass(frozen=True)
class LayerView:
    """A layer as the page shows it: shares of the histogram in percent."""

    name: str
    sqnr: str
    shares: tuple[float, ...]
    elements: int


def render_json(report: Report) -> str:
    """Return `report.json`."""
    entry: dict[str, object] = {"schema_version": SCHEMA_VERSION}
    for item in dataclasses.fields(report):
        entry[item.name] = _plain(getattr(report, item.name))
    return json.dumps(entry, indent=1, ensure_ascii=True) + "\n"


def render_html(report: Report) -> str:
    """Return `report.html`: one page that needs nothing else; every name is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["size"] = size_text
    template = environment.get_template("report.html.j2")
    return template.render(
        report=report,
        layers=worst_first(report.layers),
        kinds=_kinds(report),
        kernels=sorted(report.kernels.items(), key=lambda item: (-item[1], item[0])),
        widest=_widest_spread(report.buckets),
        chart=None if report.trajectory is None else draw_chart(report.trajectory),
    )


def worst_first(layers: tuple[Fidelity, ...]) -> list[LayerView]:
    """Return the layers by rising SQNR; those without noise come last, in graph order."""
    ordered = sorted(layers, key=lambda item: _rank(item.sqnr_db))
    return [
        LayerView(
            item.name,
            "exact" if item.sqnr_db is None else f"{item.sqnr_db:.2f}",
            tuple(round(100 * n / max(1, sum(item.off_by)), 3) for n in item.off_by),
            item.elements,
        )
        for item in ordered
    ]


def _widest_spread(table: BucketTable | None) -> list[BucketRow]:
    rows = () if table is None else table.rows
    return sorted(rows, key=lambda row: -row.statistics.spread)


def size_text(size: int) -> str:
    """Return a size for people.

    >>> size_text(512), size_text(10_362_167)
    ('512 B', '9.88 MiB')
    """
    if size < 1024:
        return f"{size} B"
    return f"{size / 2**10:.1f} KiB" if size < 2**20 else f"{size / 2**20:.2f} MiB"


def _rank(sqnr: float | None) -> float:
    return math.inf if sqnr is None else sqnr


def _kinds(report: Report) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for row in report.certificate:
        counts[row.kind] = counts.get(row.kind, 0) + 1
    return sorted(counts.items())


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
