"""Damaged and hostile models: each is one clear message, and nothing is read that must not be."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from edgeq.errors import ModelError
from edgeq.load import load_model

Make = Callable[[Path], Path]


def model_of(text: str, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    return onnx.parser.parse_model(f"{head}\n{text}")


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


CONV = """g (float[N,1,4,4] x) => (float[N,2,2,2] y)
<float[2,1,3,3] w = {1,2,3,4,5,6,7,8,9,9,8,7,6,5,4,3,2,1}> {
  c = Conv (x, w)
  y = Relu (c)
}"""


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


def _outside(folder: Path) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    return external(inner, "../model.data")


def _absolute(folder: Path) -> Path:
    return external(folder, str(folder / "model.data"))


def _link(folder: Path) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    (folder / "secret").write_bytes(bytes(4096))
    (inner / "model.data").symlink_to(folder / "secret")
    return external(inner)


def _hard_link(folder: Path) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    (folder / "secret").write_bytes(bytes(4096))
    os.link(folder / "secret", inner / "model.data")
    return external(inner)


def _missing(folder: Path) -> Path:
    path = external(folder)
    (folder / "model.data").unlink()
    return path


def _truncated_data(folder: Path) -> Path:
    path = external(folder)
    (folder / "model.data").write_bytes(bytes(100))
    return path


def _truncated(folder: Path) -> Path:
    data = model_of(CONV).SerializeToString()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])
    return folder / "model.onnx"


def _bytes(data: bytes, name: str = "model.onnx") -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _graph(nodes: str, opset: int = 21, domain: str = "") -> Any:
    def write(folder: Path) -> Path:
        proto = model_of(f"g (float[2] x, float[3] z) => (float[2] y) {{ {nodes} }}", opset)
        if domain:
            proto.opset_import.add(domain=domain, version=1)
        return save(proto, folder)

    return write


def _tensor(**fields: Any) -> Any:
    def write(folder: Path) -> Path:
        proto = model_of("g (float[2] x) => (float[2] y) { y = Add (x, w) }")
        proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT).MergeFrom(
            TensorProto(**fields)
        )
        return save(proto, folder)

    return write


def _sparse(folder: Path) -> Path:
    proto = model_of("g (float[2] x) => (float[2] y) { y = Add (x, x) }")
    sparse = proto.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    return save(proto, folder)


def _changed(text: str, change: Callable[[onnx.ModelProto], object], opset: int = 21) -> Make:
    def make(folder: Path) -> Path:
        proto = model_of(text, opset)
        change(proto)
        return save(proto, folder)

    return make


def _shaped(size: int, kind: int = TensorProto.FLOAT) -> Make:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.input[0].type.tensor_type
        tensor.elem_type = kind
        tensor.shape.dim[1].dim_value = size

    return _changed("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }", change)


def _name_nothing(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = ""


def _refer(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute[0].ref_attr_name = "axis"


EXPAND = """g (float[1] x) => (float y) {
  s = Constant <value = int64[2] {4000000, 4000000}> ()
  e = Expand (x, s)
  y = ReduceSum <keepdims = 0> (e)
}"""
SOFTMAX = "g (float[N,3] x) => (float[N,3] y) { y = Softmax <axis = 1> (x) }"
_unnamed_output = _changed(SOFTMAX, _name_nothing)
_reference = _changed(SOFTMAX, _refer)
_rank = _changed(
    "g (float[N,3] x) => (float[N,3] c) <float[3] c = {1, 2, 3}> { y = Add (x, c) }",
    lambda proto: None,
    11,
)


def _zero_byte(folder: Path) -> Path:
    path = external(folder)
    path.write_bytes(path.read_bytes().replace(b"model.data", b"model\0data"))
    return path


BAD = [
    ("no such file", lambda folder: folder / "model.onnx", "No such file"),
    ("a folder", lambda folder: folder, "Is a directory"),
    ("empty", _bytes(b""), "the file is empty"),
    ("truncated", _truncated, "not an ONNX file, or a truncated one"),
    ("text", _bytes(b"weights: yes, model: no\n" * 20), "not an ONNX file"),
    ("no graph", _bytes(b"\x08\x0a"), "it holds no graph"),
    ("pickle", _bytes(b"PK", "model.pth"), "pickles"),
    ("unknown operator", _graph("[n] y = Foo (x)"), "'n' has the operator ai.onnx.Foo"),
    ("unknown domain", _graph("[n] y = acme.Relu (x)", 21, "acme"), "has the operator acme.Relu"),
    ("opset too old", _graph("y = Relu (x)", 6), "opset 6 is too old"),
    ("shrinking", _graph("s = Constant <value = float[1] {0.7}> ()  y = Resize (x, s)", 10), "new"),
    ("not sorted", _graph("y = Relu (a)  a = Neg (x)"), "topologically sorted"),
    ("undefined input", _graph("y = Add (x, nothing)"), "nothing"),
    ("shapes", _graph("y = Add (x, z)"), "shapes do not fit"),
    ("too little data", _tensor(dims=[2], raw_data=b"1234"), "must hold 8 bytes, the file has 4"),
    ("too few numbers", _tensor(dims=[3], float_data=[1.0]), "must hold 3 numbers, the file has 1"),
    ("absurd size", _tensor(dims=[2**40, 2**40], raw_data=b""), "would take"),
    ("negative dimension", _shaped(-5), "'x' has the shape [N, -5]"),
    ("absurd dimension", _shaped(2**45), "'x' of shape [N, 35184372088832] would take"),
    ("absurd result", _changed(EXPAND, lambda proto: None), "'e' of shape [4000000, 4000000]"),
    ("no type", _shaped(3, kind=0), "shapes do not fit"),
    ("an output without a name", _unnamed_output, "not a sound ONNX model"),
    ("an attribute of a function", _reference, "refers to 'axis', but stands in no function"),
    ("a rank that changes", _rank, "cannot bring opset 11 to 21"),
    ("data with a zero byte", lambda folder: _zero_byte(folder), "outside the model's folder"),
    ("negative size", _tensor(dims=[-1], raw_data=b""), "has the shape [-1]"),
    ("sparse", _sparse, "is sparse"),
    ("data outside", _outside, "outside the model's folder"),
    ("data absolute", _absolute, "outside the model's folder"),
    ("data behind a link", _link, "outside the model's folder"),
    ("data behind a hard link", _hard_link, "plain file with one name"),
    ("data missing", _missing, "No such file"),
    ("data truncated", _truncated_data, "is truncated: 4,096 bytes needed, 100 there"),
    ("data length", lambda folder: external(folder, length=17), "said to have 17"),
    ("data offset", lambda folder: external(folder, offset=8), "is truncated"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "make", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_models(tmp_path, rule, make, message):
    with pytest.raises(ModelError) as caught:
        load_model(make(tmp_path))
    text = str(caught.value)
    assert message in text and "\n" not in text
    assert caught.value.exit_status == 2


def test_any_cut_of_a_file_is_one_clear_error(tmp_path):
    """Half a protobuf may parse: what is missing must be noticed all the same."""
    data = model_of(CONV).SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            load_model(path)
        refused += 1
    assert refused == len(data) > 150
