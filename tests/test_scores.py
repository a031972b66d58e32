"""The figures of a compilation are those of its bundle, run over the evaluation data."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgeq.cli import app
from edgeq.compile import compile_model
from edgeq.errors import DataError, UnknownNameError
from edgeq.manifest import load_manifest
from edgeq.request import CompileRequest

RNG = np.random.default_rng(3)
CALIBRATION = RNG.normal(size=(12, 6)).astype(np.float32)
EVALUATION = RNG.normal(size=(20, 6)).astype(np.float32)
LABEL = RNG.integers(0, 4, 20)


def model() -> onnx.ModelProto:
    """Two layers, both of them outputs."""
    weights = {"v": (6, 8), "w": (8, 4), "b": (8,), "c": (4,)}
    tensors = [
        numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "v", "b"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["features"], name="relu"),
        helper.make_node("Gemm", ["features", "w", "c"], ["logits"], name="second"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", 6), ("logits", 4), ("features", 8))
    ]
    graph = helper.make_graph(nodes, "two", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


MODEL = model()


def save(folder: Path) -> dict[str, Path]:
    paths = {name: folder / f"{name}.npz" for name in ("calibration", "evaluation", "bare", "gone")}
    np.savez(paths["calibration"], x=CALIBRATION)
    np.savez(paths["evaluation"], x=EVALUATION, label=LABEL)
    np.savez(paths["bare"], x=EVALUATION)
    return paths


def run(data: bytes | str, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    rows = [session.run(["logits", "features"], {"x": x[i : i + 1]}) for i in range(len(x))]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def sqnr(real: np.ndarray, found: np.ndarray) -> float:
    noise = ((found.astype(np.float64) - real) ** 2).sum()
    return float(10 * np.log10((real.astype(np.float64) ** 2).sum() / noise))


def deployed(folder: Path) -> str:
    (path,) = folder.glob("*.onnx")
    return str(path)


@pytest.mark.parametrize("evaluated", [True, False])
def test_figures_are_those_of_the_bundle(tmp_path, evaluated):
    paths = save(tmp_path)
    request = CompileRequest(
        model=MODEL, target="ort-cpu", calibration=paths["calibration"], output=tmp_path / "b",
        evaluation=paths["evaluation"] if evaluated else None,
        metric="top1" if evaluated else None,
    )  # fmt: skip
    metrics = dict(compile_model(request).metrics)
    x = EVALUATION if evaluated else CALIBRATION
    real, found = run(MODEL.SerializeToString(), x), run(deployed(tmp_path / "b"), x)
    expected = {"sqnr_db": sqnr(real[0], found[0]), "sqnr_db_features": sqnr(real[1], found[1])}
    if evaluated:
        expected["top1"] = 100 * float(np.mean(found[0].argmax(-1) == LABEL))
        expected["top1_float"] = 100 * float(np.mean(real[0].argmax(-1) == LABEL))
    assert list(metrics) == list(expected)
    for name, value in expected.items():
        assert abs(metrics[name] - value) < 1e-6, name
    assert 20 < metrics["sqnr_db"] < 80
    digest = hashlib.sha256(paths["evaluation"].read_bytes()).hexdigest()
    assert load_manifest(tmp_path / "b").evaluation_digest == (digest if evaluated else None)


def test_sqnr_has_no_float_figure(tmp_path):
    request = CompileRequest(
        model=MODEL, target="ort-cpu", calibration=[{"x": CALIBRATION}], output=tmp_path / "b",
        evaluation=({"x": row[None]} for row in EVALUATION), metric="sqnr",
    )  # fmt: skip
    metrics = compile_model(request).metrics
    assert list(metrics) == ["sqnr_db", "sqnr_db_features", "sqnr"]
    assert load_manifest(tmp_path / "b").evaluation_digest is None  # not of one file


@pytest.mark.parametrize(
    ("evaluation", "metric", "error", "complaint"),
    [
        (None, "top1", DataError, "metric top1: there are no evaluation data"),
        (None, "top", UnknownNameError, "no metric 'top'"),
        ("bare", "top1", DataError, "metric top1: .*bare.npz has no array 'label'"),
        ("calibration", "nll", DataError, "metric nll: .*calibration.npz has no array"),
        ("gone", "top1", DataError, "gone.npz: no such file"),
        ("evaluation", "psnr", DataError, "metric psnr: label has shape"),
    ],
)
def test_what_cannot_be_scored(tmp_path, evaluation, metric, error, complaint):
    paths = save(tmp_path)
    request = CompileRequest(
        model=MODEL, target="ort-cpu", calibration=paths["calibration"], output=tmp_path / "b",
        evaluation=None if evaluation is None else paths[evaluation], metric=metric,
    )  # fmt: skip
    stages: list[str] = []
    with pytest.raises(error, match=complaint):
        compile_model(request, lambda stage, done=0, total=None: stages.append(stage))
    assert "prepare" not in stages or metric == "psnr"  # said before the work, where possible
    assert not (tmp_path / "b").exists()


WINDOWS = RNG.normal(size=(6, 9, 6)).astype(np.float32)  # windows, tokens, channels
NEXT = RNG.integers(0, 4, (6, 9))
NEXT[-1, 4:] = -100  # the last window is filled up


def token_model() -> onnx.ModelProto:
    """Logits for each token of windows of any length."""
    weights = {"v": (6, 8), "w": (8, 4)}
    tensors = [
        numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["logits"], name="second"),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "T", size])
        for name, size in (("x", 6), ("logits", 4))
    )
    graph = helper.make_graph(nodes, "tokens", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def nll(logits: np.ndarray) -> float:
    """Nats per label that counts, over all of `NEXT`."""
    wide = logits.astype(np.float64)
    logp = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    counts = NEXT != -100
    return -float(logp[counts, NEXT[counts]].mean())


@pytest.mark.parametrize("metric", ["nll", "perplexity", "top1"])
def test_labels_of_tokens_on_the_command_line(tmp_path, metric):
    model, bundle = tmp_path / "model.onnx", tmp_path / "bundle"
    onnx.save(token_model(), model)
    labels: dict[str, Any] = {"label": NEXT}
    for name, more in (("calibration", {}), ("evaluation", labels)):
        np.savez(tmp_path / f"{name}.npz", x=WINDOWS, **more)
    data = ["--evaluation", str(tmp_path / "evaluation.npz"), "--metric", metric, "--json"]
    compiled, checked = (
        CliRunner().invoke(app, [*map(str, command), *data])
        for command in (
            ("compile", model, "--target", "ort-cpu", "-o", bundle,
             "--calibration", tmp_path / "calibration.npz"),
            ("check", bundle),
        )
    )  # fmt: skip
    assert compiled.exit_code == checked.exit_code == 0, compiled.output + checked.output
    for path, found in {
        deployed(bundle): json.loads(compiled.stdout)["metrics"][metric],
        str(model): json.loads(compiled.stdout)["metrics"][f"{metric}_float"],
        f"{bundle}/model.onnx": json.loads(checked.stdout)["metrics"][metric],
    }.items():
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"x": WINDOWS})
        right = logits.argmax(-1)[NEXT != -100] == NEXT[NEXT != -100]
        expected = {"nll": nll(logits), "perplexity": np.exp(nll(logits)),
                    "top1": 100 * np.mean(right)}  # fmt: skip
        assert abs(found - expected[metric]) < 1e-6 * expected[metric]
