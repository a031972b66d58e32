"""The page of `edgeq compare --html`: two models side by side, with the charts of a report."""

from collections.abc import Sequence

from edgeq.charts import fidelity_chart
from edgeq.compare import TensorComparison
from edgeq.report import alike, worst_first
from edgeq.report_page import SHOWN, drawn, render
from edgeq.report_view import Tile, Verdict, layer_views, layers_in_words

HISTOGRAMS = 12  # on a page, at most


def render_comparison(left: str, right: str, rows: Sequence[TensorComparison]) -> str:
    """Return the page; the same comparison gives the same bytes.

    Args:
        left: What the first model is called.
        right: What the second is called.
        rows: Every tensor that both have, in graph order; at least one.
    """
    layers = [row.fidelity for row in rows]
    views = layer_views(layers)
    by_name = {row.fidelity.name: row for row in rows}
    worst = [by_name[item.name].histogram for item, *_ in alike(worst_first(layers))]
    return render(
        "compare.html.j2",
        left=left,
        right=right,
        verdict=_verdict(rows),
        tiles=_tiles(rows),
        rows=rows,
        layers=views,
        shown=SHOWN,
        in_words=layers_in_words(layers, left),
        fidelity=fidelity_chart(layers, [v.name for v in views[:5] if v.sqnr != "exact"]),
        histograms=drawn([found for found in worst if found is not None][:HISTOGRAMS]),
        sides=(left, right),
    )


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
