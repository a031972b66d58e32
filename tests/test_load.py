"""Models as users have them: every opset, listed initializers, external data, and damaged files."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.errors import ModelError
from edgeq.graph import to_bytes
from edgeq.load import load_model, refuse_quantized
from edgeq.simulate import Simulator
from edgeq.to_float32 import narrow


def model_of(text: str, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    return onnx.parser.parse_model(f"{head}\n{text}")


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def run(model: bytes | ir.Model, **feeds: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else to_bytes(model)
    return list(onnxruntime.InferenceSession(data, options).run(None, feeds))


CONV = """g (float[N,1,4,4] x) => (float[N,2,2,2] y)
<float[2,1,3,3] w = {1,2,3,4,5,6,7,8,9,9,8,7,6,5,4,3,2,1}> {
  c = Conv (x, w)
  y = Relu (c)
}"""


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21])
def test_opsets(tmp_path, opset):
    proto = model_of(CONV, opset, 10)
    loaded = load_model(save(proto, tmp_path))
    assert loaded.model.opset_imports[""] == 21
    assert [n.op_type for n in loaded.model.graph] == ["Conv", "Relu"]
    assert str(loaded.model.graph.inputs[0].shape) == "[N,1,4,4]"
    assert loaded.notes == (() if opset == 21 else (f"opset {opset} converted to 21",))
    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    (a,), (b,) = run(proto.SerializeToString(), x=x), run(loaded.model, x=x)
    assert a.tobytes() == b.tobytes() and a.size == 16


def test_old_operators_are_converted(tmp_path):
    """Opset 7: Upsample with scales as an attribute, axes as attributes."""
    proto = model_of(
        """g (float[1,1,2,2] x) => (float[4,4] y) {
          u = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (x)
          d = Dropout <ratio = 0.5> (u)
          s = Slice <axes = [2], starts = [0], ends = [100]> (d)
          y = Squeeze <axes = [0, 1]> (s)
        }""",
        7,
        3,
    )
    loaded = load_model(save(proto, tmp_path))
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    (y,) = run(loaded.model, x=x)
    assert y.tobytes() == x[0, 0].repeat(2, 0).repeat(2, 1).tobytes()


FOUR = "(float[N,2,4,4] x)"
UP = "<float[4] s = {1, 1, 2.4, 2.4}>"
HALF = "<float[4] s = {1, 1, 0.5, 0.5}>"
CONVERSIONS = [  # what changed its form or its defaults since; x is the input of rank 4
    (7, "float[N,2,9,9]", "", 'y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.4, 2.4]> (x)'),
    (9, "float[N,2,9,9]", UP, 'y = Upsample <mode = "nearest"> (x, s)'),
    (9, "float[N,2,9,9]", UP, 'y = Upsample <mode = "linear"> (x, s)'),
    (10, "float[N,2,9,9]", UP, 'y = Resize <mode = "nearest"> (x, s)'),
    (10, "float[N,2,9,9]", UP, 'y = Resize <mode = "linear"> (x, s)'),
    (10, "float[N,2,2,2]", HALF, 'y = Resize <mode = "nearest"> (x, s)'),
    (9, "float[N,2,4,4]", "", "y = Softmax <axis = 3> (x)"),
    (9, "float[N,2,4,4]", "", "y = Softmax <axis = 1> (x)"),
    (12, "float[N,2,4,4]", "", "y = LogSoftmax (x)"),
    (7, "float[N,2,4,4]", "<float[2] a = {1, 2}>", "y = BatchNormalization (x, a, a, a, a)"),
    (8, "float[N,2,1,1]", "", "y = ReduceMean <axes = [2, 3]> (x)"),
    (12, "float[N,2]", "", "y = ReduceSum <axes = [2, 3], keepdims = 0> (x)"),
    (8, "float[N,2,6,6]", "", "y = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x)"),
    (8, "float[N,2,4,4]", "", "y = Clip <min = 0.0, max = 2.0> (x)"),
    (8, "float[N,1,4,4]", "", "y, z = Split <axis = 1> (x)"),
    (8, "float[N,2,4,2]", "", "y, i = TopK <k = 2> (x)"),
    (8, "float[N,2,2,4]", "", "y = Slice <axes = [2], starts = [1], ends = [3]> (x)"),
    (8, "float[N,2,1,1]", "", "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2]> (x)"),
    (8, "float[N,2,4,4]", "", "y = HardSigmoid (x)"),
    (8, "float[N,2,4,4]", "<float[2,1,1] s = {0.5, 2}>", "y = PRelu (x, s)"),
    (10, "float[N,2,4,4]", "", "y = Dropout (x)"),
    (10, "float[2,2,2,2]", "<float[2,4] r = {0, 0, 3, 3, 1, 0, 2, 3}, int64[2] b = {0, 0}>",
     "y = RoiAlign <output_height = 2, output_width = 2> (x, r, b)"),
]  # fmt: skip


@pytest.mark.parametrize(("opset", "result", "weights", "node"), CONVERSIONS)
def test_conversion_keeps_the_meaning(tmp_path, opset, result, weights, node):
    proto = model_of(f"g {FOUR} => ({result} y) {weights} {{ {node} }}", opset)
    loaded = load_model(save(proto, tmp_path))
    x = np.random.default_rng(1).standard_normal((2, 2, 4, 4)).astype(np.float32)
    (a,), (b,) = run(proto.SerializeToString(), x=x), run(loaded.model, x=x)
    # kernels of two opsets may sum in another order; another pixel or axis is far off
    assert a.shape == b.shape and np.abs(a - b).max() <= 2.0**-20 * np.abs(a).max()


def test_an_output_may_have_no_shape(tmp_path):
    proto = model_of(CONV)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    loaded = load_model(save(proto, tmp_path))
    assert str(loaded.model.graph.outputs[0].shape) == "[N,2,2,2]"


def test_initializers_listed_as_inputs(tmp_path):
    proto = model_of(CONV, 9, 3)
    weight = proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.dims))
    loaded = load_model(save(proto, tmp_path))
    assert [v.name for v in loaded.model.graph.inputs] == ["x"]
    assert "1 initializers are no longer listed as inputs" in loaded.notes


def test_names_are_given_and_unique(tmp_path):
    proto = model_of(
        """g (float[N] x) => (float[N] y) {
          a = Relu (x)  b = Neg (a)  [twin] c = Abs (b)  [twin] y = Relu (c)
        }"""
    )
    first, second = (load_model(save(proto, tmp_path)).model for _ in range(2))
    assert [n.name for n in first.graph] == ["a", "b", "twin", "twin_1"]
    assert to_bytes(first) == to_bytes(second)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_other_floats_become_float32(tmp_path, kind):
    proto = model_of(
        f"""g ({kind}[N,2] x) => ({kind}[N,2] y) <float[2] w = {{1.5, -2}}> {{
          k = Cast <to = {getattr(TensorProto, kind.upper())}> (w)
          h = Constant <value = {kind if kind == "double" else "double"}[2] {{0.5, 0.25}}> ()
          g = Cast <to = {getattr(TensorProto, kind.upper())}> (h)
          m = Mul (x, k)
          y = Add (m, g)
        }}"""
    )
    loaded = load_model(save(proto, tmp_path))
    graph = loaded.model.graph
    values = [*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)]
    assert {v.dtype for v in values} == {ir.DataType.FLOAT}
    assert f"input x is float32 now, was {kind}" in loaded.notes
    assert f"output y is float32 now, was {kind}" in loaded.notes
    (y,) = run(loaded.model, x=np.ones((1, 2), np.float32))
    assert y.tolist() == [[2.0, -1.75]]


def test_a_quantized_model_keeps_float64(tmp_path):
    """Its sums are exact in float64; the bits of a bundle are those of its own types."""
    proto = model_of(
        """g (uint8[N,999] x) => (float[N,1] y)
        <float s = {1}, uint8 z = {0}, int64[1] axes = {1}, double third = {3}> {
          d = DequantizeLinear (x, s, z)
          w = Cast <to = 11> (d)
          m = Mul (w, w)
          t = ReduceSum (m, axes)
          q = Div (t, third)
          y = Cast <to = 1> (q)
        }"""
    )
    loaded = load_model(save(proto, tmp_path)).model
    assert ir.DataType.DOUBLE in {out.dtype for node in loaded.graph for out in node.outputs}
    x = np.full((1, 999), 255, np.uint8)
    x[0, 0] = 2
    expected = np.float32((998 * 255**2 + 4) / 3)
    assert run(loaded, x=x)[0].item() == expected
    assert Simulator(loaded).run({"x": x})["y"].item() == expected


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("rounded once", 1 + 2.0**-25, 1.0),
        ("finite stays finite", -1e300, -float(np.finfo(np.float32).max)),
        ("infinite stays infinite", np.inf, np.inf),
        ("ties to even", 1 + 2.0**-24, 1.0),
    ],
)
def test_narrow(rule, value, expected):
    assert narrow(np.array([value]))[0] == np.float32(expected)


def test_functions_are_inlined(tmp_path):
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[N] x) => (float[N] y) { y = own.twice (x) }
        <domain: "own", opset_import: ["" : 21]> twice (a) => (b) { b = Add (a, a) }"""
    )
    loaded = load_model(save(proto, tmp_path))
    assert [n.op_type for n in loaded.model.graph] == ["Add"]
    assert "1 functions inlined" in loaded.notes


# --- external data


def external(folder: Path, location: str = "model.data", **entries: int) -> Path:
    """Save a model whose 4 kB weight lies at `location`; return the model's path."""
    weight = np.arange(1024, dtype=np.float32).reshape(32, 32)
    proto = model_of("g (float[N,32] x) => (float[N,32] y) { y = MatMul (x, w) }")
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[32, 32])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    target = folder / location
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(weight.tobytes())
    return save(proto, folder)


def test_external_data(tmp_path):
    path = external(tmp_path, "weights/model.data", offset=0, length=4096)
    loaded = load_model(path)
    weight = loaded.model.graph.initializers["w"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    x = np.eye(32, dtype=np.float32)
    (y,) = run(loaded.model, x=x)
    assert y.tobytes() == np.arange(1024, dtype=np.float32).tobytes()


def test_external_data_is_not_read_on_load(tmp_path):
    """64 MB of float32 and of float16 weights; loading takes a fraction of that."""
    rows = 2**22
    proto = model_of("g (float[4] x) => (float[4] y) { a = Gather (w, i)  y = Add (a, x) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.array(rows - 1), "i"))
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[rows, 4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="big.data")
    with (tmp_path / "big.data").open("wb") as file:
        file.truncate(rows * 16)  # a sparse file of zeros
    path = save(proto, tmp_path)
    tracemalloc.start()
    loaded = load_model(path)
    half = load_model(_as_float16(proto, tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
    for model in (loaded.model, half.model):
        weight = model.graph.initializers["w"].const_value
        assert weight is not None and weight.nbytes == 2**26
        assert weight.numpy().dtype == np.float32 and not weight.numpy()[-1].any()


def _as_float16(proto: onnx.ModelProto, folder: Path) -> Path:
    half = onnx.ModelProto.FromString(proto.SerializeToString())
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    half.graph.initializer[1].data_type = TensorProto.FLOAT16
    path = folder / "half.onnx"
    path.write_bytes(half.SerializeToString())
    return path


def test_quantized_models_load_and_are_refused_for_compiling(tmp_path):
    proto = model_of(
        """g (float[2] x) => (uint8[2] y) <float s = {1}, uint8 z = {0}> {
          [quantizer] y = QuantizeLinear (x, s, z)
        }"""
    )
    model = load_model(save(proto, tmp_path)).model
    with pytest.raises(ModelError, match=r"'quantizer' is a QuantizeLinear.*edgeq lint"):
        refuse_quantized(model)
    refuse_quantized(load_model(save(model_of(CONV), tmp_path)).model)
