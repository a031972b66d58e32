"""The command line: what each command prints where."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import edgeq
from edgeq.cli import app
from edgeq.commands.output import ProgressLines, table

ROOT = Path(__file__).parent.parent
FILES = {"check.py", "golden", "manifest.json", "model.onnx", "report.html", "report.json"}


def load(path):
    with np.load(path) as data:
        return dict(data)


def run(*arguments):
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert "Traceback" not in result.output
    return result


def spawn(*arguments, cwd=None):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgeq", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


COMPILE = ("compile", "model.onnx", "--target", "ort-cpu", "--calibration", "calibration.npz")


# What is there.


def test_version_and_help():
    assert run("--version").stdout == f"edgeq {edgeq.__version__}\n"
    text = run("--help").stdout
    for command in ("compile", "export", "check", "simulate", "compare", "inspect", "lint",
                    "targets", "recipes", "passes"):  # fmt: skip
        assert f"\n  {command} " in text
        assert run(command, "--help").exit_code == 0


def test_help_is_quick():
    start = time.perf_counter()
    found = spawn("--help")
    assert found.returncode == 0
    # Loose, for a busy machine: it takes 0.15 s, and 2 s once a heavy library is imported.
    assert time.perf_counter() - start < 1.5


@pytest.mark.parametrize(
    ("command", "name"), [("targets", "ort-cpu"), ("recipes", "int8"), ("passes", "insert-qdq")]
)
def test_names_are_listed(command, name):
    assert name in run(command).stdout
    entries = json.loads(run(command, "--json").stdout)[command]
    assert name in [entry["name"] for entry in entries]
    assert all(entry["summary"] for entry in entries)


def test_a_pass_is_explained():
    assert "QuantizeLinear" in run("passes", "insert-qdq").stdout
    found = run("passes", "insert-qdk")
    assert found.exit_code == 2 and "did you mean 'insert-qdq'" in found.stderr


# Commands on a bundle and on models.


def test_check(bundle):
    found = run("check", bundle.path, "--json", "--taps")
    assert found.exit_code == 0 and json.loads(found.stdout)["bitwise"]["mismatches"] == 0
    bundle.artifact.write_bytes(b"x")
    found = run("check", bundle.path)
    assert found.exit_code == 1 and "model.onnx" in found.stderr


def test_check_of_no_bundle(tmp_path):
    found = run("check", tmp_path)
    assert (
        found.exit_code == 2
        and found.stderr == f"error: {tmp_path}: not a bundle: it has no manifest.json\n"
    )


def test_simulate_a_bundle_gives_its_golden_outputs(bundle, tmp_path):
    inputs, output = bundle.path / "golden" / "inputs.npz", tmp_path / "y.npz"
    found = run("simulate", bundle.path, "--inputs", inputs, "-o", output, "--taps", "conv_q,fc_q")
    assert found.exit_code == 0, found.output
    arrays = load(output)
    golden = load(bundle.path / "golden" / "outputs.npz")
    assert sorted(arrays) == ["conv_q", "fc_q", "y"]
    assert arrays["y"].tobytes() == golden["y"].tobytes() and arrays["y"].shape == (10, 4)
    assert arrays["conv_q"].shape == (10, 3, 3, 3)
    found = run("simulate", bundle.path, "--inputs", inputs, "-o", output)
    assert found.exit_code == 2 and "--force" in found.stderr
    found = run(
        "simulate", bundle.path, "--inputs", inputs, "-o", output, "--taps", "all", "--force"
    )
    assert found.exit_code == 0 and {"x_q", "x_dq", "conv", "y"} <= set(load(output))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "y.npz"]


def test_simulate_names_an_unknown_tap(bundle, tmp_path):
    inputs = bundle.path / "golden" / "inputs.npz"
    found = run(
        "simulate", bundle.path, "--inputs", inputs, "-o", tmp_path / "y.npz", "--taps", "cnv_q"
    )
    assert found.exit_code == 2 and "conv_q" in found.stderr
    assert not (tmp_path / "y.npz").exists()


def test_inspect(bundle, folder):
    text = run("inspect", bundle.path).stdout
    assert "session option session.x64quantprecision=1" in text and "QuantizeLinear" in text
    assert "float islands: none" in text
    entry = json.loads(run("inspect", bundle.path, "--json").stdout)
    rows = {row["name"]: row for row in entry["quantized"]}
    assert rows["w"]["role"] == "weight" and rows["w"]["granularity"] == "per_channel"
    assert rows["b"]["role"] == "bias" and rows["conv_q"]["zero_points"] == [130, 130]
    assert entry["operators"]["Conv"] == 1 and entry["recipe"] == "int8"
    assert entry["float_islands"] == []
    assert {proof["op_type"] for proof in entry["certificate"]} >= {"Conv", "Gemm"}
    plain = json.loads(run("inspect", "model.onnx", "--json").stdout)
    assert plain["quantized"] == [] and plain["weight_bytes"] == {"float32": 4 * (54 + 108 + 4)}
    assert plain["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 2, 5, 5]}]


def test_a_reader_that_stops_is_no_error(bundle):
    command = f"{sys.executable} -m edgeq inspect {bundle.path} | head -1"
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.stdout == "bundle for ort-cpu, recipe int8\n" and found.stderr == ""


def test_compare_a_model_with_itself(bundle):
    inputs = bundle.path / "golden" / "inputs.npz"
    found = run("compare", bundle.path, bundle.artifact, "--inputs", inputs, "--json")
    assert found.exit_code == 0, found.output
    rows = {row["name"]: row for row in json.loads(found.stdout)["tensors"]}
    assert {"x", "conv", "fc", "y"} <= set(rows)
    assert all(row["mismatches"] == 0 and row["sqnr_db"] is None for row in rows.values())
    assert rows["conv"]["off_by"] == [270, 0, 0, 0, 0]
    assert "no bit differs" in run("compare", bundle.path, bundle.path, "--inputs", inputs).stdout


def test_compare_sees_another_weight(bundle, tmp_path):
    model = onnx.load(bundle.artifact)
    (weight,) = [t for t in model.graph.initializer if t.name == "w"]
    codes = bytearray(weight.raw_data)
    codes[0] = (codes[0] + 30) % 100
    weight.raw_data = bytes(codes)
    onnx.save(model, tmp_path / "other.onnx")
    inputs = bundle.path / "golden" / "inputs.npz"
    found = run("compare", bundle.path, tmp_path / "other.onnx", "--inputs", inputs, "--json")
    rows = {row["name"]: row for row in json.loads(found.stdout)["tensors"]}
    assert rows["x"]["mismatches"] == 0 and rows["conv"]["mismatches"] > 0
    assert rows["conv"]["off_by"][0] == 270 - rows["conv"]["mismatches"]
    assert rows["conv"]["first"].startswith("tensor 'conv', feed 0, index [0, 0")


def test_lint(bundle):
    found = run("lint", bundle.artifact, "--json")
    rules = [finding["rule"] for finding in json.loads(found.stdout)["findings"]]
    assert found.exit_code == 1 and set(rules) == {"x64quantprecision"}
    assert "session.x64quantprecision=1" in run("lint", bundle.artifact).stdout
    found = run("lint", bundle.path)  # the bundle sets the option
    assert found.exit_code == 0 and found.stdout == "no rule is broken\n"


# Printing.


def test_tables_align_figures_to_the_right():
    rows = [["name", "n", "dB"], ["a", "5", "1.25"], ["long", "100", "exact"]]
    assert table(rows) == ["name    n     dB", "a       5   1.25", "long  100  exact"]
    assert table([]) == []


def test_progress_says_each_stage_once(capsys):
    progress = ProgressLines(verbose=True)
    for stage, done in (("load", 0), ("verify", 0), ("verify", 1), ("verify", 2)):
        progress(stage, done, 2)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "load ..." and lines[2] == "verify ..." and len(lines) == 4
    assert lines[1].startswith("load: ") and lines[3].endswith(" s")
