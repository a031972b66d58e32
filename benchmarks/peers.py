"""`peers.toml`, typed: what other tools reached on a case, and what is required of edgeq."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Lower bounds; None where nothing is required.

    Attributes:
        metric: Smallest metric.
        sqnr_db: Smallest SQNR of the first output.
        drop: Largest loss against the float model's metric.
    """

    metric: float | None = None
    sqnr_db: float | None = None
    drop: float | None = None

    def misses(self, reached: Figure, float_metric: float | None) -> list[str]:
        """Return one text per bound that `reached` does not meet."""
        bounds = [("metric", reached.metric, self.metric), ("SQNR", reached.sqnr_db, self.sqnr_db)]
        if self.drop is not None:
            assert float_metric is not None, "a drop is measured against a metric"
            bounds.append(("metric", reached.metric, float_metric - self.drop))
        return [
            f"{name} {value if value is None else round(value, 3)} < {bound:.2f}"
            for name, value, bound in bounds
            # A missing or undefined value is a miss: NaN compares false.
            if bound is not None and not (value is not None and round(value, 6) >= bound)
        ]


@dataclass(frozen=True)
class Standing:
    """One case of the table.

    Attributes:
        name: The zoo's name of the case.
        unit: Of the metric; empty where the case has no labels.
        best: Best metric and best SQNR of the tools that quantized every linear operator.
        required: Bounds by recipe.
    """

    name: str
    unit: str
    best: Figure
    required: Mapping[str, Required]


def read_standings() -> dict[str, Standing]:
    """Return the table by case, in its order."""
    return {
        name: _standing(name, entry) for name, entry in tomllib.loads(TABLE.read_text()).items()
    }


def _standing(name: str, entry: Mapping[str, Any]) -> Standing:
    peers = [peer for peer in entry["peers"].values() if "left_float" not in peer]
    best = Figure(
        max((p["metric"] for p in peers if "metric" in p), default=None),
        max((p["sqnr_db"] for p in peers if "sqnr_db" in p), default=None),
    )
    required = {recipe: Required(**bounds) for recipe, bounds in entry["required"].items()}
    return Standing(name, entry.get("unit", ""), best, required)
