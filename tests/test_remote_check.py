"""`edgeq check --ssh` against a real sshd, and `--runner`, for bundles of ort-cpu."""

import json
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import edgeq
from edgeq.bundle import Bundle
from edgeq.cli import app
from edgeq.errors import BundleError
from tests.manifests import rewrite_manifest
from tests.ssh_server import MISSING, Server, ssh_server

HERE = ("--python", sys.executable)
needs_sshd = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, `ssh` for it in front of PATH; nothing may be left there."""
    monkeypatch.setenv("PATH", f"{running.bin}:{os.environ['PATH']}")
    yield running
    assert list(running.there.iterdir()) == []


def command(*arguments: object, status: int = 0) -> str:
    """Run `edgeq check`; return what it prints."""
    found = CliRunner().invoke(app, ["check", *map(str, arguments)])
    assert found.exit_code == status, found.output
    return found.stdout if status == 0 else found.output


def write_python(path: Path, text: str) -> Path:
    """Write a script that stands for Python at the other end."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_sshd
def test_a_bundle_is_checked_there(server: Server, bundle: Bundle) -> None:
    found = json.loads(command(bundle.path, "--ssh", "board", *HERE, "--taps", "--json"))
    here = json.loads(command(bundle.path, "--taps", "--json"))
    assert set(found) == set(here) and found["bundle"] == str(bundle.path)
    assert found["bitwise"] == here["bitwise"] and found["bitwise"]["compared"] > 0
    assert found["host"] == here["host"] and found["memory_mib"]["peak"] > 0
    assert found["notes"] == ["run by: ssh board"]


@needs_sshd
def test_options_and_data_go_there(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    """The data's own name stays here: it may be an odd one."""
    data = tmp_path / "$(touch odd) '\".npz"
    x = np.random.default_rng(0).normal(0, 1, (40, 2, 5, 5)).astype(np.float32)
    np.savez(data, x=x, label=np.arange(40) % 4)
    check = partial(edgeq.check, bundle, evaluation=data, metric="top1", runs=2, threads=2)
    here, there = check(repeat=3), check(repeat=3, ssh="board", python=sys.executable)
    assert there.metrics == here.metrics and set(there.metrics) == {"top1", "top1_host"}
    assert there.compared == here.compared and there.tensors == 1
    assert there.latency_ms.keys() == here.latency_ms.keys()
    there.raise_for_mismatch()


@needs_sshd
def test_a_bit_that_differs_there(server: Server, bundle: Bundle) -> None:
    """Digests of taps in another order: as if the tensors were other ones."""
    rewrite_manifest(bundle.path, taps=[vars(tap) for tap in bundle.manifest.taps[::-1]])
    text = command(bundle.path, "--ssh", "board", *HERE, "--taps", status=1)
    assert (
        "FAILED" in text and "first difference: tap" in text and "note: run by: ssh board" in text
    )


@needs_sshd
def test_an_altered_bundle_is_not_copied(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "report.html").write_text("another")
    said = write_python(tmp_path / "python", f"touch {tmp_path}/ran")
    text = command(bundle.path, "--ssh", "board", "--python", said, status=1)
    assert "altered or missing: report.html" in text and not (tmp_path / "ran").exists()


@needs_sshd
def test_what_the_manifest_does_not_list_stays_here(
    server: Server, bundle: Bundle, tmp_path: Path
) -> None:
    """A module beside check.py that nobody proved would be imported in place of Python's own."""
    (bundle.path / "json.py").write_text("raise SystemExit('imported')")
    command(bundle.path, "--ssh", "board", *HERE)
    command(bundle.path, "--runner", "python3 {}")


@needs_sshd
@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("stranger", "Permission denied"),
        ("closed", "Connection refused"),
        ("imposter", "Host key verification failed"),
    ],
)
def test_a_host_that_cannot_be_reached(
    server: Server, bundle: Bundle, host: str, message: str
) -> None:
    text = command(bundle.path, "--ssh", host, status=2)
    assert text.startswith(f"error: --ssh {host}: ") and message in text
    assert f"`ssh {host} true` has to work" in text


@needs_sshd
def test_no_python_there(server: Server, bundle: Bundle) -> None:
    text = command(bundle.path, "--ssh", "board", "--python", "/no/python 3", status=2)
    assert "cannot run /no/python 3 there" in text and "--python" in text and "3.10" in text


@needs_sshd
def test_no_onnxruntime_there(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    bare = tmp_path / "bare" / "bin" / "python"
    text = command(bundle.path, "--ssh", "board", "--python", bare, status=2)
    assert "ssh board: the check needs numpy and onnxruntime" in text
    assert f"{bare} has no numpy and no onnxruntime: {bare} -m pip install" in text


@needs_sshd
def test_a_version_that_was_not_tested(server: Server, bundle: Bundle) -> None:
    tested = {"name": "onnxruntime", "at_least": "9.0", "below": "9.1"}
    rewrite_manifest(bundle.path, runtime=tested)
    text = command(bundle.path, "--ssh", "board", *HERE, status=2)
    assert "ssh board: onnxruntime" in text and "was not tested" in text
    text = command(bundle.path, "--ssh", "board", *HERE, "--any-version")
    assert "was not tested" in text and "ok: the same bits" in text


@needs_sshd
def test_a_disk_that_is_full_there(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    script = f'ulimit -f 1; trap "" XFSZ; exec {sys.executable} "$@"'
    small = write_python(tmp_path / "python", script)
    text = command(bundle.path, "--ssh", "board", "--python", small, status=2)
    assert "ssh board: the bundle cannot be copied" in text


@needs_sshd
@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("echo '[]'", "ended with status 0: []"),
        ("echo hello", "ended with status 0: hello"),
        ("exit 7", "ended with status 7: it printed nothing"),
        ("echo '{\"bitwise\": 3}'", "ended with status 0"),
        ("kill -9 $$", "what ran there was killed"),
    ],
)
def test_what_a_check_never_says(
    server: Server, bundle: Bundle, tmp_path: Path, says: str, message: str
) -> None:
    odd = write_python(tmp_path / "python", says)
    text = command(bundle.path, "--ssh", "board", "--python", odd, status=2)
    assert text.startswith("error: ") and message in text and "Traceback" not in text


@needs_sshd
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupt_leaves_nothing_there(
    server: Server, bundle: Bundle, number: signal.Signals
) -> None:
    start = [sys.executable, "-m", "edgeq", "check", str(bundle.path), "--ssh", "board", *HERE]
    endless = [*start, "--repeat", "1000000000"]
    process = subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(list(server.there.glob("edgeq-check-*/bundle/check.py"))))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    wait_for(lambda: not list(server.there.iterdir()))
    assert process.returncode == {2: 130, 15: 143, 9: -9}[number]
    assert "Traceback" not in errors


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_ssh_it_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "cannot run ssh" in command(bundle.path, "--ssh", "board", status=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ssh", "-oProxyCommand=x"], "not a host"),
        (["--ssh", ""], "not a host"),
        (["--ssh", "board", "--runner", "{}"], "give one"),
        (["--python", "python3"], "--python is the one on the host of --ssh"),
        (["--runner", "board"], "has no {}"),
        (["--runner", "/no/such/program {}"], "cannot run /no/such/program"),
        (["--runner", "true {}"], "it printed nothing"),
        (["--runner", "python3 {}", "--evaluation", "no.npz", "--metric", "top1"], "no such file"),
        (["--runner", "python3 {}", "--metric", "top1"], "give both"),
    ],
)
def test_options_that_do_not_fit(bundle: Bundle, options: list[str], message: str) -> None:
    assert message in command(bundle.path, *options, status=2)


def test_a_runner_gets_check_py(bundle: Bundle, tmp_path: Path) -> None:
    """In a copy, with all options behind it, in the folder that the user is in."""
    script = f'echo "$@" > {tmp_path}/said; exec {sys.executable} "$@"'
    board = write_python(tmp_path / "board", script)
    found = json.loads(command(bundle.path, "--runner", f"{board} {{}}", "--taps", "--json"))
    here = json.loads(command(bundle.path, "--taps", "--json"))
    assert found["bitwise"] == here["bitwise"] and found["notes"] == [f"run by: {board} {{}}"]
    program, *options = (tmp_path / "said").read_text().split()
    assert options == ["--json", "--taps", "--threads=1"]
    assert not program.startswith(str(bundle.path)) and not Path(program).exists()


def test_a_result_is_not_believed_against_its_status(bundle: Bundle, tmp_path: Path) -> None:
    liar = write_python(tmp_path / "liar", f'{sys.executable} "$@"; exit 1')
    with pytest.raises(BundleError, match="ended with status 1 after"):
        edgeq.check(bundle, runner=f"{liar} {{}}")
