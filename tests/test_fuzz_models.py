"""Models that were altered at random, given to every command: a message, never a traceback."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgeq.cli import app
from tests.conftest import tiny_float_proto, tiny_proto
from tests.fuzzing import alter, bounded, command, limited_memory, tree

TRANSFORMER = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N,5,8] x) => (float[N,3] y)
<float[8] gamma = {1, 2, 1, 0.5, 1, 1, 2, 1}, float[8] beta = {0, 0, 1, 0, 0.5, 0, 0, 0},
 float scale = {0.35}, int64[1] first = {0}, int64[3] rows = {0, -1, 8}, int64[1] axes = {1},
 int64[1] one = {1}> {
  n = LayerNormalization <axis = -1> (x, gamma, beta)
  q = MatMul (n, wq)
  k = MatMul (n, wk)
  kt = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul (q, kt)
  t = Mul (s, scale)
  p = Softmax <axis = -1> (t)
  a = MatMul (p, n)
  r = Add (a, x)
  e = Gelu (r)
  f = Slice (e, first, one, axes)
  g = Squeeze (f, axes)
  y = Gemm (g, wo)
}
"""


def transformer() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TRANSFORMER)
    generator = np.random.default_rng(0)
    for name, shape in {"wq": (8, 8), "wk": (8, 8), "wo": (8, 3)}.items():
        array = generator.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(proto)


MODELS = {"float": tiny_float_proto(), "quantized": tiny_proto(), "transformer": transformer()}
SHAPES = {"float": (6, 2, 5, 5), "quantized": (6, 2, 5, 5), "transformer": (6, 5, 8)}
COMMANDS = {
    "lint": ["lint", "model.onnx"],
    "fix": ["lint", "model.onnx", "--fix", "-o", "made.onnx", "--force"],
    "inspect": ["inspect", "model.onnx", "--json"],
    "simulate": ["simulate", "model.onnx", "--inputs", "x.npz", "-o", "made.npz", "--taps", "all",
                 "--force"],
    "compare": ["compare", "model.onnx", "good.onnx", "--inputs", "x.npz"],
    "compile": ["compile", "model.onnx", "--target", "ort-cpu", "--calibration", "x.npz",
                "--dry-run"],
    "check": ["check", "model.onnx", "--as", "aarch64", "--inputs", "x.npz"],
}  # fmt: skip
EXAMPLES = {"compile": 12, "check": 12, "compare": 12, "simulate": 12}
MADE = {"made.onnx", "made.npz"}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", COMMANDS)
def test_an_altered_model(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(MODELS[kind], "good.onnx")
    x = np.random.default_rng(1).normal(size=SHAPES[kind]).astype(np.float32)
    np.savez("x.npz", x=x)
    onnx.save(MODELS[kind], "model.onnx")
    refused = command(*COMMANDS[name])
    assert refused == (name == "compile" and kind == "quantized")  # it works where nothing is wrong

    @bounded(EXAMPLES.get(name, 20))
    @given(data=st.data())
    def one(data: Any) -> None:
        proto = onnx.ModelProto()
        proto.CopyFrom(MODELS[kind])
        for _ in range(data.draw(st.integers(1, 3))):
            alter(data.draw, proto)
        Path("model.onnx").write_bytes(proto.SerializeToString())
        before = tree(tmp_path)
        with limited_memory():
            command(*COMMANDS[name])
        after = tree(tmp_path)
        assert {Path(p).name for p in after.keys() ^ before.keys()} <= MADE
        assert all(after[p] == data for p, data in before.items() if Path(p).name not in MADE)

    one()


def _axis(proto: onnx.ModelProto) -> None:
    (node,) = (n for n in proto.graph.node if n.name == "w_dq")
    node.attribute[0].i = 7


def _batch_of_none(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0
    for value in (*proto.graph.value_info, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")


def _scalar_start(proto: onnx.ModelProto) -> None:
    (tensor,) = (t for t in proto.graph.initializer if t.name == "first")
    del tensor.dims[:]


def _escape(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "\x1b[2JRelu"


@pytest.mark.parametrize(
    ("kind", "name", "change", "says"),
    [
        ("quantized", "fix", _axis, None),
        ("quantized", "lint", _axis, None),
        ("quantized", "simulate", _axis, "axis 7 of a tensor of 4"),
        ("float", "simulate", _batch_of_none, "a batch of 0"),
        ("transformer", "simulate", _scalar_start, "Slice node 'f'"),
        ("float", "inspect", _escape, "\\x1b[2JRelu"),
    ],
)
def test_what_led_to_a_traceback_once(kind, name, change, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    proto = onnx.ModelProto()
    proto.CopyFrom(MODELS[kind])
    change(proto)
    onnx.save(proto, "model.onnx")
    np.savez("x.npz", x=np.zeros(SHAPES[kind], np.float32))
    found = CliRunner().invoke(app, COMMANDS[name])
    assert "unexpectedly" not in found.stderr and "\x1b" not in found.stderr
    assert found.exit_code in (0, 1) if says is None else says in found.stderr
