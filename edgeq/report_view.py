"""What the page of a report shows, in words and shares: made of a `Report`, put into templates."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeq.fidelity import Fidelity, is_fine
from edgeq.report import MetricRow, OperatorRow, Report, alike, worst_first

Level = Literal["good", "bad", "plain"]
_REAL_FORMATS = ("float32", "float64", "float16")
# Kinds of proofs by which a float type gives the same bits everywhere.
_EXACT_FLOATS = {
    "exact sum": "integers held in floats, their sums exact",
    "ieee": "single IEEE operations",
    "table": "values of a table",
    "enumerated": "every input tried",
}


@dataclass(frozen=True)
class Verdict:
    """The first thing that a reader wants to know: a title, and a sentence or two."""

    level: Level
    title: str
    text: str


@dataclass(frozen=True)
class Tile:
    """A figure that stands out: what it is, its value, and what that is to be held against."""

    label: str
    value: str
    detail: str
    level: Level = "plain"


@dataclass(frozen=True)
class LayerView:
    """A tensor in the list of the worst.

    Attributes:
        place: In that list, from 1 on.
        name: Of the tensor.
        copies: Tensors that hold the same values in other places.
        sqnr: In dB, or `exact`.
        length: Of the bar of its SQNR, in percent of the best.
        qtype: Format of its codes; empty for a float tensor.
        shares: Of codes off by 0, 1, 2, 3, and 4 or more steps, in percent; empty where that says
            nothing.
    """

    place: int
    name: str
    copies: tuple[str, ...]
    sqnr: str
    length: float
    qtype: str
    shares: tuple[float, ...]


@dataclass(frozen=True)
class OperatorGroup:
    """Nodes that run alike: same operator, kernel, formats, kind of proof and reason for float."""

    op_type: str
    kernel: str
    formats: str
    kind: str
    float_reason: str
    count: int

    @property
    def computes(self) -> bool:
        """Whether it does more than to move data or to be part of another kernel."""
        absorbed = self.op_type in ("QuantizeLinear", "DequantizeLinear") and not self.kernel
        return not absorbed and self.kind != "data movement"


def verdict(report: Report) -> Verdict:
    """Return whether the bundle computes what was evaluated."""
    compared = f"{report.compared:,}"
    if not report.compared:
        return Verdict("bad", "Nothing was compared.", "There is no evidence to ship on.")
    if report.mismatches:
        return Verdict(
            "bad",
            f"{report.mismatches:,} of {compared} elements differ.",
            "What runs on the device is not what was evaluated: do not ship it.",
        )
    bits = f"All {compared} elements of quantized tensors and outputs are the simulator's"
    accuracy = "".join(f" {row.name}: {_against_float(row)}." for row in _measured(report)[:1])
    if report.unproven:
        return Verdict(
            "plain",
            f"No bit differs here, but {_nodes(len(report.unproven))} without a proof.",
            f"{bits}; on another CPU, what depends on those nodes may differ.{accuracy}",
        )
    if report.verified_on is not None:
        return Verdict(
            "good",
            f"Compiled for {report.verified_on}, the model gives the simulator's bits.",
            f"{bits}. The code for {report.target} is checked where it runs: edgeq check, on the"
            f" device or its emulator.{accuracy}",
        )
    proven = ", and every node has a proof for other CPUs" if report.operators else ""
    title = "What ships is what was evaluated: no bit differs."
    return Verdict("good", title, f"{bits}{proven}.{accuracy}")


def tiles(report: Report) -> list[Tile]:
    """Return the figures to decide by."""
    found = [
        Tile(
            "elements that differ",
            f"{report.mismatches:,}",
            f"of {report.compared:,} compared, bit by bit",
            "bad" if report.mismatches or not report.compared else "good",
        )
    ]
    found += [
        Tile(row.name, f"{row.deployed:.4g}", _against_float(row)) for row in _measured(report)
    ]
    found += [
        Tile("SQNR of the output", f"{row.deployed:.2f} dB", "signal to quantization noise")
        for row in report.metrics
        if row.name == "sqnr_db"
    ]
    if report.bytes_float and report.bytes_deployed:
        ratio = report.bytes_float / report.bytes_deployed
        detail = f"{ratio:.2f} times smaller than {size_text(report.bytes_float)}"
        found.append(Tile("size", size_text(report.bytes_deployed), detail))
    if report.memory is not None:
        detail = f"RAM of the workspace; {size_text(report.memory.flash)} of flash"
        found.append(Tile("device memory", size_text(report.memory.workspace), detail))
    if report.operators:
        proven = len(report.operators) - len(report.unproven)
        islands = f"{len(report.islands)} in float islands" if report.islands else "no float island"
        level: Level = "bad" if report.unproven or report.islands else "good"
        detail = f"of {len(report.operators)} nodes; {islands}"
        found.append(Tile("proven for every CPU", f"{proven}", detail, level))
    return found


def _measured(report: Report) -> list[MetricRow]:
    """Return the figures that the float model has too."""
    return [row for row in report.metrics if row.float_model is not None]


def _against_float(row: MetricRow) -> str:
    assert row.float_model is not None
    change, before = row.deployed - row.float_model, f"{row.float_model:.4g}"
    if not math.isfinite(change):
        return f"{before} in float"
    better = (change > 0) == row.higher_is_better
    size = f"{abs(change):.3g}"
    words = f"{size} {'better' if better else 'worse'} than" if size != "0" else "the same as"
    return f"{words} the float model's {before}"


def _nodes(count: int) -> str:
    return "one node is" if count == 1 else f"{count} nodes are"


def layer_views(layers: Sequence[Fidelity]) -> list[LayerView]:
    """Return the tensors, the worst first; those that hold the same values share a place."""
    best = max((item.sqnr_db for item in layers if item.sqnr_db is not None), default=0.0)
    return [
        LayerView(
            place,
            item.name,
            tuple(copy.name for copy in copies),
            sqnr_text(item.sqnr_db),
            _length(item.sqnr_db, best),
            item.qtype,
            () if is_fine(item.qtype) else _shares(item.off_by),
        )
        for place, (item, *copies) in enumerate(alike(worst_first(layers)), 1)
    ]


def _shares(counts: Sequence[int]) -> tuple[float, ...]:
    return tuple(round(100 * n / max(1, sum(counts)), 3) for n in counts)


def _length(sqnr: float | None, best: float) -> float:
    if sqnr is None:
        return 100.0
    return round(100 * max(0.0, sqnr) / best, 1) if best > 0 else 0.0


def layers_in_words(layers: Sequence[Fidelity], against: str) -> str:
    """Return how good most tensors are, and the worst."""
    noisy = [(item.sqnr_db, item.name) for item in layers if item.sqnr_db is not None]
    if not noisy:
        return "Every tensor is exact."
    found = sorted(sqnr for sqnr, _ in noisy)
    middle = found[len(found) // 2]
    low, worst = min(noisy)
    return (
        f"{len(layers)} tensors against {against}: half of them reach {middle:.1f} dB or"
        f" more; the worst, {worst}, {low:.1f} dB."
    )


def operator_groups(report: Report) -> list[OperatorGroup]:
    """Return the nodes by how they run: integer ones first, then the most frequent."""
    counts = Counter(_key(row) for row in report.operators)
    groups = [OperatorGroup(*key, count) for key, count in counts.items()]
    return sorted(groups, key=lambda group: (group.kind != "integer", -group.count))


def _key(row: OperatorRow) -> tuple[str, str, str, str, str]:
    formats = row.formats.replace("->", "\u2192").replace("*", "\u00d7")
    return row.op_type, row.kernel, formats, row.kind, _float_reason(row)


def _float_reason(row: OperatorRow) -> str:
    """Return why a node computes in a float type, without numbers: nodes that run alike meet."""
    if row.formats not in _REAL_FORMATS:
        return ""
    if row.float_reason and row.float_reason != f"{row.kind}: {row.detail}":
        return row.float_reason
    return _EXACT_FLOATS.get(row.kind, "")


def other_notes(report: Report) -> list[tuple[str, str]]:
    """Return the notes that no pass is shown with."""
    shown = {note for row in report.passes for note in row.notes}
    return [(subject, text) for subject, text in report.notes if text not in shown]


def sqnr_text(sqnr: float | None) -> str:
    """Return decibels for people; `exact` where there is no noise."""
    return "exact" if sqnr is None else f"{sqnr:.2f}"


def size_text(size: int) -> str:
    """Return a size for people.

    >>> size_text(512), size_text(10_362_167)
    ('512 B', '9.88 MiB')
    """
    if size < 1024:
        return f"{size} B"
    return f"{size / 2**10:.1f} KiB" if size < 2**20 else f"{size / 2**20:.2f} MiB"


def real_text(value: float) -> str:
    """Return a real with three digits and a minus sign.

    >>> real_text(-0.123456), real_text(3141592.6)
    ('\u22120.123', '3.14e+06')
    """
    return f"\u2212{-value:.3g}" if value < 0 else f"{value:.3g}"
