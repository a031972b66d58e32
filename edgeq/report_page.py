"""`report.html`: one page that needs nothing else, no script and no network.

One section is one template under `templates/report/`, and one field of `Report`. Each answers a
question: safe to ship? where is accuracy lost? what runs where? what was done?
"""

from collections.abc import Sequence
from pathlib import Path

from edgeq.charts import fidelity_chart, histogram_chart, trajectory_chart
from edgeq.report import BucketRow, BucketTable, Report
from edgeq.report_view import (
    layer_views,
    layers_in_words,
    operator_groups,
    other_notes,
    real_text,
    size_text,
    sqnr_text,
    tiles,
    verdict,
)
from edgeq.value_histogram import ValueHistogram

SHOWN = 12  # of the worst tensors, before the reader asks for all


def render_html(report: Report) -> str:
    """Return the page; every name is escaped, and the same report gives the same bytes."""
    layers = layer_views(report.layers)
    marked = [layer.name for layer in layers[:5] if layer.sqnr != "exact"]
    return render(
        "report.html.j2",
        report=report,
        verdict=verdict(report),
        tiles=tiles(report),
        layers=layers,
        shown=SHOWN,
        in_words=layers_in_words(report.layers, "the float model"),
        fidelity=fidelity_chart(report.layers, marked) if report.layers else None,
        histograms=drawn(report.histograms),
        sides=("float", "quantized"),
        groups=operator_groups(report),
        notes=other_notes(report),
        kinds=_kinds(report),
        kernels=sorted(report.kernels.items(), key=lambda item: (-item[1], item[0])),
        widest=_widest_spread(report.buckets),
        steps=None if report.trajectory is None else trajectory_chart(report.trajectory),
    )


def drawn(histograms: Sequence[ValueHistogram]) -> list[tuple[ValueHistogram, str]]:
    """Return each histogram with its drawing."""
    return [(found, histogram_chart(found)) for found in histograms]


def render(template: str, **values: object) -> str:
    """Return a page; values are escaped, and a name that a template misses is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"size": size_text, "sqnr": sqnr_text, "real": real_text}
    return environment.get_template(template).render(values)


def _widest_spread(table: BucketTable | None) -> list[BucketRow]:
    rows = () if table is None else table.rows
    return sorted(rows, key=lambda row: -row.statistics.spread)


def _kinds(report: Report) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for row in report.operators:
        counts[row.kind] = counts.get(row.kind, 0) + 1
    return sorted(counts.items())
