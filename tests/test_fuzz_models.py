"""Models that were altered at random, given to every command: a message, never a traceback."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
