"""The charts of a report, as SVG that stands in a page. The only module that imports matplotlib.

Colours are the page's variables and text has its font, so a chart follows its theme. There is no
identifier, link, clip path or date in it: several may stand in one page, and the same data give the
same bytes, whatever the user's matplotlibrc says.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from edgeq.fidelity import BINS, Fidelity, is_fine
from edgeq.trajectory import TrajectoryComparison
from edgeq.value_histogram import ValueHistogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = 760.0, 340.0  # points; a page shows the one that fits its screen
SMALL = 300.0  # of many side by side
_LEAST_SPAN = 10.0  # dB from bottom to top: a flat line shall look flat
_LEAST_SHARE = 1e-4  # percent, at the bottom of a histogram
_ABOVE, _BELOW, _BETWEEN, _LEFT, _RIGHT = 12.0, 30.0, 20.0, 48.0, 14.0  # of axes, in points
_SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: labels are laid out alike everywhere
    "font.size": 11.0,
    "path.simplify": False,
    "svg.fonttype": "none",
}
_UNWANTED = (
    (r"(?s)<!--.*?-->", ""),
    (r"</?g\b[^>]*>", ""),
    (r"font-family: [^;\"]*;? ?", ""),
    (r' transform="rotate\(-0 [^)]*\)"', ""),
    (r"\s*\n\s*", " "),
)
# What matplotlib draws in these colours, the page draws in its own.
_COLOURS = {
    "ink": "#010101",
    "quiet": "#010102",
    "line": "#010103",
    "real": "#010104",
    "accent": "#010105",
    "bad": "#010106",
    **{f"b{n}": f"#01020{n}" for n in range(BINS)},
}


@dataclass(frozen=True)
class Chart:
    """One drawing for screens of two widths; `<svg>` elements.

    Attributes:
        wide: For a desk.
        narrow: For a phone.
    """

    wide: str
    narrow: str


def fidelity_chart(layers: Sequence[Fidelity], marked: Sequence[str] = ()) -> Chart:
    """Draw SQNR and off-by-N of tensors, from input to output.

    Args:
        layers: In graph order; at least one.
        marked: Names of tensors that get a number, from 1 on, as in the list of the worst.
    """
    order = {name: n for n, name in reversed(list(enumerate(marked, 1)))}

    def draw(upper: "Axes", lower: "Axes") -> None:
        _draw_sqnr(upper, layers, order)
        _draw_off_by(lower, layers)
        lower.set_xlabel("tensors, from input to output", color=_COLOURS["quiet"])

    title = "SQNR and off-by-N of every tensor, from input to output"
    return _both(draw, (150.0, 60.0), title)


def _draw_sqnr(axes: "Axes", layers: Sequence[Fidelity], order: dict[str, int]) -> None:
    points = [(n, item.sqnr_db) for n, item in enumerate(layers) if item.sqnr_db is not None]
    low = min((value for _, value in points), default=0.0)
    high = max((value for _, value in points), default=0.0)
    high = max(high, low + _LEAST_SPAN)
    bottom, room = min(0.0, low), 0.18 * (high - min(0.0, low))
    xs = [n for n, _ in points for _ in range(3)]
    ys = [y for _, value in points for y in (bottom, value, math.nan)]
    axes.plot(xs, ys, color=_COLOURS["real"], linewidth=1.5, clip_on=False)
    _dots(axes, points, _COLOURS["accent"], size=6 if len(layers) < 60 else 3)
    for n, item in enumerate(layers):
        if item.name in order and item.sqnr_db is not None:
            axes.text(n, item.sqnr_db + room / 5, str(order[item.name]), ha="center", va="bottom",
                      color=_COLOURS["ink"], weight="bold")  # fmt: skip
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_ylim(bottom, high + room)
    axes.set_xticks([])
    axes.set_ylabel("SQNR (dB)", color=_COLOURS["quiet"])


def _dots(axes: "Axes", points: Sequence[tuple[float, float]], colour: str, *, size: float) -> None:
    """Draw round dots as lines of no length, in one path: markers would need an identifier."""
    xs = [x for x, _ in points for _ in range(3)]
    ys = [y for _, value in points for y in (value, value, math.nan)]
    axes.plot(xs, ys, color=colour, linewidth=size, solid_capstyle="round", clip_on=False)


def _draw_off_by(axes: "Axes", layers: Sequence[Fidelity]) -> None:
    edges = [n - 0.5 for n in range(len(layers) + 1)]
    shown = [replace(item, off_by=()) if is_fine(item.qtype) else item for item in layers]
    below = [0.0] * len(layers)
    for steps in range(BINS):
        counts = [item.off_by[steps] if item.off_by else 0 for item in shown]
        totals = [max(1, sum(item.off_by)) for item in shown]
        above = [b + 100 * c / t for b, c, t in zip(below, counts, totals, strict=True)]
        if any(counts):
            axes.stairs(above, edges, baseline=below, fill=True, color=_COLOURS[f"b{steps}"],
                        linewidth=0, clip_on=False)  # fmt: skip
        below = above
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100])
    axes.set_xticks([])
    axes.set_ylabel("off by (%)", color=_COLOURS["quiet"])


def histogram_chart(found: ValueHistogram) -> str:
    """Draw how values lie, float and quantized, and the range that the codes cover."""

    def draw(axes: "Axes") -> None:
        _draw_histogram(axes, found)

    return _svg(draw, SMALL, (120.0,), f"Values of {found.tensor}, float and quantized")


def _draw_histogram(axes: "Axes", found: ValueHistogram) -> None:
    from matplotlib.ticker import MaxNLocator

    edges = [found.low + n * found.width for n in range(len(found.real) + 1)]
    shown = [share for share in (*found.real, *found.quantized) if share > 0]
    floor = max(_LEAST_SHARE, min(shown, default=1.0) / 2)
    real, quantized = (
        [max(share, floor) for share in shares] for shares in (found.real, found.quantized)
    )
    axes.stairs(real, edges, baseline=floor, fill=True, color=_COLOURS["real"], linewidth=0,
                clip_on=False)  # fmt: skip
    axes.stairs(quantized, edges, baseline=floor, color=_COLOURS["accent"], linewidth=1.25,
                clip_on=False)  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(floor, 100)
    margin = 0.02 * (edges[-1] - edges[0])
    axes.set_xlim(edges[0] - margin, edges[-1] + margin)
    for end in (found.clip_low, found.clip_high):
        if end is None:
            continue
        axes.plot([end, end], [floor, 100], color=_COLOURS["bad"], linewidth=1.25,
                  linestyle=(0, (3, 2)), clip_on=False)  # fmt: skip
    ticks = [share for share in (1e-4, 1e-2, 1.0, 100.0) if share >= floor]
    axes.set_yticks(ticks, [f"{share:g} %" for share in ticks])
    axes.set_yticks([], minor=True)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def trajectory_chart(trajectory: TrajectoryComparison) -> Chart:
    """Draw PSNR from noise to images: the mean over images, and the worst of them."""
    path = trajectory.path
    mean = [step.fidelity.psnr_db for step in path]
    worst = [step.fidelity.worst_db for step in path]
    low = min((*mean, *worst), default=0.0)
    high = max(max((*mean, *worst), default=0.0), low + _LEAST_SPAN)

    def draw(axes: "Axes") -> None:
        axes.plot(worst, color=_COLOURS["real"], linewidth=1.5, clip_on=False)
        axes.plot(mean, color=_COLOURS["accent"], linewidth=2, clip_on=False)
        axes.set_xlim(0, max(1, len(path) - 1))
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        places = sorted({0, len(path) // 2, len(path) - 1}) if path else []
        axes.set_xticks(places, [f"t = {path[n].timestep:g}" for n in places])
        for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=False):
            label.set(horizontalalignment=side)
        axes.set_ylabel("PSNR (dB)", color=_COLOURS["quiet"])

    return _both(draw, (150.0,), "PSNR behind each evaluation, from noise to images")


def _both(draw: Callable[..., None], heights: Sequence[float], title: str) -> Chart:
    return Chart(*(_svg(draw, width, heights, title) for width in (WIDE, NARROW)))


def _svg(draw: Callable[..., None], width: float, heights: Sequence[float], title: str) -> str:
    """Return what `draw` puts on axes one below the other, of given heights, in points."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    total = _ABOVE + sum(heights) + _BETWEEN * (len(heights) - 1) + _BELOW
    file = io.StringIO()
    with matplotlib.rc_context(matplotlib.rcParamsDefault | _SETTINGS):
        figure = Figure(figsize=(width / 72, total / 72), dpi=72, frameon=False)
        found, top = [], total - _ABOVE
        for height in heights:
            top -= height
            box = (_LEFT / width, top / total, (width - _LEFT - _RIGHT) / width, height / total)
            found.append(_bare(figure.add_axes(box, frameon=True)))
            top -= _BETWEEN
        draw(*found)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    return _for_page(file.getvalue(), title)


def _bare(axes: "Axes") -> "Axes":
    """Leave a line at the bottom and a faint grid: marks would need identifiers."""
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_COLOURS["line"])
    axes.tick_params(labelcolor=_COLOURS["quiet"], bottom=False, left=False)
    axes.grid(axis="y", color=_COLOURS["line"], linewidth=0.75, clip_on=False)
    axes.set_axisbelow(True)
    return axes


def _for_page(text: str, title: str) -> str:
    """Return what matplotlib wrote without what belongs to files, in the page's colours."""
    size = re.search(r'viewBox="([^"]*)"', text)
    assert size is not None
    body = text[text.index("<g ") : text.rindex("</svg>")]
    for pattern, instead in _UNWANTED:
        body = re.sub(pattern, instead, body)
    body = re.sub(r'"[^"]*"', _short, body)
    for name, colour in _COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    return f'<svg viewBox="{size[1]}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _short(attribute: "re.Match[str]") -> str:
    """Return an attribute with its numbers to a tenth of a point."""
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", attribute[0])
