"""The facade: what `edgeq` offers, that it is documented, and that importing it costs nothing."""

import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import edgeq
from edgeq.errors import EdgeqError
from tests.architectures import shapes
from tests.architectures.net import Net

ROOT = Path(__file__).parent.parent
FACADE = ["Bundle", "EdgeqError", "Recipe", "__version__", "check", "compile", "export",
          "sensitivity", "simulate"]  # fmt: skip


def test_the_names_are_these():
    assert sorted(edgeq.__all__) == FACADE
    assert set(FACADE) <= set(dir(edgeq))


@pytest.mark.parametrize("name", FACADE)
def test_each_name_is_documented(name):
    thing = getattr(edgeq, name)
    if name == "__version__":
        assert isinstance(thing, str)
        return
    assert inspect.isclass(thing) or inspect.isfunction(thing)
    assert thing.__doc__ and thing.__doc__.strip().splitlines()[0].endswith((".", ":"))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = edgeq.compil


def test_verbs_stay_functions_after_their_modules_are_imported():
    import edgeq.check
    import edgeq.compile

    assert callable(edgeq.check) and callable(edgeq.compile)
    assert inspect.isfunction(edgeq.compile)


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import edgeq", ("torch", "onnxruntime", "onnxsim", "onnx", "numpy", "typer")),
        ("import edgeq.cli", ("torch", "onnxruntime", "onnxsim", "tvm")),
        ("import edgeq.simulate", ("torch", "onnxruntime", "onnxsim", "tvm")),
    ],
)
def test_importing_leaves_heavy_libraries_alone(statement, heavy):
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(run.stdout))
    assert "edgeq" in loaded
    assert not loaded & set(heavy)


def test_without_an_output_the_bundle_is_in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    net = Net()
    model = net.model(shapes.mlp(net))
    bundles = [edgeq.compile(model, calibration=net.feeds(4)) for _ in range(2)]
    folders = [bundle.path.parent for bundle in bundles]
    assert sorted(folders) == sorted(tmp_path.glob("edgeq-*")) and len(set(folders)) == 2
    for bundle in bundles:
        edgeq.check(bundle).raise_for_mismatch()


def test_without_an_output_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(EdgeqError, match="no-such"):
        edgeq.compile("no-such.onnx", calibration="no-such.npz")
    assert list(tmp_path.iterdir()) == []
