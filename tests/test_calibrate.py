"""Calibration: what it sees, that it streams, and what it says of bad samples."""

import gc
import re
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

import edgeq.calibrate
from edgeq.buckets import Buckets, find_buckets
from edgeq.calibrate import Calibration, calibrate
from edgeq.errors import DataError, ModelError
from edgeq.feeds import InputSpec
from edgeq.graph import to_bytes
from edgeq.runtime import make_session, run
from edgeq.statistics import Observer

VALUES = ("x", "conv", "relu", "flat", "y")


class Generated:
    """Samples made when they are asked for."""

    def __init__(self, count: int, shape: tuple[int, ...] = (1, 2, 5, 5)) -> None:
        self.count, self.shape, self.iterations = count, shape, 0

    def __iter__(self):
        self.iterations += 1
        for seed in range(self.count):
            generator = np.random.default_rng(seed % 10)
            yield {"x": generator.normal(size=self.shape).astype(np.float32)}


def as_bytes(calibration: Calibration) -> dict[str, tuple[bytes, ...]]:
    return {
        name: (
            np.array([s.low, s.high, s.average_low, s.average_high]).tobytes(),
            s.histogram.counts.tobytes(),
            s.histogram.edges.tobytes(),
            s.channel_low.tobytes(),
            s.channel_high.tobytes(),
            s.channel_mean.tobytes(),
            s.channel_square.tobytes(),
        )
        for name, s in calibration.statistics.items()
    }


@pytest.fixture
def model(tiny_float):
    return ir.from_proto(tiny_float)


def test_values_are_those_of_the_float_model(model):
    before = to_bytes(model)
    found = calibrate(model, Generated(7), VALUES)
    assert to_bytes(model) == before
    assert found.samples == 7 and list(found.statistics) == list(VALUES)
    observers = {name: Observer() for name in VALUES}
    for feed in Generated(7):
        x = feed["x"]
        y = run(make_session(model), feed)["y"]
        observers["x"].add(x)
        observers["y"].add(y)
    for name in ("x", "y"):
        expected = observers[name].result()
        seen = found.statistics[name]
        assert (seen.low, seen.high, seen.count) == (expected.low, expected.high, expected.count)
        assert seen.histogram.counts.tobytes() == expected.histogram.counts.tobytes()
    relu, conv = found.statistics["relu"], found.statistics["conv"]
    assert relu.low == 0 and relu.histogram.zeros > 0
    assert relu.channel_high.tolist() == np.maximum(conv.channel_high, 0).tolist()


def test_same_samples_same_bytes(model):
    first, second = (calibrate(model, Generated(5), VALUES) for _ in range(2))
    assert as_bytes(first) == as_bytes(second) and len(as_bytes(first)) == 5
    assert first.digest == second.digest
    changed = list(Generated(5))
    changed[3]["x"][0, 1, 2, 3] += 1
    for other in (Generated(4), changed):
        assert calibrate(model, other, VALUES).digest != first.digest


def test_several_sweeps_give_the_same(model, monkeypatch):
    whole = calibrate(model, Generated(5), VALUES)
    monkeypatch.setattr(edgeq.calibrate, "TAPPED_BYTES", 125)  # conv, relu, flat: 108 each; y: 16
    samples, steps = Generated(5), []
    parts = calibrate(model, samples, VALUES, progress=lambda *args: steps.append(args))
    assert as_bytes(parts) == as_bytes(whole) and parts.digest == whole.digest
    assert samples.iterations == 1 + 3  # the first sample, to size the values; then the sweeps
    assert steps == [("calibrate", done, 15) for done in range(1, 16)]


def test_batches_see_the_same_extremes(model):
    single, batched = (calibrate(model, Generated(7), VALUES, batch=b) for b in (1, 3))
    assert single.samples == batched.samples == 7 and single.digest == batched.digest
    for name in VALUES:
        a, b = single.statistics[name], batched.statistics[name]
        np.testing.assert_allclose([a.low, a.high], [b.low, b.high], rtol=1e-5, atol=1e-6)
        assert a.count == b.count
    assert single.statistics["x"].low == batched.statistics["x"].low


def test_batches_hold_windows_of_one_length():
    """One value per token; lengths change within the calibration set."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        windows (float[N, T] x) => (float[N, T] y) { y = Neg (x) }"""
    )
    lengths = [3, 3, 3, 3, 7, 1, 1, 2]
    feeds = [{"x": np.full((1, n), i, np.float32)} for i, n in enumerate(lengths)]
    single, batched = (calibrate(model, feeds, ["x", "y"], batch=b) for b in (1, 3))
    assert single.samples == batched.samples == 8 and single.digest == batched.digest
    for found in (single, batched):
        y = found.statistics["y"]
        assert (y.low, y.high, y.count) == (-7, 0, sum(lengths))


def test_progress_without_a_count(model):
    steps = []
    calibrate(model, list(Generated(3)), ["y"], progress=lambda *args: steps.append(args))
    assert steps == [("calibrate", done, None) for done in (1, 2, 3)]


def test_camera_frames_are_fed_as_float(model):
    frames = [
        {"x": np.random.default_rng(i).integers(0, 256, (1, 2, 5, 5), np.uint8)} for i in (0, 1)
    ]
    real = [{"x": frame["x"].astype(np.float32)} for frame in frames]
    a, b = (calibrate(model, samples, VALUES) for samples in (frames, real))
    assert as_bytes(a) == as_bytes(b) and a.digest != b.digest
    levels = a.statistics["x"].levels
    assert levels is not None and levels.counts.sum() == 100


@pytest.mark.parametrize(
    ("rule", "place", "bad", "message"),
    [
        ("NaN", 2, np.nan, r"value 'x' holds NaN on calibration sample 2"),
        ("infinity", 0, np.inf, r"value 'x' holds an infinity on calibration sample 0"),
        (
            "overflow inside",
            1,
            3e38,
            r"value 'conv' holds (NaN|an infinity) on calibration sample 1",
        ),
    ],
)
def test_not_finite(model, rule, place, bad, message):
    feeds = list(Generated(4))
    feeds[place]["x"][0, :, 1:4, 1:4] = bad
    with pytest.raises(DataError, match=message):
        calibrate(model, feeds, ["conv"] if rule == "overflow inside" else ["x"])


def test_nothing_to_calibrate_with(model):
    with pytest.raises(DataError, match="the calibration set is empty"):
        calibrate(model, [], VALUES)


def test_a_set_that_shrinks(model, monkeypatch):
    monkeypatch.setattr(edgeq.calibrate, "TAPPED_BYTES", 125)

    class Shrinking(Generated):
        def __iter__(self):
            yield from super().__iter__()
            self.count -= 1

    with pytest.raises(DataError, match="gave 5 samples, then 3"):
        calibrate(model, Shrinking(5), VALUES)


def test_unknown_value(model):
    with pytest.raises(ModelError, match=re.escape("cannot observe 'nothing'")):
        calibrate(model, Generated(1), ["conv", "nothing"])


def test_no_values(model):
    found = calibrate(model, Generated(3), [])
    assert found.samples == 3 and dict(found.statistics) == {}


def test_memory_does_not_grow_with_samples(model):
    shape = (1, 2, 64, 64)
    calibrate(model_without_tail(model), Generated(2, shape), ["x", "conv", "relu"])

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        calibrate(model_without_tail(model), Generated(count, shape), ["x", "conv", "relu"])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(10), peak(100)
    assert few > 64 * 64 * 4 * 2
    assert many < 1.1 * few  # what Python has yet to collect; one array kept is ten times that


def model_without_tail(model: ir.Model) -> ir.Model:
    """Conv - Relu on images of any size."""
    copy = model.clone()
    relu = next(node for node in copy.graph if node.op_type == "Relu")
    copy.graph.outputs[:] = relu.outputs
    copy.graph.inputs[0].shape = ir.Shape(["batch", 2, "height", "width"])
    for node in copy.graph:
        for out in node.outputs:
            out.shape = None
    relu.outputs[0].shape = ir.Shape(["batch", 3, "h", "w"])
    relu.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    for node in reversed(list(copy.graph)):
        if node.op_type in ("Flatten", "Gemm"):
            copy.graph.remove(node, safe=True)
    return copy


def by_time(steps, batch=1):
    """Return samples whose size grows with an integer input."""
    generator = np.random.default_rng(0)
    return [
        {
            "x": (t + 1) * generator.normal(size=(batch, 2, 5, 5)).astype(np.float32),
            "t": np.arange(t, t + batch, dtype=np.int64),
        }
        for t in steps
    ]


@pytest.fixture
def timed(model):
    t = ir.Value(name="t", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch"]))
    model.graph.inputs.append(t)
    made = ir.node("Cast", [t], attributes={"to": ir.DataType.FLOAT}, name="cast")
    made.outputs[0].name = "real"
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(made)
    model.graph.outputs.append(made.outputs[0])
    return model


def test_statistics_by_the_value_of_an_input(timed):
    buckets = Buckets("t", 0, 99, 5)
    feeds = by_time(range(40, 100))
    found = calibrate(timed, feeds, ["x", "y", "real"], buckets=buckets)
    assert found.buckets == buckets
    x, real = found.statistics["x"].buckets, found.statistics["real"].buckets
    assert x is not None and real is not None
    assert x.count == (0, 0, 1000, 1000, 1000) and x.low[:2] == x.high[:2] == x.rms[:2] == (0, 0)
    for place, part in ((2, feeds[:20]), (3, feeds[20:40]), (4, feeds[40:])):
        values = np.stack([feed["x"] for feed in part]).astype(np.float64)
        assert (x.low[place], x.high[place]) == (values.min(), values.max())
        assert x.rms[place] == pytest.approx(np.sqrt((values**2).mean()), rel=1e-12)
    assert real.low[2:] == (40, 60, 80) and real.high[2:] == (59, 79, 99)
    assert x.spread == pytest.approx(x.rms[4] / x.rms[2]) and x.spread > 1.5
    without = calibrate(timed, feeds, ["x"]).statistics["x"]
    assert without.buckets is None and without.high == found.statistics["x"].high


def test_feeds_in_several_buckets_count_in_none(timed):
    found = calibrate(
        timed, by_time([3, 4, 18, 90], batch=4), ["x"], buckets=Buckets("t", 0, 99, 5)
    )
    seen = found.statistics["x"].buckets
    assert seen is not None and seen.count == (400, 0, 0, 0, 200)


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(-1, None), (0, 0), (49, 0), (50, 1), (949, 18), (950, 19), (999, 19), (1000, None)],
)
def test_buckets_are_equal_parts(value, bucket):
    assert Buckets("t", 0, 999).of({"t": np.array([value])}) == bucket


def test_buckets_need_one_integer_for_a_sample_and_its_range():
    kind, spans = np.dtype(np.int64), (0, 999)
    specs = [InputSpec("x", np.dtype(np.float32), (None, 3)), InputSpec("t", kind, (None,))]
    tokens = InputSpec("ids", kind, (None, None), (0, 64))
    assert find_buckets([*specs, tokens]) is None
    assert find_buckets([tokens, InputSpec("t", kind, (None,), spans)]) == Buckets("t", 0, 999)
    few = InputSpec("label", kind, (), (1, 10))
    assert find_buckets([few]) == Buckets("label", 1, 10, 10)
