"""Verify a bundle, whatever its target and wherever: in ONNX Runtime, or by its own program."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.check import CheckResult
from edgeq.check import check as check_in_session
from edgeq.check_folder import CheckError, altered_files, inside, read_manifest
from edgeq.check_session import host_facts
from edgeq.errors import BundleError
from edgeq.remote_check import Wanted, check_by_runner, check_host, check_over_ssh

PREFIX = "tvm-"


def check_bundle(
    bundle: str | os.PathLike[str],
    *,
    taps: bool = False,
    evaluation: str | os.PathLike[str] | None = None,
    metric: str | None = None,
    threads: int = 1,
    repeat: int | None = None,
    runs: int | None = None,
    any_version: bool = False,
    any_cpu: bool = False,
    runner: str | None = None,
    ssh: str | None = None,
    python: str | None = None,
) -> CheckResult:
    """Verify a bundle.

    Args:
        bundle: Its folder.
        taps: Compare every quantized tensor, not the outputs alone.
        evaluation: For `ort-cpu`: `.npz` with the model's inputs and `label`, sample axis first.
        metric: For `evaluation`.
        threads: For `ort-cpu`: of the session whose latency is measured.
        repeat: For `ort-cpu`: timed runs.
        runs: For `ort-cpu`: golden inputs that are compared, the first so many; None: all.
        any_version: For `ort-cpu`: check although this onnxruntime was not tested.
        any_cpu: For `ort-cpu`: check although bits may differ on this kind of CPU.
        runner: A command that runs the check elsewhere; `{}` is the check's program for TVM's
            devices, and the bundle's `check.py` for `ort-cpu`.
        ssh: The host on which to run it, as `ssh` names it.
        python: For `ort-cpu` and `ssh`: the Python there; None: `python3`.

    Raises:
        BundleError: The folder is no bundle, an option does not fit its target, or its program
            cannot be built or run.
    """
    folder = Path(bundle)
    try:
        manifest = read_manifest(folder)
        target = str(manifest["target"])
        if runner is not None and ssh is not None:
            raise CheckError("--runner and --ssh both say where to run: give one")
        if python is not None and (ssh is None or target.startswith(PREFIX)):
            raise CheckError("--python is the one on the host of --ssh, for a bundle of ort-cpu")
        if target.startswith(PREFIX):
            if evaluation is not None or metric is not None:
                raise CheckError(f"{target}: --evaluation is for ort-cpu; score the model there")
            return _on_device(folder, str(bundle), target, taps=taps, runner=runner, ssh=ssh)
        if runner is not None or ssh is not None:
            flags = {"taps": taps, "any-version": any_version, "any-cpu": any_cpu}
            values = {"metric": metric, "threads": threads, "repeat": repeat, "runs": runs}
            options = [f"--{name}" for name, given in flags.items() if given]
            options += [f"--{name}={value}" for name, value in values.items() if value is not None]
            data = None if evaluation is None else Path(evaluation)
            wanted = Wanted(folder, manifest, options, data)
            return _elsewhere(wanted, str(bundle), runner=runner, ssh=ssh, python=python)
        return check_in_session(
            bundle,
            taps=taps,
            evaluation=evaluation,
            metric=metric,
            threads=threads,
            repeat=repeat,
            runs=runs,
            any_version=any_version,
            any_cpu=any_cpu,
        )
    except CheckError as error:
        raise BundleError(str(error)) from error


def _elsewhere(
    wanted: Wanted, name: str, *, runner: str | None, ssh: str | None, python: str | None
) -> CheckResult:
    """Run the bundle's `check.py` where the user wants it."""
    altered = altered_files(wanted.folder, wanted.manifest)
    if altered:
        return CheckResult(name, str(wanted.manifest["target"]), altered=altered)
    if wanted.evaluation is not None and not wanted.evaluation.is_file():
        raise CheckError(f"{wanted.evaluation}: no such file")
    if ssh is not None:
        return check_over_ssh(wanted, ssh, python or "python3")
    assert runner is not None
    return check_by_runner(wanted, runner)


def _on_device(
    folder: Path, name: str, target: str, *, taps: bool, runner: str | None, ssh: str | None
) -> CheckResult:
    """Build the bundle's check program and run it where it belongs."""
    from edgeq.tvm.devices import find_device
    from edgeq.tvm.toolchain import run_check

    manifest, host = read_manifest(folder), host_facts()
    altered = altered_files(folder, manifest)
    if altered:
        return CheckResult(name, target, altered=altered, host=host)
    device = find_device(target)
    if ssh is not None and device.platform != "hosted":
        raise CheckError(f"--ssh runs programs of an operating system; {target} has none: --runner")
    command = runner if ssh is None else remote_runner(ssh)
    with tempfile.TemporaryDirectory() as scratch:
        copy, into = Path(scratch) / "bundle", Path(scratch) / "build"
        into.mkdir()
        _copy_listed(folder, manifest, copy)
        found = run_check(copy, device, into, runner=command, taps=taps)
    latency = {} if found.microseconds is None else {"fastest": found.microseconds / 1e3}
    where = command or device.runner
    return CheckResult(
        name,
        target,
        len(manifest["outputs"]) + (len(manifest.get("taps", [])) if taps else 0),
        found.compared,
        found.errors,
        found.first or None,
        latency_ms=latency,
        host=host,
        notes=() if where == "{}" else (f"run by: {where}",),
    )


def _copy_listed(folder: Path, manifest: Mapping[str, Any], to: Path) -> None:
    """Copy the files whose digests the manifest has: nothing else is compiled."""
    for name in manifest["files"]:
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(inside(folder, name), path)


def remote_runner(host: str) -> str:
    """Return the command that copies a program to `host` over ssh, runs it and removes it."""
    check_host(host)
    run = 'f=$(mktemp) && cat > "$f" && chmod 700 "$f" && "$f"; s=$?; rm -f "$f"; exit $s'
    script = f'ssh -o BatchMode=yes {shlex.quote(host)} {shlex.quote(run)} < "$1"'
    return f"sh -c {shlex.quote(script)} sh {{}}"
