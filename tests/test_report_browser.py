"""The report as a browser shows it: without a script, in both themes, on a desk and on a phone."""

import dataclasses
import html
import re
from pathlib import Path

import numpy as np
import pytest

from edgeq.api import compile
from edgeq.buckets import Buckets, BucketStatistics
from edgeq.compare import TensorComparison
from edgeq.compare_page import Side, render_comparison
from edgeq.memory_use import BufferRow, MemoryUse
from edgeq.read_report import read_report
from edgeq.report import BucketRow, BucketTable, FloatRow, Report
from edgeq.report_page import render_html
from edgeq.softmax_bias import SoftmaxRow
from edgeq.trajectory import ImageFidelity, StepFidelity, TrajectoryComparison
from tests.chromium import DARK, run_chromium, served

DIGITS = Path(__file__).parent.parent / "samples" / "digits"
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAA"
    "AABJRU5ErkJggg=="
)
MEASURE = """<!doctype html><iframe src="{page}.html" style="width:{width}px;height:900px"></iframe>
<pre id="found"></pre><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument.documentElement;
  document.getElementById("found").textContent = `${{page.scrollWidth}} of ${{page.clientWidth}}`;
}};
</script>"""


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Report:
    """The report of a real compilation, with what only some compilations have."""
    folder = tmp_path_factory.mktemp("digits")
    bundle = compile(
        DIGITS / "digits.onnx",
        target="ort-cpu",
        calibration=DIGITS / "calibration.npz",
        evaluation=DIGITS / "evaluation.npz",
        metric="top1",
        samples=8,
        output=folder / "bundle",
    )
    found = read_report(bundle.path / "report.json")
    fidelity = ImageFidelity(31.5, 42.25, 40.125)
    row = BucketRow("x" * 80, BucketStatistics((1, 1), (-1.5, -2.0), (1.0, 2.5), (0.5, 1.5)))
    return dataclasses.replace(
        found,
        islands=(FloatRow("softmax", "Softmax", "kept by --keep-float"),),
        softmaxes=(SoftmaxRow("attention" * 9, "beta by head", 0.9835, 1.0, 30.56, 31.95),),
        memory=MemoryUse(4096, 12, 20480, 16384, 9999, 2, (BufferRow("b", 0, 16384, 0, 1),)),
        buckets=BucketTable(Buckets("timestep", 0, 999, 2), (row,)),
        trajectory=TrajectoryComparison(
            scheduler="DDIMScheduler",
            steps=3,
            samples=2,
            seed=0,
            path=tuple(StepFidelity(float(t), fidelity) for t in (999, 666, 333)),
            end=fidelity,
            grid=PIXEL,
        ),
    )


@pytest.fixture(scope="module")
def folder(full, tmp_path_factory) -> Path:
    found: Path = tmp_path_factory.mktemp("served")
    (found / "report.html").write_text(render_html(full))
    rows = [TensorComparison(layer, 3, None) for layer in full.layers]
    rows[0] = dataclasses.replace(rows[0], histogram=full.histograms[0])
    (found / "compare.html").write_text(
        render_comparison(Side("a" * 90, 9), Side("/long/path/" * 9, 99, full), rows)
    )
    return found


def test_every_section_is_there_with_its_numbers(folder, full):
    with served(folder) as address:
        dom, complaints = run_chromium(folder, "--dump-dom", f"{address}/report.html")
    assert complaints == []
    text = re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]*>", " ", dom, flags=re.S))
    sqnr = next(row.deployed for row in full.metrics if row.name == "sqnr_db")
    conv = [row for row in full.operators if row.kernel == "QLinearConv"]
    assert len(full.histograms) > 5 and len(conv) == 5
    for words in (
        "Is it safe to ship?", "no bit differs", f"of {full.compared:,} compared", "top1: ",
        f"{sqnr:.2f} dB", "times smaller than 80.9 KiB", "Memory of the device", "16,384",
        "Where is accuracy lost?", "Trajectory", "42.25", "t = 999", "Worst tensors first",
        f"{len(full.layers)} tensors against the float model", "Values of the worst tensors",
        "% clipped", "row sum before", "0.9835", "Tensors over timestep", "3.00",
        "What runs where?", "QLinearConv", "uint8 \u00d7 int8 \u2192 uint8", "kept by --keep-float",
        "Certificate", "ieee", "What was done?", "correct-bias", "qtype = uint8", "onnxruntime",
    ):  # fmt: skip
        assert words in text, words
    assert dom.count("<svg") == 2 + 2 + 1 + len(full.histograms)
    assert "nan" not in text and "None" not in text.replace("percentile = None", "")


@pytest.mark.parametrize(
    ("page", "width"), [("report", 320), ("report", 400), ("report", 1000), ("compare", 400)]
)
def test_nothing_is_wider_than_the_screen(folder, page, width):
    (folder / "measure.html").write_text(MEASURE.format(page=page, width=width))
    with served(folder) as address:
        options = ("--dump-dom", "--virtual-time-budget=5000", f"{address}/measure.html")
        dom, complaints = run_chromium(folder, *options)
    found = re.search(r'<pre id="found">(\d+) of (\d+)</pre>', dom)
    assert complaints == [] and found is not None and found[1] == found[2] == str(width)


def test_a_wide_page_would_be_found(folder):
    (folder / "report.html").rename(folder / "kept.html")
    (folder / "report.html").write_text('<p style="width:500px">wide')
    try:
        with pytest.raises(AssertionError):
            test_nothing_is_wider_than_the_screen(folder, "report", 400)
    finally:
        (folder / "kept.html").replace(folder / "report.html")


def test_themes_differ_and_scripts_do_not_matter(folder):
    """Charts too: the colours that a picture has are those of its theme."""
    from PIL import Image

    shots = {}
    text = html.escape((folder / "report.html").read_text())
    for name, options, sandbox in (
        ("light", (), ""),
        ("dark", (DARK,), ""),
        ("box", (), 'sandbox="allow-same-origin"'),
    ):
        frame = f'<iframe {sandbox} srcdoc="{text}" style="width:800px;height:2600px"></iframe>'
        (folder / f"{name}.html").write_text(f"<!doctype html>{frame}")
        path, address = folder / f"{name}.png", (folder / f"{name}.html").as_uri()
        run_chromium(folder, *options, "--window-size=820,2620", f"--screenshot={path}", address)
        inside = Image.open(path).convert("L").crop((20, 20, 800, 2600))
        shots[name] = np.asarray(inside, np.float64)
    assert np.array_equal(shots["light"], shots["box"])  # no script runs there
    assert shots["light"].mean() > 200 and shots["dark"].mean() < 60
    # Nothing keeps its colour: no white box in the dark.
    assert (np.abs(shots["light"] - shots["dark"]) < 1).mean() < 0.01
