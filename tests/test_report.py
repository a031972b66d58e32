"""The report: whole, escaped, self-contained, the same bytes for the same compilation."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeq.bit_choice import BitChoice
from edgeq.fidelity import Fidelity, FidelityMeter, sqnr_db
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import UINT8
from edgeq.read_report import read_report
from edgeq.report import (
    FloatRow,
    MetricRow,
    NoiseRow,
    OperatorRow,
    PassRow,
    VerdictRow,
    render_json,
)
from edgeq.report_page import render_html
from edgeq.report_view import layer_views, operator_groups, verdict
from edgeq.softmax_bias import SoftmaxRow


def f32(values: object) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def u8(values: object) -> NDArray[np.uint8]:
    return np.array(values, np.uint8)


BITS = BitChoice(
    layer="conv",
    op_type="Conv",
    weight="int3",
    activation="uint6",
    noise=0.00123,
    weight_count=1280,
    weight_bytes=640,
    bit_operations=1_234_567,
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks nesting, and collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_well_formed_and_needs_nothing_else(report):
    text = render_html(report)
    page = Page(text)
    assert not set(page.tags) & {"script", "link", "img", "iframe"}
    links = {str(value) for name, value in page.attributes if name in ("src", "href")}
    identifiers = [f"#{value}" for name, value in page.attributes if name == "id"]
    assert links <= set(identifiers) and len(identifiers) == len(set(identifiers))
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not {"url(", "http:", "https:", "@import"} & set(
        re.findall(r"url\(|https?:|@import", text)
    )


def test_names_are_escaped(report):
    text = render_html(report)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "worse &amp; &lt;b&gt;" in text


def test_the_worst_tensor_comes_first(report):
    text = render_html(report)
    table = text[text.index("Worst tensors first") :]
    assert table.index("worse &amp;") < table.index(">better<") < table.index(">same<")
    assert 'style="width:40.0%"' in text


def test_every_section_says_something(report):
    full = dataclasses.replace(
        report,
        metrics=(MetricRow("top1", 80.25, 80.5), MetricRow("sqnr_db", 30.5)),
        passes=(PassRow("cleanup", 3, ("folded", "removed")),),
        notes=(("load", "opset 9 became 21"), ("cleanup", "folded")),
        islands=(FloatRow("softmax", "Softmax", "kept by name"),),
        tail=(FloatRow("decode", "Mul", "ieee: one operation"),),
        bits=(BITS,),
        noise=NoiseRow(37.5, 0.6875, 32),
    )
    text = "".join(Page(render_html(full)).text)
    for words in ("80.25", "80.5", "cleanup", "folded", "opset 9 became 21", "kept by name",
                  "ieee: one operation", "QLinearConv", "bound 12345", "0.1.0", "qtype", "3.9 KiB",
                  "4.00", "int3", "uint6", "37.50 dB on 32", "69 %", "0.0012", "640 B", "1,234,567",
                  "uint8 \u00d7 int8"):  # fmt: skip
        assert words in text, words
    assert text.count("folded") == 1


def test_each_softmax_is_shown_before_and_after_its_correction(report, tmp_path):
    rows = (
        SoftmaxRow("attn/y", "beta by head", 0.9835, 1.0, 30.56, 31.95),
        SoftmaxRow("exact", "none", 1.0, 1.0, None, None),
    )
    full = dataclasses.replace(report, softmaxes=rows)
    text = "".join(Page(render_html(full)).text)
    for words in ("attn/y", "beta by head", "0.9835", "1.0000", "30.56", "31.95"):
        assert words in text, words
    assert "row sum before" in text and "row sum before" not in render_html(report)
    (tmp_path / "report.json").write_text(render_json(full))
    assert read_report(tmp_path / "report.json").softmaxes == rows


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((), "Nothing was compared."),
        ((VerdictRow("samples", 1, 1, 10, 3),), "3 of 10 elements differ."),
        ((VerdictRow("samples", 1, 1, 10, 0),), "no bit differs"),
    ],
)
def test_the_verdict_is_said_first(report, rows, says):
    text = "".join(Page(render_html(dataclasses.replace(report, verdicts=rows))).text)
    assert says in text and text.index(says) < text.index("Bits compared")


@pytest.mark.parametrize(
    ("changes", "level", "says"),
    [
        ({}, "good", "every node has a proof"),
        ({"verified_on": "tvm-x86-64"}, "good", "is checked where it runs"),
        ({"operators": (OperatorRow("a", "B", "unproven", "?"),)}, "plain", "may differ"),
        ({"metrics": (MetricRow("top1", 97.0, 98.5),)}, "good", "top1: 1.5 worse than"),
        ({"metrics": (MetricRow("nll", 1.25, 1.5, False),)}, "good", "nll: 0.25 better than"),
        ({"metrics": (MetricRow("top1", 97.0, 97.0),)}, "good", "top1: the same as"),
        ({"metrics": (MetricRow("psnr", 30.0, float("inf")),)}, "good", "psnr: inf in float"),
    ],
)
def test_the_verdict_says_what_a_reader_decides_by(report, changes, level, says):
    found = verdict(dataclasses.replace(report, **changes))
    assert found.level == level and says in found.text


def test_tensors_that_hold_the_same_values_share_a_row(report):
    row = Fidelity("a", 20.0, (9, 1, 0, 0, 0), 10, "uint8")
    fine = Fidelity("fine", 60.0, (0, 0, 0, 0, 10), 10, "uint16")
    layers = (fine, row, dataclasses.replace(row, name="b"), Fidelity("c", None, (), 10))
    views = layer_views(layers)
    assert [(v.place, v.name, v.copies) for v in views] == [
        (1, "a", ("b",)), (2, "fine", ()), (3, "c", ()),
    ]  # fmt: skip
    assert views[0].shares == (90.0, 10.0, 0.0, 0.0, 0.0) and views[0].length == 33.3
    assert views[1].shares == () and views[1].qtype == "uint16" and views[2].sqnr == "exact"
    text = "".join(Page(render_html(dataclasses.replace(report, layers=layers))).text)
    assert "moved: b" in text and "uint16" in text


def test_operators_that_run_alike_share_a_row(report):
    rows = (
        OperatorRow("q", "QuantizeLinear", "ieee", "", "", "float32 -> uint8"),
        OperatorRow("m1", "Mul", "ieee", "x", "Mul", "float32", "ieee: x"),
        OperatorRow("m2", "Mul", "ieee", "y", "Mul", "float32", "ieee: y"),
        OperatorRow("m3", "Mul", "ieee", "y", "Mul", "float32", "kept by --keep-float"),
        OperatorRow("c", "Conv", "integer", "z", "QLinearConv", "uint8 * int8 -> uint8"),
    )
    groups = operator_groups(dataclasses.replace(report, operators=rows))
    assert [(g.op_type, g.count, g.float_reason, g.computes) for g in groups] == [
        ("Conv", 1, "", True),
        ("Mul", 2, "single IEEE operations", True),
        ("QuantizeLinear", 1, "", False),
        ("Mul", 1, "kept by --keep-float", True),
    ]


def test_the_same_report_gives_the_same_bytes(report):
    assert render_html(report) == render_html(report)
    assert render_json(report) == render_json(report)


def test_json_holds_everything(report):
    entry = json.loads(render_json(report))
    assert entry["schema_version"] == 1
    assert {f.name for f in dataclasses.fields(report)} == set(entry) - {"schema_version"}
    assert entry["layers"][1]["off_by"] == [10, 40, 30, 15, 5]


def test_json_has_no_nan(report):
    odd = dataclasses.replace(report, metrics=(MetricRow("psnr", float("inf")),))
    assert json.loads(render_json(odd))["metrics"][0]["deployed"] is None
    assert "Infinity" not in render_json(odd)


def test_fidelity_of_codes():
    meter = FidelityMeter("t", QParams(UINT8, f32(0.5), np.array(10, np.int32)))
    reference = f32([[0, 1, 2, 3, 4, -100]])
    meter.add(reference, u8([[10, 12, 15, 18, 30, 0]]))
    found = meter.result()
    # Nearest codes: 10, 12, 14, 16, 18, 0 (saturated: no step away, yet noise).
    assert found.off_by == (3, 1, 1, 0, 1) and found.elements == 6
    noise = 0.5**2 + 1.0**2 + 6.0**2 + 95.0**2
    assert found.sqnr_db == sqnr_db(10030.0, noise)


def test_fidelity_accumulates():
    once, twice = FidelityMeter("t"), FidelityMeter("t")
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    y = x + np.float32(0.01)
    once.add(x, y)
    twice.add(x[:20], y[:20])
    twice.add(x[20:], y[20:])
    assert once.result().elements == twice.result().elements == 64
    assert once.result().sqnr_db == pytest.approx(twice.result().sqnr_db, rel=1e-12)
    assert once.result().off_by == ()


@pytest.mark.parametrize(("signal", "noise"), [(0, 1), (1, 0), (0, 0), (np.inf, 1), (1, np.nan)])
def test_sqnr_of_nothing_is_none(signal, noise):
    assert sqnr_db(signal, noise) is None
