"""Tables of what one integer decides: the rows' bits, float equality, ranges that do not fit."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import edgeq
from edgeq.bundle import open_bundle
from edgeq.cli import app
from edgeq.errors import ModelError
from edgeq.graph import constant, to_bytes, weight_bytes
from edgeq.index_tables import ROWS
from edgeq.index_values import repeated
from edgeq.load import normalize
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.simulate import Simulator
from edgeq.targeting import Capabilities

ZOO = Path(__file__).parent.parent.parent / "shared" / "zoo"


def diffusion(batch: str | None = "N", width: int = 24) -> onnx.ModelProto:
    """Conv + time embedding: sines and cosines, two layers with SiLU, one more for each of two."""
    generator = np.random.default_rng(3)

    def weight(*shape: int) -> np.ndarray:
        return generator.normal(0, 0.4, shape).astype(np.float32)

    frequencies = np.exp(-np.log(1e4) * np.arange(8) / 8).astype(np.float32)
    arrays = {
        "frequencies": frequencies[None], "v": weight(width, 16), "c": weight(width),
        "w": weight(width, width), "d": weight(width), "w_1": weight(4, width), "d_1": weight(4),
        "w_2": weight(4, width), "k": weight(4, 2, 3, 3), "k_1": weight(4, 4, 3, 3),
        "last": np.array([1]), "image": np.array([2, 3]), "one": np.array(1), "half": np.array([8]),
        "zero": np.array([0]), "end": np.array([99]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Expand", ["one", "batch"], ["ones"]),
        helper.make_node("Mul", ["t", "ones"], ["steps"]),
        helper.make_node("Unsqueeze", ["steps", "last"], ["column"]),
        helper.make_node("Cast", ["column"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "frequencies"], ["angles"]),
        helper.make_node("Sin", ["angles"], ["sines"], name="sines"),
        helper.make_node("Cos", ["angles"], ["cosines"]),
        helper.make_node("Concat", ["sines", "cosines"], ["both"], axis=-1),
        helper.make_node("Slice", ["both", "half", "end", "last"], ["back"]),
        helper.make_node("Slice", ["both", "zero", "half", "last"], ["front"]),
        helper.make_node("Concat", ["back", "front"], ["embedding"], axis=-1),
        helper.make_node("Gemm", ["embedding", "v", "c"], ["hidden"], transB=1),
        helper.make_node("Sigmoid", ["hidden"], ["gate"]),
        helper.make_node("Mul", ["hidden", "gate"], ["silu"]),
        helper.make_node("Gemm", ["silu", "w", "d"], ["time"], transB=1),
        helper.make_node("Conv", ["x", "k"], ["first"], pads=[1, 1, 1, 1]),
        helper.make_node("Gemm", ["time", "w_1", "d_1"], ["a"], transB=1),
        helper.make_node("Unsqueeze", ["a", "image"], ["a_image"]),
        helper.make_node("Add", ["first", "a_image"], ["second"]),
        helper.make_node("Relu", ["second"], ["relu"]),
        helper.make_node("Conv", ["relu", "k_1"], ["third"], pads=[1, 1, 1, 1]),
        helper.make_node("Gemm", ["time", "w_2"], ["b"], transB=1),
        helper.make_node("Unsqueeze", ["b", "image"], ["b_image"]),
        helper.make_node("Add", ["third", "b_image"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "diffusion",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 6, 6]),
            helper.make_tensor_value_info("t", TensorProto.INT64, [] if batch is None else [batch]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def loaded(proto: onnx.ModelProto) -> ir.Model:
    return normalize(ir.from_proto(proto), "the model").model


def context(**ranges: tuple[int, int]) -> Context:
    return Context(load_recipe("int8", {}), Capabilities(), samples=(), input_ranges=ranges)  # type: ignore[arg-type]


def tabulated(model: ir.Model, **ranges: tuple[int, int]) -> tuple[int, Context]:
    found = context(**ranges)
    (record,) = run_pipeline("tabulate-index", model, found)
    return record.rewrites, found


def table_of(model: ir.Model, name: str) -> np.ndarray:
    table = constant(model.graph.initializers[f"{name}_table"])
    assert table is not None
    return table


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return np.asarray(onnxruntime.InferenceSession(to_bytes(model), options).run(None, feeds)[0])


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, 2, 6, 6)).astype(np.float32)


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two orders of summation, and two libraries' sines, can explain what differs."""
    return a.shape == b.shape and bool(np.abs(a - b).max() <= 2e-6 * np.abs(b).max())


@pytest.mark.parametrize(("low", "high"), [(0, 999), (5, 5), (-3, 300)])
def test_rows_are_the_simulators_own(low, high):
    before, after = loaded(diffusion()), loaded(diffusion())
    assert tabulated(after, t=(low, high))[0] == 2
    tables = [table_of(after, name) for name in ("a", "b")]
    simulator, compared = Simulator(before), 0
    for start in range(low, high + 1, ROWS):
        steps = np.minimum(np.arange(start, start + ROWS), high)
        feeds = {"t": steps, "x": np.zeros((ROWS, 2, 6, 6), np.float32)}
        found = simulator.run(feeds, taps=("a", "b"))
        for table, name in zip(tables, ("a", "b"), strict=True):
            rows = table[start - low : start - low + ROWS]
            assert rows.tobytes() == found[name][: len(rows)].tobytes()
            compared += len(rows)
    assert compared == 2 * (high - low + 1)


def test_a_row_does_not_depend_on_the_range():
    whole, part = loaded(diffusion()), loaded(diffusion())
    tabulated(whole, t=(0, 600))
    tabulated(part, t=(0, 20))
    rows = [table_of(model, "a")[:21] for model in (whole, part)]
    assert rows[0].tobytes() == rows[1].tobytes()


@pytest.mark.parametrize("batch", ["N", "steps", None])
def test_every_sample_has_its_own_step(batch):
    before, after = loaded(diffusion(batch)), loaded(diffusion(batch))
    tabulated(after, t=(0, 999))
    steps = np.array([0, 999, 17, 500, 17]) if batch is not None else np.array(321)
    feeds = {"x": images(5), "t": steps}
    expected, found = run(before, feeds), run(after, feeds)
    assert near(found, expected)
    assert not any(node.op_type in ("Gemm", "Sin", "Sigmoid") for node in after.graph)
    if batch == "N":  # the shapes are known to be the same: nothing is copied at run time
        assert not any(node.op_type in ("Expand", "Mul") for node in after.graph)
    simulated = Simulator(after).run(feeds)["y"]
    assert near(simulated, expected)


def test_the_note_counts_bytes():
    model = loaded(diffusion())
    before = weight_bytes(model)
    _, found = tabulated(model, t=(0, 99))
    after = weight_bytes(model)
    ((subject, text),) = found.notes
    assert subject == "tabulate-index" and "t (0 to 99)" in text
    tables = 2 * 100 * 4 * 4
    assert f"tables of {tables} bytes" in text
    assert f"{before - after + tables} bytes of weights went" in text


def test_an_index_outside_fails_on_the_device():
    model = loaded(diffusion())
    tabulated(model, t=(0, 9))
    with pytest.raises(Exception, match="out of data bounds"):
        run(model, {"x": images(1), "t": np.array([10])})


UNKNOWN = "node 'sines' (Sin) depends on the integer input 't' alone"


def test_an_unknown_range_names_node_and_option():
    with pytest.raises(ModelError) as raised:
        tabulated(loaded(diffusion()))
    assert UNKNOWN in str(raised.value) and "--input-range t=0:999" in str(raised.value)


def test_tables_that_no_file_holds_are_refused():
    with pytest.raises(ModelError, match="more than a model file can hold"):
        tabulated(loaded(diffusion()), t=(0, 10**9))


def labels() -> ir.Model:
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[N] label) => (float[N,2] y)
        <float[3,1] rows = {1,2,3}, float[1,2] w = {2,3}> {
          row = Gather (rows, label)
          y = Gemm (row, w)
        }
        """
    )
    infer_shapes(model)
    return model


@pytest.mark.parametrize("span", [(0, 3), (-4, 2)])
def test_a_range_that_leaves_an_embedding_is_refused(span):
    with pytest.raises(ModelError, match=r"selects from 3 rows by it.*0:2"):
        tabulated(labels(), label=span)


@given(st.integers(-5, 5), st.sampled_from(["Expand", "ConstantOfShape"]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_number_repeated_over_a_shape_is_seen(number, how, cast):
    fill = f"ConstantOfShape <value = int64[1] {{{number}}}> (s)"
    made = "Expand (c, s)" if how == "Expand" else fill
    text = f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N,L] x) => (float[N,L] z)
        <int64[1,1] c = {{{number}}}, int64[1] axis = {{0}}> {{
          s = Shape (x)
          a = {made}
          b = {"Cast <to: int = 1>" if cast else "Identity"} (a)
          d = Unsqueeze (b, axis)
          e = Squeeze (d, axis)
          z = Mul (x, e)
        }}
    """
    if not cast:
        text = text.replace("float[N,L] x", "int64[N,L] x").replace("float[N,L] z", "int64[N,L] z")
    model = ir.from_onnx_text(text)
    mul = model.graph.node(-1)
    assert repeated(mul.inputs[1]) == number and repeated(mul.inputs[0]) is None


BAD = [
    # what is wrong, options, what the message says
    ("no range", (), UNKNOWN),
    ("range of another input", ("--input-range", "u=0:9"), "the model has x, t"),
    ("range of reals", ("--input-range", "x=0:9"), "int64"),
    ("no numbers", ("--input-range", "t=a:b"), "NAME=LOW:HIGH"),
    ("no name", ("--input-range", "0:9"), "NAME=LOW:HIGH"),
    ("one number", ("--input-range", "t=9"), "NAME=LOW:HIGH"),
    ("upside down", ("--input-range", "t=9:0"), "NAME=LOW:HIGH"),
    ("a sample outside", ("--input-range", "t=0:5"), "holds 6, outside the range 0:5"),
]


@pytest.mark.parametrize(("wrong", "options", "says"), BAD, ids=[row[0] for row in BAD])
def test_bad_ranges(tmp_path, monkeypatch, wrong, options, says):
    monkeypatch.chdir(tmp_path)
    onnx.save(diffusion(), "model.onnx")
    np.savez("calibration.npz", x=images(8), t=np.arange(8))
    words = ["compile", "model.onnx", "--target", "ort-cpu", "--calibration", "calibration.npz"]
    found = CliRunner().invoke(app, [*words, "-o", "out", "-q", *options])
    assert found.exit_code == 2, found.output
    assert says in found.stderr and "unexpectedly" not in found.stderr
    assert not Path("out").exists()


@pytest.mark.zoo
def test_the_unet_of_the_zoo():
    path = ZOO / "ddpm-attn-mnist32" / "model.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    before = loaded(onnx.load(path))
    steps = "cleanup, fold-affine, linear-form"
    run_pipeline(steps, before, context())
    after = loaded(onnx.load(path))
    run_pipeline(steps, after, context())
    assert tabulated(after, timestep=(0, 999))[0] == 11
    assert not any(node.op_type in ("Sin", "Cos") for node in after.graph)
    gathers = [node for node in after.graph if node.op_type == "Gather"]
    assert [node.inputs[1] for node in gathers] == [after.graph.inputs[1]] * 11
    sample = np.random.default_rng(0).normal(0, 1, (4, 1, 32, 32)).astype(np.float32)
    feeds = {"sample": sample, "timestep": np.array([0, 999, 250, 3])}
    expected = run(before, feeds)
    assert np.abs(run(after, feeds) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("batch", ["N", None])
def test_a_diffusion_model_from_files_to_the_device(tmp_path, monkeypatch, batch):
    monkeypatch.chdir(tmp_path)
    onnx.save(diffusion(batch), "model.onnx")
    np.savez("calibration.npz", x=images(12), t=np.arange(12) * 80)
    words = ["compile", "model.onnx", "--target", "ort-cpu", "--calibration", "calibration.npz"]
    found = CliRunner().invoke(app, [*words, "-o", "out", "-q", "--input-range", "t=0:999"])
    assert found.exit_code == 0, found.output
    result = edgeq.check("out", taps=True)
    result.raise_for_mismatch()
    assert result.latency_ms["median"] > 0
    entry = json.loads(Path("out/manifest.json").read_text())
    (span,) = [item["range"] for item in entry["inputs"] if "range" in item]
    assert span == [0, 999] and open_bundle("out").manifest.inputs[1].span == (0, 999)
    with np.load("out/golden/inputs.npz") as golden:
        assert golden["t"].min() == 0 and golden["t"].max() == 999
