"""Compiling for devices as users do: the command line, its bundle, every device, bad input."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("tvm", reason="needs edgeq[tvm]")

import edgeq
from benchmarks.cases import ZOO
from benchmarks.devices import compare, in_session, make_case
from edgeq.cli import app
from edgeq.errors import UnknownNameError
from edgeq.targeting import find_target
from edgeq.tvm.devices import DEVICES
from edgeq.tvm.toolchain import missing_tools
from tests.manifests import rewrite_manifest
from tests.ssh_server import MISSING, ssh_server

pytestmark = pytest.mark.tvm

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "samples" / "digits"
FIXED = {"Makefile", "check.c", "edgeq_model.c", "edgeq_model.h", "golden", "manifest.json",
         "model.onnx", "report.html", "report.json"}  # fmt: skip


def command(*arguments, status=0):
    """Run a command in this process; return what it prints."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "digits"
    command(
        "compile", DIGITS / "digits.onnx", "--target", "tvm-c", "-o", path, "-q",
        "--calibration", DIGITS / "calibration.npz", "--samples", 24,
    )  # fmt: skip
    return path


def test_a_bundle_holds_code_and_no_python(bundle):
    names = {path.name for path in bundle.iterdir()}
    assert names >= FIXED and "check.py" not in names
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["target"] == "tvm-c" and manifest["bitwise"]["mismatches"] == 0
    assert manifest["bitwise"]["compared"] > 100_000 and len(manifest["taps"]) >= 5
    assert set(manifest["files"]) >= {"edgeq_model.c", "edgeq_weights.c", "kernels.c", "golden.c"}


def test_check_builds_and_runs_it(bundle):
    found = json.loads(command("check", bundle, "--taps", "--json"))
    assert found["bitwise"]["mismatches"] == 0
    assert found["bitwise"]["compared"] > 100_000 and found["bitwise"]["tensors"] > 5
    assert "latency" not in command("check", bundle, "--taps")
    outputs = json.loads(command("check", bundle, "--json"))
    assert 0 < outputs["bitwise"]["compared"] < found["bitwise"]["compared"]
    assert outputs["latency_ms"]["fastest"] > 0


def test_the_report_shows_memory(bundle):
    entry = json.loads((bundle / "report.json").read_text())["memory"]
    header = (bundle / "edgeq_model.h").read_text()
    assert f"EDGEQ_MODEL_WEIGHTS_SIZE {entry['weights']}\n" in header and entry["weights"] > 1000
    assert f"EDGEQ_MODEL_WORKSPACE_SIZE {entry['workspace']}\n" in header
    assert entry["workspace"] >= entry["peak"] > 1000
    ends = [row["offset"] + row["size"] for row in entry["buffers"]]
    assert max(ends) <= entry["workspace"]
    page = (bundle / "report.html").read_text()
    assert "Memory of the device" in page and f"{entry['workspace']:,}" in page


def test_what_is_verified_elsewhere_is_said(tmp_path):
    path = tmp_path / "board"
    text = command(
        "compile", DIGITS / "digits.onnx", "--target", "tvm-cortex-m4", "-o", path,
        "--calibration", DIGITS / "calibration.npz", "--samples", 2,
    )  # fmt: skip
    host = json.loads((path / "report.json").read_text())["verified_on"]
    assert host in DEVICES and DEVICES[host].is_native
    assert f"verified as compiled for {host}; on the device or its emulator: edgeq check" in text
    assert f"Compiled for {host}, the model gives" in (path / "report.html").read_text()


def test_the_model_in_it_is_that_of_ort_cpu(bundle, tmp_path):
    edgeq.compile(
        DIGITS / "digits.onnx", target="ort-cpu", output=tmp_path / "ort",
        calibration=DIGITS / "calibration.npz", samples=24,
    )  # fmt: skip
    with np.load(DIGITS / "evaluation.npz") as data:
        feeds = {name: data[name][:1] for name in data.files if name != "label"}
    left, right = (edgeq.simulate(path, feeds) for path in (bundle, tmp_path / "ort"))
    assert left.keys() == right.keys() and left
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_the_same_bytes_twice(bundle, tmp_path):
    command(
        "compile", DIGITS / "digits.onnx", "--target", "tvm-c", "-o", tmp_path / "again", "-q",
        "--calibration", DIGITS / "calibration.npz", "--samples", 24,
    )  # fmt: skip
    files = [path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()]
    assert len(files) > 15
    for name in files:
        assert (bundle / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_an_altered_file_is_named(bundle, tmp_path):
    subprocess.run(["cp", "-r", str(bundle), str(tmp_path / "copy")], check=True)
    source = tmp_path / "copy" / "edgeq_weights.c"
    source.write_bytes(source.read_bytes() + b"\n")
    text = command("check", tmp_path / "copy", status=1)
    assert "edgeq_weights.c" in text and "altered" in text


def test_what_no_digest_covers_is_not_compiled(bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]["edgeq_weights.c"]
    rewrite_manifest(copy, files=manifest["files"])
    (copy / "edgeq_weights.c").write_text("#error never seen\n")
    text = command("check", copy, status=2)
    assert "cannot build" in text and "never seen" not in text


def test_a_runner_of_ones_own(bundle, tmp_path, monkeypatch):
    """It is found from where the user is, and says what is no text."""
    script = tmp_path / "board.sh"
    script.write_text("#!/bin/sh\ntouch ran\nprintf 'hello \\377\\n'\nexec $1\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    text = command("check", bundle, "--runner", "./board.sh {}")
    assert (tmp_path / "ran").exists() and "run by" in text


def test_another_makefile_is_not_read(bundle, tmp_path):
    subprocess.run(["cp", "-r", str(bundle), str(tmp_path / "copy")], check=True)
    (tmp_path / "copy" / "GNUmakefile").write_text("$(error what no manifest lists)\n")
    assert "error" not in command("check", tmp_path / "copy")


def test_a_remote_host_gets_the_program(bundle, tmp_path, monkeypatch):
    """A stand-in for ssh runs what it is told here, as a shell at the other end would."""
    ssh, there = tmp_path / "ssh", tmp_path / "there"
    there.mkdir()
    ssh.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/said\nshift 3\nexport TMPDIR={there}\nsh -c "$1"\n'
        f"status=$?; ls {there} > {tmp_path}/left; exit $status\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = json.loads(command("check", bundle, "--ssh", "board", "--json"))
    assert found["bitwise"]["mismatches"] == 0 and found["bitwise"]["compared"] > 0
    assert (tmp_path / "said").read_text().startswith("-o BatchMode=yes board ")
    assert (tmp_path / "left").read_text() == ""


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_host_with_a_server_runs_the_program(bundle, tmp_path, monkeypatch):
    with ssh_server(tmp_path) as server:
        monkeypatch.setenv("PATH", f"{server.bin}:{os.environ['PATH']}")
        found = json.loads(command("check", bundle, "--ssh", "board", "--taps", "--json"))
        assert found["bitwise"]["mismatches"] == 0 and found["bitwise"]["tensors"] > 1
        text = command("check", bundle, "--ssh", "stranger", status=2)
        assert "Permission denied" in text
        assert list(server.there.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evaluation", "x.npz", "--metric", "top1"], "--evaluation is for ort-cpu"),
        (["--runner", "board"], "has no {}"),
        (["--runner", ""], "has no {}"),
        (["--runner", "sh 'board {}"], "is no command: No closing quotation"),
        (["--runner", "false {}", "--ssh", "board"], "give one"),
        (["--runner", "/no/such/program {}"], "cannot run /no/such/program"),
        (["--ssh", "-oProxyCommand=x"], "not a host"),
        (["--ssh", "board", "--python", "python3"], "for a bundle of ort-cpu"),
    ],
)
def test_bad_options_are_named(bundle, options, message):
    assert message in command("check", bundle, *options, status=2)


def test_targets_say_what_they_need(monkeypatch):
    rows = {row["name"]: row for row in json.loads(command("targets", "--json"))["targets"]}
    assert set(rows) == {"ort-cpu", *DEVICES} and rows["ort-cpu"]["needs"] == []
    assert {"qemu-user", "gcc-aarch64-linux-gnu"} < set(rows["tvm-aarch64"]["needs"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "missing here for tvm-c: make (Debian: apt-get install make)" in command("targets")


def test_a_device_that_is_not_there_is_guessed():
    with pytest.raises(UnknownNameError, match=r"tvm-cortex-m5.*tvm-cortex-m4"):
        find_target("tvm-cortex-m5")


def test_a_missing_toolchain_is_named(bundle, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    text = command("check", bundle, status=2)
    assert "apt-get install" in text and "gcc" in text


def test_without_tvm_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['tvm'] = None\n"
        "from edgeq.cli import main; sys.exit(main())"
    )  # fmt: skip
    arguments = [
        "compile", str(DIGITS / "digits.onnx"), "--target", "tvm-c", "-o", str(tmp_path / "x"),
        "-q", "--samples", "2", "--calibration", str(DIGITS / "calibration.npz"),
    ]  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 2 and "edgeq[tvm]" in found.stderr, found.stderr
    assert not (tmp_path / "x").exists()


@dataclass
class Given:
    recipe: str = "int8"
    runs: int = 20
    zoo: Path = ZOO
    bundles: Path | None = None


@pytest.fixture(scope="module", params=["digits", pytest.param("kws-dscnn", marks=pytest.mark.zoo)])
def case(request):
    if request.param != "digits" and not ZOO.exists():
        pytest.skip("needs the trained models of ../shared/zoo")
    with tempfile.TemporaryDirectory() as folder:
        yield make_case(request.param, Given(), Path(folder))


@pytest.mark.emulated
@pytest.mark.parametrize("device", DEVICES)
def test_every_device_computes_the_same(case, device, tmp_path):
    missing = missing_tools(DEVICES[device])
    if missing:
        pytest.skip(f"needs {'; '.join(missing)}")
    found = compare(case, device, tmp_path)
    few = DEVICES[device].platform == "semihosting"
    assert found.differing == 0, found.first
    assert found.runs == (2 if few else 20) and found.compared > 10_000


def test_onnx_runtime_computes_the_same(case):
    found = in_session(case)
    assert found.differing == 0 and found.compared >= 20 * 10
