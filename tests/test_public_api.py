"""The facade: what `edgeq` offers, that it is documented, and that importing it costs nothing."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgeq

ROOT = Path(__file__).parent.parent
FACADE = ["Bundle", "EdgeqError", "Recipe", "__version__", "check", "compile", "export", "simulate"]


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
