"""A bundle's check.py in an environment with numpy and onnxruntime, and nothing else."""

import ast
import importlib.util
import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeq import check_needs
from edgeq.bundle import Bundle, standalone_check

MakePython = Callable[..., Path]


@pytest.fixture(scope="module")
def make_python(tmp_path_factory: pytest.TempPathFactory) -> MakePython:
    """A function that makes an environment with the named packages alone, not what they need."""

    def make(*names: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True, with_pip=False)
        (site,) = folder.glob("lib/python*/site-packages")
        for name in names:
            found = importlib.util.find_spec(name)
            assert found is not None and found.origin is not None
            package = Path(found.origin).parent
            for path in (package, package.with_name(f"{name}.libs")):
                if path.is_dir():
                    (site / path.name).symlink_to(path)
        return folder / "bin" / "python"

    return make


@pytest.fixture(scope="module")
def python(make_python: MakePython) -> Path:
    """The Python of an environment with numpy and onnxruntime."""
    return make_python("numpy", "onnxruntime")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command where neither PYTHONPATH nor the current folder helps."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, cwd="/", env={}, timeout=60)


def test_the_environment_has_nothing_else(python: Path) -> None:
    (site,) = python.parent.parent.glob("lib/python*/site-packages")
    assert {path.name for path in site.iterdir()} <= {"numpy", "numpy.libs", "onnxruntime"}
    assert run(python, "-c", "import numpy, onnxruntime").returncode == 0
    for name in ("edgeq", "onnx", "ml_dtypes", "typer", "flatbuffers", "google.protobuf"):
        assert run(python, "-c", f"import {name}").returncode == 1, name


def test_all_of_the_check_runs_there(python: Path, bundle: Bundle, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1, (40, 2, 5, 5)).astype(np.float32)
    np.savez(tmp_path / "e.npz", x=x, label=np.arange(40) % 4)
    data = ("--evaluation", tmp_path / "e.npz", "--metric", "top1", "--threads", "2")
    found = run(python, bundle.path / "check.py", "--taps", "--json", *data)
    assert found.returncode == 0, found.stderr
    entry = json.loads(found.stdout)
    assert entry["bitwise"]["mismatches"] == 0 and entry["bitwise"]["tensors"] == 4
    assert set(entry["metrics"]) == {"top1", "top1_host"} and entry["memory_mib"]["peak"] > 0


def test_what_it_must_not_import_would_be_seen(
    python: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """The planted fault: where a run takes a branch that imports something else."""
    text = (bundle.path / "check.py").read_text()
    planted = text.replace("def host_facts()", "import onnx\n\n\ndef host_facts()")
    assert planted != text
    script = tmp_path / "check.py"
    script.write_text(planted)
    found = run(python, script, "--bundle", bundle.path)
    assert found.returncode == 1 and "No module named 'onnx'" in found.stderr


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        ((), "has no numpy and no onnxruntime"),
        (("numpy",), "has no onnxruntime: "),
        (("onnxruntime",), "has no numpy: "),
    ],
)
def test_what_is_missing_is_named(
    make_python: MakePython, bundle: Bundle, installed: tuple[str, ...], says: str
) -> None:
    found = run(make_python(*installed), bundle.path / "check.py", "--json")
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("error: the check needs numpy and onnxruntime; ")
    assert says in found.stderr and found.stderr.count("\n") == 1


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can tell: the file is of the grammar of Python 3.8."""
    ast.parse(standalone_check(), feature_version=(3, 8))
    assert check_needs.missing() == ""
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert "needs Python 3.10 or later" in check_needs.missing()
    assert check_needs.missing().endswith("is 3.9")
