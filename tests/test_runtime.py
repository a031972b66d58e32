"""Sessions on ONNX Runtime: what they take, what they say, and that they print nothing."""

import gc
import os
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeq.graph
import edgeq.runtime
from edgeq.errors import ModelError
from edgeq.graph import to_bytes
from edgeq.runtime import LEVELS, make_session, run

X = np.random.default_rng(0).normal(size=(2, 2, 5, 5)).astype(np.float32)


def test_model_and_bytes_give_the_same_bits(tiny_float):
    model = ir.from_proto(tiny_float)
    expected = run(make_session(model), {"x": X})
    assert list(expected) == ["y"] and expected["y"].shape == (2, 4)
    found = run(make_session(to_bytes(model), threads=2), {"x": X})
    assert found["y"].tobytes() == expected["y"].tobytes()


def test_onnxruntime_reports_nothing(tmp_path):
    # Its wheels for Linux write a session id here on import, unless they are told not to.
    hidden = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    places = {
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for code in (
        "import edgeq.runtime",
        "from edgeq.check_session import host_facts; host_facts()",
    ):
        subprocess.run([sys.executable, "-c", code], check=True, env=hidden | places)
        assert list(tmp_path.iterdir()) == [], code


@pytest.mark.parametrize("level", LEVELS)
def test_levels_and_the_optimized_model(tiny_float, tmp_path, level, capfd):
    path = tmp_path / "optimized.onnx"
    session = make_session(ir.from_proto(tiny_float), level=level, optimized_path=path)
    assert session.get_providers() == ["CPUExecutionProvider"]
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert ("Relu" in kinds) == (level in ("none", "basic"))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_options_reach_onnxruntime(tiny_float):
    settings = {"session.x64quantprecision": "1"}
    session = make_session(ir.from_proto(tiny_float), options=settings)
    options = session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_unused_and_listed_initializers_print_nothing(capfd):
    """ONNX Runtime warns of both, one line each."""
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    unused = numpy_helper.from_array(np.ones(3, np.float32), "unused")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("x", "w", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", infos[:2], infos[2:], [weight, unused]
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = make_session(model.SerializeToString())
    assert run(session, {"x": np.ones(3, np.float32)})["y"].tolist() == [2, 2, 2]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("junk", [b"", b"not a model"])
def test_what_is_no_model(junk, capfd):
    with pytest.raises(ModelError, match="ONNX Runtime cannot open the model"):
        make_session(junk)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_large_weights_are_used_where_they_lie(tiny_float, monkeypatch, tmp_path):
    model = ir.from_proto(tiny_float)
    expected = run(make_session(model), {"x": X})["y"]
    before = to_bytes(model)
    monkeypatch.setattr(edgeq.runtime, "SHARED", 16)
    shared = edgeq.runtime.shareable(model)
    assert len(shared) >= 2 and all(array.nbytes > 16 for array in shared.values())
    serialized = []
    real_open = edgeq.runtime._open

    def remember(data, settings):
        serialized.append(data)
        return real_open(data, settings)

    monkeypatch.setattr(edgeq.runtime, "_open", remember)
    path = tmp_path / "optimized.onnx"
    sessions = [make_session(model), make_session(model, threads=2, optimized_path=path)]
    del shared
    gc.collect()
    for session in sessions:
        assert run(session, {"x": X})["y"].tobytes() == expected.tobytes()
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    assert all(len(data) < len(before) - weights // 2 for data in serialized)
    assert to_bytes(model) == before
    assert [n.op_type for n in onnx.load(path, load_external_data=False).graph.node]


def test_a_model_beyond_one_message_is_refused(tiny_float, monkeypatch):
    model = ir.from_proto(tiny_float)
    monkeypatch.setattr(edgeq.graph, "MESSAGE_LIMIT", 100)
    with pytest.raises(ModelError, match="and one ONNX file holds 2 GiB"):
        to_bytes(model)


def test_weights_in_files_are_mapped(tiny_float, monkeypatch, tmp_path):
    model = ir.from_proto(tiny_float)
    expected = run(make_session(model), {"x": X})["y"]
    ir.save(model, tmp_path / "model.onnx", external_data="weights.bin", size_threshold_bytes=16)
    stored = ir.load(tmp_path / "model.onnx")
    assert edgeq.runtime.in_files(stored) == ("", ())
    monkeypatch.setattr(edgeq.runtime, "SHARED", 16)
    folder, names = edgeq.runtime.in_files(stored)
    assert folder == str(tmp_path.resolve()) and len(names) >= 2
    assert not set(names) & set(edgeq.runtime.shareable(stored, but=names))
    assert run(make_session(stored), {"x": X})["y"].tobytes() == expected.tobytes()
    # One of them in memory: both ways at once.
    moved = stored.graph.initializers[names[0]]
    assert moved.const_value is not None
    moved.const_value = ir.tensor(moved.const_value.numpy().copy(), name=names[0])
    assert edgeq.runtime.in_files(stored)[1] == names[1:]
    assert run(make_session(stored), {"x": X})["y"].tobytes() == expected.tobytes()


def test_weights_behind_links_are_given(tiny_float, monkeypatch, tmp_path):
    model = ir.from_proto(tiny_float)
    ir.save(model, tmp_path / "model.onnx", external_data="weights.bin", size_threshold_bytes=16)
    (tmp_path / "weights.bin").rename(tmp_path / "there.bin")
    (tmp_path / "weights.bin").symlink_to("there.bin")
    monkeypatch.setattr(edgeq.runtime, "SHARED", 16)
    assert edgeq.runtime.in_files(ir.load(tmp_path / "model.onnx")) == ("", ())
