"""`edgeq compile`: what it writes and prints, every bad input, interrupts and full disks."""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

import edgeq
from edgeq.cli import app
from edgeq.errors import VerificationError
from edgeq.request import CompileOutcome

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


def test_compile_and_check(folder):
    found = spawn(*COMPILE, "-o", "out", "--json")
    assert found.returncode == 0, found.stderr
    entry = json.loads(found.stdout)
    assert found.stdout.count("\n") == 1
    assert list(entry) == ["bundle", "target", "recipe", "bitwise", "certificate", "metrics",
                           "bytes", "seconds", "versions", "noise"]  # fmt: skip
    assert entry["bundle"] == "out" and entry["bitwise"]["mismatches"] == 0
    assert entry["bitwise"]["compared"] > 1000 and entry["certificate"]["unproven"] == 0
    assert entry["metrics"]["sqnr_db"] > 20
    assert list(entry["seconds"]) == ["load", "prepare", "calibrate", "quantize", "certify",
                                      "verify", "evaluate", "bundle"]  # fmt: skip
    assert set(os.listdir("out")) == FILES  # noqa: PTH208  # names are all that counts
    assert "calibrate" in found.stderr
    checked = subprocess.run(
        [sys.executable, "-I", "out/check.py", "--taps"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_compile_twice_gives_the_same_bytes(folder):
    for name in ("one", "two"):
        found = run(
            *COMPILE, "-o", name, "-q", "--evaluation", "evaluation.npz", "--metric", "top1"
        )
        assert found.exit_code == 0 and found.output == "", found.output
    names = [p.relative_to("one") for p in Path("one").rglob("*") if p.is_file()]
    assert len(names) == 8
    for path in names:
        assert (Path("one") / path).read_bytes() == (Path("two") / path).read_bytes(), path


def test_a_dry_run_writes_nothing(folder):
    before = sorted(folder.iterdir())
    found = run(*COMPILE, "--dry-run")
    assert found.exit_code == 0, found.output
    assert "conv" in found.stdout and sorted(folder.iterdir()) == before
    quiet = run(*COMPILE, "--dry-run", "-q")
    assert quiet.stdout == found.stdout and quiet.stderr == ""


def test_compile_in_python(folder):
    bundle = edgeq.compile("model.onnx", calibration="calibration.npz", output="out")
    assert isinstance(bundle, edgeq.Bundle)
    edgeq.check(bundle).raise_for_mismatch()
    feeds = {"x": load("calibration.npz")["x"][:1]}
    (y,) = bundle.session().run(None, feeds)
    assert edgeq.simulate(bundle, feeds)["y"].tobytes() == y.tobytes() and y.size == 4


def corrupt(name, change):
    def make():
        path = Path(name)
        path.write_bytes(change(path.read_bytes()))

    return make


def samples(**arrays):
    return lambda: np.savez("calibration.npz", **arrays)


def model(change):
    def make():
        proto = onnx.load("model.onnx")
        change(proto)
        onnx.save(proto, "model.onnx")

    return make


def unknown_operator(proto):
    proto.graph.node[1].CopyFrom(helper.make_node("Frobnicate", ["conv"], ["relu"], name="relu"))


def external_outside(proto):
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "216")):
        weight.external_data.add(key=key, value=value)


X = np.zeros((4, 2, 5, 5), np.float32)
NAN = X.copy()
NAN[2, 0, 0, 0] = np.nan

BAD = [
    # what is wrong, how it is made, further options, what the message says
    ("truncated model", corrupt("model.onnx", lambda d: d[: len(d) // 2]), (), "model.onnx"),
    ("not an ONNX file", lambda: Path("model.onnx").write_text("hello, world"), (), "model.onnx"),
    ("no model", lambda: Path("model.onnx").unlink(), (), "model.onnx"),
    ("empty model", lambda: Path("model.onnx").write_bytes(b""), (), "model.onnx"),
    ("unknown operator", model(unknown_operator), (), "Frobnicate"),
    ("external data outside", model(external_outside), (), "secret"),
    ("wrong name", samples(y=X), (), "'y'"),
    ("wrong shape", samples(x=X[:, :, :4]), (), "'x'"),
    ("wrong dtype", samples(x=X.astype(np.int64)), (), "int64"),
    ("wrong float", samples(x=X.astype(np.float64)), (), "float64"),
    ("NaN", samples(x=NAN), (), "nan"),
    ("empty calibration set", samples(x=X[:0]), (), "calibration"),
    ("pickle", samples(x=np.array([{}], object)), (), "pickle"),
    ("no calibration", lambda: Path("calibration.npz").unlink(), (), "calibration.npz"),
    ("not an npz", lambda: Path("calibration.npz").write_bytes(b"x"), (), "calibration.npz"),
    ("unknown recipe", None, ("--recipe", "int7"), "int7"),
    ("unknown recipe key", None, ("--set", "activation.observr=minmax"), "'observer'"),
    ("wrong recipe value", None, ("--set", "activation.observer=minmaxx"), "'minmax'"),
    ("setting without =", None, ("--set", "activation"), "KEY=VALUE"),
    ("unknown target", None, ("--target", "ort-cpuu"), "'ort-cpu'"),
    ("unknown input", None, ("--input-type", "z=uint8"), "z"),
    ("unknown type", None, ("--input-type", "x=int3"), "x=int3"),
    ("metric without data", None, ("--metric", "top1"), "--evaluation"),
    ("unknown metric", None, ("--metric", "top7", "--evaluation", "evaluation.npz"), "top7"),
    ("unknown option", None, ("--recipee", "int8"), "--recipe"),
    ("output exists", lambda: Path("out").mkdir(), (), "--force"),
    ("output is a file", lambda: Path("out").touch(), ("--force",), "not a bundle"),
    ("output inside a file", None, ("-o", "model.onnx/b"), "is not a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "make", "options", "says"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_to_compile(folder, wrong, make, options, says):
    if make is not None:
        make()
    before = sorted(p.name for p in folder.iterdir())
    found = run(*COMPILE, "-o", "out", "-q", *options)
    assert found.exit_code == 2, found.output
    assert says in found.stderr and found.stdout == ""
    assert "unexpectedly" not in found.stderr
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_quantized_model_is_refused_with_the_way_out(folder, bundle):
    found = run("compile", bundle.artifact, *COMPILE[2:], "-o", "out")
    assert found.exit_code == 2 and "lint" in found.stderr and not Path("out").exists()


def test_a_user_error_is_one_line(folder):
    found = spawn(*COMPILE, "-o", "out", "--recipe", "int7")
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.count("\n") == 1 and found.stderr.startswith("error: ")


def test_debug_shows_the_traceback_and_the_message(folder):
    found = spawn(*COMPILE, "-o", "out", "--recipe", "int7", "--debug")
    assert found.returncode == 2 and "Traceback" in found.stderr and "\nerror: " in found.stderr


@pytest.mark.parametrize(
    ("raised", "status", "says"),
    [
        (VerificationError("bits differ"), 1, "error: bits differ\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory"),
        (ZeroDivisionError("x"), 2, "run it again with --debug"),
    ],
)
def test_exit_statuses(folder, monkeypatch, raised, status, says):
    def fail(request, progress):
        raise raised

    monkeypatch.setattr(importlib.import_module("edgeq.compile"), "compile_model", fail)
    found = run(*COMPILE, "-o", "out")
    assert found.exit_code == status and says in found.stderr and found.stdout == ""


def test_what_a_request_holds(folder, monkeypatch):
    seen = []

    def compile_model(request, progress):
        seen.append(request)
        os.write(1, b"a library prints\n")
        print("so does another")
        return CompileOutcome(bundle=Path("out"), target="ort-cpu", recipe="int8")

    module = importlib.import_module("edgeq.compile")  # not the function of that name
    monkeypatch.setattr(module, "compile_model", compile_model)
    found = run(*COMPILE, "-o", "out", "--set", "activation.observer=minmax", "--set",
                "weight.limit=64", "--keep-float", "a*", "--keep-float", "b", "--seed", "3",
                "--input-type", "x=uint8", "--output-type", "y=uint8", "--samples", "5",
                "--allow-unproven", "c", "--json")  # fmt: skip
    assert found.exit_code == 0 and json.loads(found.stdout)["bundle"] == "out"
    (request,) = seen
    assert dict(request.settings) == {"activation.observer": '"minmax"', "weight.limit": "64"}
    assert request.keep_float == ("a*", "b") and request.allow_unproven == ("c",)
    assert request.input_types == {"x": "uint8"} and request.output_types == {"y": "uint8"}
    assert (request.seed, request.samples, request.output) == (3, 5, Path("out"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(folder, number, status):
    Path("feeds.py").write_text(
        "import os, numpy as np\n"
        "def stop():\n"
        "    for i in range(9):\n"
        "        yield {'x': np.zeros((1, 2, 5, 5), np.float32)}\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
    )
    before = sorted(p.name for p in folder.iterdir())
    found = spawn(*COMPILE[:4], "--calibration", "feeds:stop", "-o", "out", cwd=folder)
    assert found.returncode == status, found.stderr
    assert "Traceback" not in found.stderr
    after = sorted(p.name for p in folder.iterdir() if p.name != "__pycache__")
    assert after == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_comes_out_as_another_error(folder, number, status):
    Path("feeds.py").write_text(
        "import os\n"
        "def stop():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    except BaseException as error:\n"
        "        raise ImportError('initialization failed') from error\n"
        "    yield\n"
    )
    found = spawn(*COMPILE[:4], "--calibration", "feeds:stop", "-o", "out", "-q", cwd=folder)
    assert found.returncode == status
    assert found.stderr == "error: interrupted; nothing was written\n"
    assert not Path("out").exists()


def test_a_full_disk(folder, monkeypatch):
    disk = folder / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True
    )
    if mount.returncode:
        shutil.rmtree(disk)
        disk.mkdir()

        def full(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
    try:
        found = run(*COMPILE, "-o", disk / "out", "-q")
        assert found.exit_code == 2 and "the disk is full" in found.stderr, found.output
        assert list(disk.iterdir()) == []
    finally:
        if not mount.returncode:
            subprocess.run(["umount", str(disk)], check=True)
