"""Feeds made for a small language model: ids that its tables hold, lengths that it takes."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import edgeq
from edgeq.calibrate import calibrate
from edgeq.cli import app
from edgeq.errors import DataError
from edgeq.load import normalize
from edgeq.passing import Context
from edgeq.recipe import load_recipe
from edgeq.seen_inputs import InputObserver, symbols
from edgeq.stimulus_feeds import feeds_of_other_sizes, stimulus_inputs
from edgeq.targeting import Capabilities, Runner, find_target

WORDS, LONGEST = 11, 24
TEXT = f"""
<ir_version: 10, opset_import: ["" : 21]>
g (int64[N,L] ids, int64[N] topic, float[N,8] voice) => (float[N,L,{WORDS}] logits) {{
  length = Shape <start: int = 1, end: int = 2> (ids)
  scalar = Squeeze (length)
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  two = Constant <value_int = 2> ()
  positions = Range (zero, scalar, one)
  row = Gather (words, ids)
  place = Gather (places, positions)
  late = Add (topic, two)
  about = Gather (topics, late)
  tone = Add (about, voice)
  middle = Constant <value_ints = [1]> ()
  spread = Unsqueeze (tone, middle)
  sum = Add (row, place)
  all = Add (sum, spread)
  hidden = MatMul (all, v)
  r = Relu (hidden)
  logits = MatMul (r, w)
}}
"""
TABLES = {
    "words": (WORDS, 8),
    "places": (LONGEST, 8),
    "topics": (7, 8),
    "v": (8, 16),
    "w": (16, 11),
}


def model() -> ir.Model:
    generator = np.random.default_rng(0)
    loaded = ir.from_onnx_text(
        TEXT,
        initializers=[
            ir.tensor(generator.normal(0, 0.5, shape).astype(np.float32), name=name)
            for name, shape in TABLES.items()
        ],
    )
    return normalize(loaded, "the model").model


def samples(lengths: tuple[int, ...] = (9, 20, 14)) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [
        {
            "ids": generator.integers(2, 9, (1, length)),
            "topic": generator.integers(0, 3, 1),
            "voice": generator.normal(0, 1, (1, 8)).astype(np.float32),
        }
        for length in lengths
    ]


def calibrated(feeds: list[dict[str, np.ndarray]], **ranges: tuple[int, int]) -> Context:
    context = Context(load_recipe("int8", {}), Capabilities(), feeds, input_ranges=ranges)  # type: ignore[arg-type]
    context.reference = model()
    context.calibration = calibrate(context.reference, feeds, ["voice"])
    return context


def test_what_is_seen_of_inputs():
    observer = InputObserver(model())
    for feed in samples():
        observer.add(feed)
    seen = observer.result()
    assert dict(seen.sizes) == {"N": 1, "L": 20}
    assert seen.spans["ids"] == (2, 8) and set(seen.spans) == {"ids", "topic"}
    assert [symbols(value) for value in model().graph.inputs] == [("N", "L"), ("N",), ("N", None)]


@pytest.mark.parametrize(
    ("ranges", "ids", "topic"),
    [({}, (0, WORDS - 1), (-2, 4)), ({"ids": (3, 5)}, (3, 5), (-2, 4))],
)
def test_integers_stay_within_the_rows_that_they_select(ranges, ids, topic):
    inputs = {item.name: item for item in stimulus_inputs(calibrated(samples(), **ranges))}
    assert (inputs["ids"].low, inputs["ids"].high) == ids
    assert (inputs["topic"].low, inputs["topic"].high) == topic
    assert inputs["voice"].low < 0 < inputs["voice"].high
    assert inputs["ids"].shape == (1, 9)


def test_integers_that_select_nothing_stay_within_what_was_seen():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (int64[N] a, float[N] x) => (float[N] y) { b = Cast <to: int = 1> (a)  y = Mul (b, x) }
    """
    feeds = [
        {"a": np.array([3]), "x": np.ones(1, np.float32)},
        {"a": np.array([8]), "x": np.ones(1, np.float32)},
    ]
    context = calibrated(samples())
    context.reference = normalize(ir.from_onnx_text(text), "the model").model
    context.samples = feeds  # type: ignore[assignment]
    context.calibration = calibrate(context.reference, feeds, ["x"])
    (a, _) = stimulus_inputs(context)
    assert (a.low, a.high) == (3, 8)


def test_lengths_are_those_that_the_float_model_takes():
    context = calibrated(samples())
    assert context.reference is not None
    runner = find_target("ort-cpu").load(context.reference)
    found = list(feeds_of_other_sizes(stimulus_inputs(context), context, runner))
    assert [sizes["L"] for sizes, _ in found] == [10, 17, 3, 2]
    for sizes, feeds in found:
        assert len(feeds) == 2
        for feed in feeds:
            assert feed["ids"].shape == (sizes["N"], sizes["L"]) and feed["ids"].max() < WORDS


class Picky(Runner):
    """Takes even lengths, and makes nothing finite of 2."""

    def run(self, feeds):
        length = feeds["ids"].shape[1]
        if length % 2:
            raise DataError("odd")
        return {"logits": np.full(3, np.nan if length == 2 else 0, np.float32)}


def test_lengths_that_the_float_model_refuses_are_left_out():
    context = calibrated(samples())
    found = list(feeds_of_other_sizes(stimulus_inputs(context), context, Picky()))
    assert [sizes["L"] for sizes, _ in found] == [10]


def test_a_language_model_is_verified_at_other_lengths(tmp_path):
    (tmp_path / "windows").mkdir()
    for number, feed in enumerate(samples()):  # each file has a length of its own
        ids, topic, voice = feed["ids"], feed["topic"], feed["voice"]
        np.savez(tmp_path / f"windows/{number}.npz", ids=ids, topic=topic, voice=voice)
    bundle = edgeq.compile(model(), calibration=tmp_path / "windows", output=tmp_path / "bundle")
    report = json.loads((bundle.path / "report.json").read_text())
    verdicts = {row["feeds"]: row for row in report["verdicts"]}
    others = verdicts["inputs of other sizes (N 3, 2, 5; L 10, 17, 3, 2)"]
    assert others["mismatches"] == 0 and others["count"] == 8 and others["compared"] > 1000
    edgeq.check(bundle, taps=True).raise_for_mismatch()
    with np.load(bundle.path / "golden" / "inputs.npz") as golden:
        assert golden["ids"].min() == 0 and golden["ids"].max() == WORDS - 1


def test_an_id_without_a_row_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ir.save(model(), "model.onnx")
    feed = {name: array.repeat(4, axis=0) for name, array in samples((6,))[0].items()}
    feed["ids"][2, 3] = WORDS
    np.savez("calibration.npz", ids=feed["ids"], topic=feed["topic"], voice=feed["voice"])
    words = ["compile", "model.onnx", "--target", "ort-cpu", "--calibration", "calibration.npz"]
    found = CliRunner().invoke(app, [*words, "-o", "out", "-q"])
    assert found.exit_code == 2 and not Path("out").exists()
    assert "cannot run the model on ids [1, 6]" in found.stderr and "idx=11" in found.stderr
