"""Samples in every form that users have them: the same feeds, as often as needed."""

import gc
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.data import InputSpec, Samples, input_specs, open_samples
from edgeq.errors import ModelError

F4, U1, I8 = (np.dtype(name) for name in ("float32", "uint8", "int64"))
X = InputSpec("x", F4, (None, 2, 3))
FRAME = InputSpec("x", U1, (None, 2, 3))
IDS = InputSpec("ids", I8, (None, 4))
XS = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
LABELS = np.arange(6)


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


class RewindingReader(Reader):
    def __init__(self, feeds):
        super().__init__(feeds)
        self._all = feeds

    def rewind(self):
        self._feeds = iter(self._all)


class Again:
    """Iterable many times, of no known length."""

    def __iter__(self):
        return iter(feeds(label=LABELS))


def feeds(**more) -> list[dict[str, np.ndarray]]:
    return [{"x": XS[i : i + 1], **{k: v[i : i + 1] for k, v in more.items()}} for i in range(6)]


def npz(folder: Path, name: str = "x.npz", **arrays) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def folder(path: Path) -> Path:
    for i in (2, 0, 1):
        npz(path, f"part{i}.npz", x=XS[2 * i : 2 * i + 2], label=LABELS[2 * i : 2 * i + 2])
    (path / "readme.txt").write_text("not data")
    return path


def module(path: Path, monkeypatch, text: str) -> str:
    """Write a module in the current folder; return its name."""
    name = f"user_{path.name.replace('-', '_')}"
    (path / f"{name}.py").write_text(text)
    monkeypatch.chdir(path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


SOURCES = {
    "npz": lambda path: npz(path, x=XS, label=LABELS),
    "npz, path as text": lambda path: str(npz(path, x=XS, label=LABELS)),
    "folder": folder,
    "list": lambda path: feeds(label=LABELS),
    "generator": lambda path: (feed for feed in feeds(label=LABELS)),
    "iterable": lambda path: Again(),
    "get_next": lambda path: Reader(feeds(label=LABELS)),
    "get_next and rewind": lambda path: RewindingReader(feeds(label=LABELS)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_feeds_every_time(tmp_path, source):
    samples = open_samples(SOURCES[source](tmp_path), inputs=[X])
    assert isinstance(samples, Samples)
    for _ in range(3):
        next(iter(samples))  # a look at the first must not cost the others
        found = list(samples.labelled())
        assert len(found) == samples.count == 6
        for i, (feed, label) in enumerate(found):
            assert list(feed) == ["x"] and feed["x"].dtype == F4 and feed["x"].shape == (1, 2, 3)
            assert feed["x"].tobytes() == XS[i].tobytes()
            assert label is not None and label.tolist() == [i]


@pytest.mark.parametrize("source", [s for s in SOURCES if s != "get_next and rewind"])
def test_iterations_do_not_disturb_each_other(tmp_path, source):
    samples = open_samples(SOURCES[source](tmp_path), inputs=[X])
    pairs = zip(samples, samples, strict=True)
    assert all(a["x"].tobytes() == b["x"].tobytes() for a, b in pairs)


@pytest.mark.parametrize("source", SOURCES)
def test_the_limit(tmp_path, source):
    samples = open_samples(SOURCES[source](tmp_path), inputs=[X], limit=4)
    assert [feed["x"].tobytes() for feed in samples] == [x.tobytes() for x in XS[:4]]
    assert samples.count in (4, None)
    assert len(list(open_samples(SOURCES[source](tmp_path), inputs=[X], limit=100))) == 6


def test_a_function_is_called_for_each_iteration(tmp_path, monkeypatch):
    text = (
        "import numpy as np\ncalls = []\n"
        "def frames():\n    calls.append(1)\n"
        "    for i in range(3):\n        yield {'x': np.full((1, 2, 3), i, np.float32)}\n"
    )
    name = module(tmp_path, monkeypatch, text)
    samples = open_samples(f"{name}:frames", inputs=[X])
    for _ in range(2):
        assert [float(feed["x"].mean()) for feed in samples] == [0, 1, 2]
    assert samples.count == 3 and len(sys.modules[name].calls) == 3
    assert str(tmp_path) not in sys.path


def test_an_endless_generator_is_read_to_the_limit():
    def endless() -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield {"x": XS[:1]}

    assert open_samples(endless(), inputs=[X], limit=5).count == 5


def test_batches_of_a_symbolic_batch(tmp_path):
    samples = open_samples(npz(tmp_path, x=XS, label=LABELS), inputs=[X], batch=4)
    found = list(samples.labelled())
    assert samples.count == 2 and [len(feed["x"]) for feed, _ in found] == [4, 2]
    assert np.concatenate([feed["x"] for feed, _ in found]).tobytes() == XS.tobytes()
    assert [label.tolist() for _, label in found if label is not None] == [[0, 1, 2, 3], [4, 5]]


def test_batches_that_the_model_fixes(tmp_path):
    fixed = InputSpec("x", F4, (3, 2, 3))
    folder(tmp_path)  # batches go across files
    samples = open_samples(tmp_path, inputs=[fixed])
    assert samples.count == 2 and [len(f["x"]) for f in samples] == [3, 3]
    assert np.concatenate([f["x"] for f in samples]).tobytes() == XS.tobytes()
    assert open_samples(tmp_path, inputs=[fixed], limit=5).count == 1
    assert len(list(open_samples([{"x": XS[:3]}, {"x": XS[3:]}], inputs=[fixed], limit=3))) == 1


def test_inputs_without_axes(tmp_path):
    specs = [X, InputSpec("t", I8, ())]
    samples = open_samples(npz(tmp_path, x=XS, t=LABELS), inputs=specs)
    assert [(f["t"].shape, int(f["t"])) for f in samples] == [((), i) for i in range(6)]
    given = [{"x": XS[:1], "t": np.array(4)}]
    assert [int(f["t"]) for f in open_samples(iter(given), inputs=specs)] == [4]


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_either_byte_order(tmp_path, dtype):
    for data in (npz(tmp_path, x=XS.astype(dtype)), [{"x": XS.astype(dtype)}]):
        found = np.concatenate([feed["x"] for feed in open_samples(data, inputs=[X])])
        assert found.dtype == F4
        assert found.tobytes() == XS.astype(dtype).astype(np.float32).tobytes()


def test_frames_stay_uint8(tmp_path):
    frames = np.arange(36, dtype=np.uint8).reshape(6, 2, 3)
    found = [feed["x"] for feed in open_samples(npz(tmp_path, x=frames), inputs=[FRAME])]
    assert all(f.dtype == U1 for f in found) and np.stack(found).tobytes() == frames.tobytes()


def test_integers_widen(tmp_path):
    ids = np.arange(8, dtype=np.int32).reshape(2, 4)
    found = [feed["ids"] for feed in open_samples(npz(tmp_path, ids=ids), inputs=[IDS])]
    assert np.concatenate(found).tolist() == ids.tolist() and found[0].dtype == I8


def test_any_array_type_in_a_feed():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return XS[:1]

    assert next(iter(open_samples([{"x": Tensor()}], inputs=[X])))["x"].tobytes() == XS[0].tobytes()


def test_an_input_named_label_is_an_input(tmp_path):
    specs = [InputSpec("label", F4, (None,))]
    values = np.arange(3, dtype=np.float32)
    for data in (npz(tmp_path, label=values), [{"label": values[i : i + 1]} for i in range(3)]):
        found = list(open_samples(data, inputs=specs).labelled())
        assert [(float(f["label"][0]), label) for f, label in found] == [
            (i, None) for i in range(3)
        ]


@pytest.mark.parametrize("kind", ["stored", "deflated", "generator"])
def test_memory_does_not_grow_with_the_samples(tmp_path, kind):
    spec = InputSpec("x", F4, (None, 2**15))
    generator = np.random.default_rng(0)
    peaks = []
    for rows in (8, 128):
        data: object = ({"x": np.full((1, 2**15), i, np.float32)} for i in range(rows))
        if kind != "generator":
            save = np.savez if kind == "stored" else np.savez_compressed
            save(tmp_path / "x.npz", x=generator.random((rows, 2**15), np.float32))
            data = tmp_path / "x.npz"
        tracemalloc.start()
        samples = open_samples(data, inputs=[spec])
        count = sum(1 for _ in samples) + sum(1 for _ in samples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == 2 * rows
    assert peaks[1] < 1.2 * peaks[0] and peaks[1] < 8 * 2**17, peaks


def test_a_spool_goes_with_its_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    samples = open_samples((feed for feed in feeds()), inputs=[X])
    assert list(tmp_path.iterdir()) == [] and samples.count == 6  # it never had a name
    del samples
    gc.collect()  # closing it must not warn: warnings are errors


def graph(**inputs: tuple[ir.DataType, list[int | str | None] | None]) -> ir.Model:
    values = []
    for name, (dtype, shape) in inputs.items():
        dims = None if shape is None else ir.Shape(shape)
        values.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=dims))
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 21}), ir_version=10)


def test_specs_of_a_model():
    model = graph(
        x=(ir.DataType.FLOAT, ["N", 3, None]), ids=(ir.DataType.INT64, [1, 4]),
        any=(ir.DataType.BOOL, None), t=(ir.DataType.FLOAT, []),
    )  # fmt: skip
    assert input_specs(model) == (
        InputSpec("x", F4, (None, 3, None)), InputSpec("ids", I8, (1, 4)),
        InputSpec("any", np.dtype(bool), None), InputSpec("t", F4, ()),
    )  # fmt: skip
    assert input_specs(model, {"x": "uint8", "t": "float32"})[0] == InputSpec(
        "x", U1, (None, 3, None)
    )
    assert input_specs(model, {"x": "uint8", "t": "float32"})[3].dtype == F4


def test_an_input_with_a_default_need_not_be_fed():
    model = graph(x=(ir.DataType.FLOAT, [1]), k=(ir.DataType.FLOAT, [1]))
    default = model.graph.inputs[1]
    default.const_value = ir.tensor(np.ones(1, np.float32), name="k")
    model.graph.register_initializer(default)
    assert [spec.name for spec in input_specs(model)] == ["x"]


def test_inputs_that_cannot_be_fed():
    with pytest.raises(ModelError, match=r"input 's' is .*only tensors of numbers can be fed"):
        input_specs(graph(s=(ir.DataType.STRING, [1])))


def test_an_input_of_unknown_rank(tmp_path):
    spec = InputSpec("x", F4, None)
    assert open_samples(npz(tmp_path, x=XS), inputs=[spec]).count == 6
    assert open_samples([{"x": np.full((), 3, np.float32)}], inputs=[spec]).count == 1
