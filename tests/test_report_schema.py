"""`report.json` is what its published schema says, and the schema is what the types say."""

import copy
import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from edgeq.buckets import Buckets, BucketStatistics
from edgeq.memory_use import BufferRow, MemoryUse
from edgeq.report import (
    BucketRow,
    BucketTable,
    FloatRow,
    MetricRow,
    NoiseRow,
    PassRow,
    render_json,
)
from edgeq.report_schema import report_schema, schema_text
from edgeq.softmax_bias import SoftmaxRow
from edgeq.trajectory import ImageFidelity, StepFidelity, TrajectoryComparison
from edgeq.value_histogram import ValueHistogram
from tests.test_report import BITS

PUBLISHED = Path(__file__).parent.parent / "docs" / "report.schema.json"


@pytest.fixture
def full(report):
    fidelity = ImageFidelity(None, 42.0, 41.0)
    statistics = BucketStatistics((1,), (-1.0,), (1.0,), (0.5,))
    return dataclasses.replace(
        report,
        metrics=(MetricRow("psnr", float("inf"), 3.0),),
        passes=(PassRow("cleanup", 3, ("folded",), "Clean"),),
        notes=(("load", "opset 9 became 21"),),
        islands=(FloatRow("softmax", "Softmax", "kept"),),
        histograms=(ValueHistogram("t", -1.0, 0.5, (50.0, 50.0), (40.0, 60.0), -1, 1, -2, 3, 1.5),),
        bits=(BITS,),
        noise=NoiseRow(None, 0.25, 3),
        softmaxes=(SoftmaxRow("attn", "beta", 0.9, 1.0, None, 3.0),),
        memory=MemoryUse(None, 1, 2, 3, 4, 5, (BufferRow("b", 0, 1, 2, 3),)),
        buckets=BucketTable(Buckets("t", 0, 9, 1), (BucketRow("x", statistics),)),
        trajectory=TrajectoryComparison(
            scheduler="DDIM", steps=1, samples=1, seed=0, path=(StepFidelity(9.0, fidelity),),
            end=fidelity,
        ),
    )  # fmt: skip


def errors(entry: object) -> list[str]:
    validator = jsonschema.Draft202012Validator(report_schema())
    return [error.message for error in validator.iter_errors(entry)]


def test_the_published_schema_is_the_one_of_the_types():
    text = "run `python -m edgeq.report_schema > docs/report.schema.json`"
    assert PUBLISHED.read_text() == schema_text(), text


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(report_schema())


def test_every_attribute_is_described():
    schema = report_schema()
    assert isinstance(schema["properties"], dict)
    missing = [n for n, found in schema["properties"].items() if "description" not in found]
    assert missing == ["schema_version"]


def test_reports_are_valid(report, full):
    for found in (report, full):
        assert errors(json.loads(render_json(found))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("model",), None),
        (("layers", 0, "elements"), 1.5),
        (("layers", 0, "off_by", 2), "1"),
        (("operators", 0, "kernel"), None),
        (("histograms", 0, "real"), [None, "x"]),
        (("notes", 0), ["only one"]),
        (("kernels", "Conv"), "1"),
        (("memory", "code"), 0.5),
        (("trajectory", "end", "psnr"), 1.0),
    ],
)
def test_what_differs_is_found(full, path, value):
    entry = json.loads(render_json(full))
    broken = place = copy.deepcopy(entry)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert errors(entry) == [] and len(errors(broken)) == 1
    del broken["model"]
    assert any("'model' is a required property" in message for message in errors(broken))
