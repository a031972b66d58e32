"""Charts: valid SVG that follows the page's theme, the same bytes whatever the user's settings."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from edgeq.charts import NARROW, WIDE, fidelity_chart, histogram_chart, trajectory_chart
from edgeq.fidelity import Fidelity
from edgeq.trajectory import ImageFidelity, StepFidelity, TrajectoryComparison
from edgeq.value_histogram import ValueHistogram

LAYERS = (
    Fidelity("good", 41.5, (90, 10, 0, 0, 0), 100),
    Fidelity('bad "<&>', -3.0, (10, 40, 30, 15, 5), 100),
    Fidelity("float", 30.0, (), 100),
    Fidelity("exact", None, (100, 0, 0, 0, 0), 100),
)
VALUES = ValueHistogram(
    "$a_b$ <x>", -1.0, 0.5, (0.0, 50.0, 49.9999, 1e-4), (0.0, 60.0, 40.0, 0.0), -1, 0.5, -2, 3, 0.1
)
TRAJECTORY = TrajectoryComparison(
    scheduler="DDIM", steps=2, samples=1, seed=0, end=ImageFidelity(1.0, 2.0, 3.0),
    path=tuple(StepFidelity(t, ImageFidelity(30.0, 40.0 - t, 39.0 - t)) for t in (2.0, 1.0)),
)  # fmt: skip


def drawings() -> list[str]:
    charts = [fidelity_chart(LAYERS, ['bad "<&>']), trajectory_chart(TRAJECTORY)]
    return [histogram_chart(VALUES), *(d for c in charts for d in (c.wide, c.narrow))]


@pytest.mark.parametrize("drawing", drawings(), ids=["values", "wide", "narrow", "path", "path n"])
def test_drawings_stand_in_a_page(drawing):
    root = ElementTree.fromstring(drawing)
    attributes = [(name, value) for node in root.iter() for name, value in node.items()]
    assert not {name for name, _ in attributes} & {"id", "href", "clip-path", "font-family"}
    assert "url(" not in drawing and "#" not in drawing.replace("&#", "")  # no colour of its own
    assert "font-family" not in drawing and "nan" not in drawing
    assert root.get("role") == "img" and root.get("aria-label")
    assert len(drawing) < 20_000


def test_charts_come_in_two_widths():
    chart = fidelity_chart(LAYERS)
    boxes = [ElementTree.fromstring(d).get("viewBox") for d in (chart.wide, chart.narrow)]
    assert [float(str(box).split()[2]) for box in boxes] == [WIDE, NARROW]


def test_the_worst_are_numbered():
    texts = [node.text for node in ElementTree.fromstring(fidelity_chart(LAYERS, ["good"]).wide)]
    assert texts.count("1") == 1
    texts = [node.text for node in ElementTree.fromstring(fidelity_chart(LAYERS).wide)]
    assert texts.count("1") == 0


def test_labels_keep_their_digits():
    texts = [node.text for node in ElementTree.fromstring(histogram_chart(VALUES))]
    assert "0.01 %" in texts and "100 %" in texts


def test_the_same_bytes_whatever_the_settings():
    before = drawings()
    settings = {"font.size": 30.0, "svg.fonttype": "path", "axes.grid": True, "lines.marker": "o"}
    with matplotlib.rc_context(settings):
        assert drawings() == before


def test_one_tensor_is_a_chart_too():
    assert "<svg" in fidelity_chart(LAYERS[3:]).wide and "<svg" in fidelity_chart(LAYERS[2:3]).wide


def test_matplotlib_is_imported_for_charts_alone():
    script = "import sys, edgeq, edgeq.cli, edgeq.bundle; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
