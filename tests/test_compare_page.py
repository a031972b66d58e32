"""`edgeq compare --html`: a page about two models, with the charts of a report."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from edgeq.cli import app
from edgeq.compare import compare_models
from edgeq.compare_page import Side, render_comparison
from edgeq.report import MetricRow
from tests.conftest import tiny_float_proto, tiny_proto
from tests.test_report import Page

FEEDS = [{"x": np.random.default_rng(n).normal(0, 1, (1, 2, 5, 5)).astype("f4")} for n in (1, 2)]


def other(proto, name, factor):
    """Return the model with an initializer multiplied."""
    model = ir.from_proto(proto)
    value = model.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
    return model


def text(rows, left="a", right="b"):
    page = render_comparison(Side(left, 4096), Side(right, 1024), rows)
    return " ".join("".join(Page(page).text).split())


def test_floats_show_how_far_apart_they_are():
    left, right = ir.from_proto(tiny_float_proto()), other(tiny_float_proto(), "v", 1.25)
    rows = compare_models(left, right, FEEDS, histograms=True)
    page = text(rows, "<float>", "quantized & co")
    assert "quantized & co against <float>" in page and "1 of 4 tensors differ" in page
    assert "the worst is y." in page and "First difference: tensor 'y', feed 0" in page
    last = rows[-1]
    assert f"{last.fidelity.sqnr_db:.2f} dB" in page and last.histogram is not None
    assert last.histogram.clip_low is None and sum(last.histogram.real) == pytest.approx(100)
    assert "% clipped" not in page and page.count("exact") >= 3


def test_codes_show_their_range():
    left, right = ir.from_proto(tiny_proto()), other(tiny_proto(), "conv_scale", 0.25)
    rows = compare_models(left, right, FEEDS, histograms=True)
    found = next(row for row in rows if row.fidelity.name == "conv")
    assert found.fidelity.qtype == "uint8" and found.histogram is not None
    assert found.histogram.clip_high == pytest.approx(0.02 * (255 - 130))
    assert found.histogram.clipped > 1 and "% clipped" in text(rows)


def test_the_same_model_has_no_difference():
    left, right = ir.from_proto(tiny_proto()), ir.from_proto(tiny_proto())
    rows = compare_models(left, right, FEEDS)
    assert "No bit differs." in text(rows) and all(row.histogram is None for row in rows)
    sides = Side("a", 1), Side("b", 1)
    assert render_comparison(*sides, rows) == render_comparison(*sides, rows)


def test_figures_of_bundles_stand_side_by_side(report):
    model = ir.from_proto(tiny_proto())
    rows = compare_models(model, model, FEEDS)
    full = dataclasses.replace(report, metrics=(MetricRow("top1", 80.25, 80.5),), recipe="mixed")
    page = Page(render_comparison(Side("a", 4096), Side("b", 1024, full), rows))
    text = "|".join(" ".join(page.text).split())
    for words in ("target|ort-cpu", "recipe|mixed", "top1|80.25", "weights|4.0|KiB|1.0|KiB"):
        assert words in text, words


def test_the_command_writes_the_page(folder):
    arguments = ["compare", "model.onnx", "model.onnx", "--inputs", "calibration.npz"]
    run = CliRunner().invoke(app, [*arguments, "--samples", "2", "--html", "page.html"])
    assert run.exit_code == 0 and "no bit differs" in run.stdout
    assert "No bit differs." in (folder / "page.html").read_text()
    again = CliRunner().invoke(app, [*arguments, "--html", "page.html"])
    assert again.exit_code != 0
    assert CliRunner().invoke(app, [*arguments, "--html", "page.html", "--force"]).exit_code == 0
