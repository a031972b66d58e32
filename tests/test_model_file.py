"""Models written to a file, weights inside or beside it, read back the same."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq import model_file
from edgeq.errors import ModelError
from edgeq.graph import digest
from edgeq.load import load_model
from edgeq.model_file import write_model


def make() -> ir.Model:
    """Return a model with a weight of 10 kB and a shape of 16 bytes."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,64] x, float[40,64] w, int64[2] s) => (float[N,40] y) {
          h = Gemm <transB = 1> (x, w)
          y = Reshape (h, s)
        }"""
    )
    weight = np.random.default_rng(0).standard_normal((40, 64), np.float32)
    for array in (np.array([-1, 40]), weight):
        value = model.graph.inputs.pop()
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("limit", [2**28, 100])
def test_written_and_read(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(model_file, "LARGE", limit)
    model, path = make(), tmp_path / "model.onnx"
    before = digest(model)
    write_model(path, model)
    beside = ["model.onnx.data"] if limit == 100 else []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", *beside]
    loaded = load_model(path).model
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        assert not isinstance(value.const_value, ir.ExternalTensor), "the model stays as it was"
        other = loaded.graph.initializers[name].const_value
        assert other is not None and other.tobytes() == value.const_value.tobytes()
    outside = [
        isinstance(loaded.graph.initializers[n].const_value, ir.ExternalTensor) for n in "ws"
    ]
    assert outside == [limit == 100, False], "shapes stay inside"
    assert digest(model) == before
    files = {p: p.read_bytes() for p in tmp_path.iterdir()}
    write_model(path, make())
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == files, "the same bytes again"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be written: No such file"):
        write_model(tmp_path / "absent" / "model.onnx", make())
