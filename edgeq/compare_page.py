"""The page of `edgeq compare --html`: two models side by side, with the charts of a report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeq.charts import fidelity_chart
from edgeq.compare import TensorComparison
from edgeq.report import Report, alike, worst_first
from edgeq.report_page import SHOWN, drawn, render
from edgeq.report_view import Tile, Verdict, layer_views, layers_in_words, size_text

HISTOGRAMS = 12  # on a page, at most


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        name: What it is called.
        weights: Bytes of its weights.
        report: That of a bundle.
    """

    name: str
    weights: int
    report: Report | None = None


def render_comparison(left: Side, right: Side, rows: Sequence[TensorComparison]) -> str:
    """Return the page; the same comparison gives the same bytes.

    Args:
        left: The first model.
        right: The second.
        rows: Every tensor that both have, in graph order; at least one.
    """
    layers = [row.fidelity for row in rows]
    views = layer_views(layers)
    by_name = {row.fidelity.name: row for row in rows}
    worst = [by_name[item.name].histogram for item, *_ in alike(worst_first(layers))]
    return render(
        "compare.html.j2",
        left=left.name,
        right=right.name,
        figures=list(_side_by_side(left, right)),
        verdict=_verdict(rows),
        tiles=_tiles(rows),
        rows=rows,
        layers=views,
        shown=SHOWN,
        in_words=layers_in_words(layers, left.name),
        fidelity=fidelity_chart(layers, [v.name for v in views[:5] if v.sqnr != "exact"]),
        histograms=drawn([found for found in worst if found is not None][:HISTOGRAMS]),
        sides=(left.name, right.name),
    )


def _side_by_side(left: Side, right: Side) -> Iterator[tuple[str, str, str]]:
    """Yield what is known of both, by name: one cell is empty where one of them does not tell."""
    found = [_known(side) for side in (left, right)]
    for name in dict.fromkeys(name for known in found for name in known):
        yield name, found[0].get(name, ""), found[1].get(name, "")


def _known(side: Side) -> dict[str, str]:
    known = {}
    if side.report is not None:
        known = {"target": side.report.target, "recipe": side.report.recipe}
        known |= {row.name: f"{row.deployed:.4g}" for row in side.report.metrics}
        known["size"] = size_text(side.report.bytes_deployed)
    return {**known, "weights": size_text(side.weights)}


def _verdict(rows: Sequence[TensorComparison]) -> Verdict:
    compared = sum(row.fidelity.elements for row in rows)
    different = [row for row in rows if row.mismatches]
    if not different:
        text = f"All {compared:,} elements of {len(rows)} tensors are the same."
        return Verdict("good", "No bit differs.", text)
    noisy = [row.fidelity for row in rows if row.fidelity.sqnr_db is not None]
    if not noisy:
        title = f"{len(different)} of {len(rows)} tensors differ, none by a measurable amount."
    else:
        worst = worst_first(noisy)[0]
        title = f"{len(different)} of {len(rows)} tensors differ; the worst is {worst.name}."
    return Verdict("plain", title, f"First difference: {different[0].first}")


def _tiles(rows: Sequence[TensorComparison]) -> list[Tile]:
    compared = sum(row.fidelity.elements for row in rows)
    mismatches = sum(row.mismatches for row in rows)
    share = f"{100 * mismatches / max(1, compared):.3g} % of {compared:,} compared"
    tiles = [Tile("elements that differ", f"{mismatches:,}", share)]
    noisy = worst_first(row.fidelity for row in rows if row.fidelity.sqnr_db is not None)
    if noisy:
        worst, middle = noisy[0], noisy[len(noisy) // 2]
        tiles.append(Tile("worst SQNR", f"{worst.sqnr_db:.2f} dB", worst.name))
        tiles.append(Tile("SQNR of half of them", f"{middle.sqnr_db:.2f} dB", "or more"))
    last = rows[-1].fidelity
    value = "exact" if last.sqnr_db is None else f"{last.sqnr_db:.2f} dB"
    tiles.append(Tile("last tensor", value, last.name))
    return tiles
