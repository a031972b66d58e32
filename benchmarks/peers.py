"""`peers.toml`, typed: what other tools reached on a case, and what is required of edgeq."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeq.metrics import find_metric

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = Path(__file__).with_name("peers.toml")


@dataclass(frozen=True)
class Figure:
    """A result; None where it was not measured.

    Attributes:
        metric: Of the case, in its unit.
        sqnr_db: Of the first output against the float model.
    """

    metric: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Required:
    """Bounds; None where nothing is required.

    Attributes:
        metric: Worst metric: the smallest, or the largest where less is better.
        sqnr_db: Smallest SQNR of the first output.
        drop: Largest loss against the float model's metric.
    """

    metric: float | None = None
    sqnr_db: float | None = None
    drop: float | None = None

    def misses(
        self, reached: Figure, float_metric: float | None, higher_is_better: bool = True
    ) -> list[str]:
        """Return one text per bound that `reached` does not meet."""
        found = [
            _miss("metric", reached.metric, self.metric, higher_is_better),
            _miss("SQNR", reached.sqnr_db, self.sqnr_db),
        ]
        if self.drop is not None:
            assert float_metric is not None, "a drop is measured against a metric"
            bound = float_metric - self.drop if higher_is_better else float_metric + self.drop
            found.append(_miss("metric", reached.metric, bound, higher_is_better))
        return [text for text in found if text is not None]


def _miss(
    name: str, value: float | None, bound: float | None, higher_is_better: bool = True
) -> str | None:
    """Return how `value` misses `bound`; one that is missing or undefined misses any."""
    if bound is None:
        return None
    if value is None:
        return f"{name} not measured"
    rounded = round(value, 6)
    reached = rounded >= bound if higher_is_better else rounded <= bound  # NaN compares false
    return None if reached else f"{name} {value:.5g} {'<' if higher_is_better else '>'} {bound:.5g}"


@dataclass(frozen=True)
class Standing:
    """One case of the table.

    Attributes:
        name: The zoo's name of the case.
        unit: Of the metric; empty where it has none.
        decimals: Of the metric, as it is shown.
        higher_is_better: Whether more of the metric is.
        best: Best metric and best SQNR of the tools that quantized every operator.
        partly: Figures of the tools that left operators float.
        required: Bounds by recipe.
        peers_int4: Figures of the tools with 4-bit weights and 8-bit activations.
        failed_int4: Why there is no such figure, by tool.
        group: Which of the limits on latency holds.
        input_ranges: As `edgeq.compile` takes them.
        max_dim: As `edgeq.compile` takes it; None for its default.
    """

    name: str
    unit: str
    decimals: int
    higher_is_better: bool
    best: Figure
    partly: Mapping[str, Figure]
    required: Mapping[str, Required]
    group: str = "convolution"
    input_ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    max_dim: int | None = None
    peers_int4: Mapping[str, Figure] = field(default_factory=dict)
    failed_int4: Mapping[str, str] = field(default_factory=dict)


def read_standings() -> dict[str, Standing]:
    """Return the table by case, in its order."""
    return {
        name: _standing(name, entry) for name, entry in tomllib.loads(TABLE.read_text()).items()
    }


def _standing(name: str, entry: Mapping[str, Any]) -> Standing:
    better = "metric" not in entry or find_metric(entry["metric"]).higher_is_better
    peers, int4 = entry["peers"].items(), entry.get("peers_int4", {})
    whole = [peer for _, peer in peers if "left_float" not in peer]
    metrics = [peer["metric"] for peer in whole if "metric" in peer]
    best = Figure(
        (max if better else min)(metrics, default=None),
        max((peer["sqnr_db"] for peer in whole if "sqnr_db" in peer), default=None),
    )
    return Standing(
        name,
        entry.get("unit", ""),
        entry.get("decimals", 2),
        better,
        best,
        {n: Figure(p.get("metric"), p.get("sqnr_db")) for n, p in peers if "left_float" in p},
        {recipe: Required(**bounds) for recipe, bounds in entry["required"].items()},
        entry.get("group", "convolution"),
        {n: (low, high) for n, (low, high) in entry.get("input_ranges", {}).items()},
        entry.get("max_dim"),
        {n: Figure(**p) for n, p in int4.items() if isinstance(p, dict)},
        {n: p for n, p in int4.items() if isinstance(p, str)},
    )
