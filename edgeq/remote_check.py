"""Check a bundle for ONNX Runtime elsewhere, by its own `check.py`: over ssh, or by a command.

What the manifest lists is copied, and nothing else. Over ssh it goes to a fresh folder, which is
removed in the end, also when this side is interrupted or lost (`edgeq/remote_side.py`).
"""

import json
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.check import CheckResult
from edgeq.check_folder import CheckError, inside
from edgeq.runner import finished, runner_command

EVALUATION = "evaluation.npz"  # the data's name there, beside the bundle
GRACE = 10  # seconds that the other side has to remove its folder
# A board that is gone ends the check: within a minute, or when nobody answers.
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
SSH_FAILED, NOT_FOUND, NOT_EXECUTABLE = 255, 127, 126


@dataclass(frozen=True)
class Wanted:
    """What is to be checked.

    Attributes:
        folder: The bundle.
        manifest: Its manifest; no file of it is altered.
        options: For its `check.py`; `--json` and those for `evaluation` left out.
        evaluation: The data for its metric, or None.
    """

    folder: Path
    manifest: Mapping[str, Any]
    options: Sequence[str] = ()
    evaluation: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The bundle's files and the data, by their names in the folder that they go to."""
        names = ("manifest.json", *self.manifest["files"])
        files = {f"bundle/{name}": inside(self.folder, name) for name in names}
        return files if self.evaluation is None else {**files, EVALUATION: self.evaluation}

    def arguments(self, evaluation: str) -> list[str]:
        """Return the arguments of `check.py`, where the data lie as `evaluation`."""
        data = [] if self.evaluation is None else ["--evaluation", evaluation]
        return ["--json", *self.options, *data]


def check_by_runner(wanted: Wanted, runner: str) -> CheckResult:
    """Check with a command; `{}` in it is the path of a copy's `check.py`.

    Raises:
        CheckError: The check could not be made there.
        EdgeqError: The command cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="edgeq-check-") as scratch:
        for name, path in wanted.files.items():
            if name != EVALUATION:
                (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, Path(scratch) / name)
        data = "" if wanted.evaluation is None else str(wanted.evaluation.resolve())
        command = runner_command(runner, Path(scratch) / "bundle" / "check.py")
        found = finished([*command, *wanted.arguments(data)])
    return _read(wanted, runner, found.returncode, found.stdout, found.stderr)


def check_over_ssh(wanted: Wanted, host: str, python: str = "python3") -> CheckResult:
    """Check on `host`, with `python` there; a leading `~/` is the home folder there.

    Raises:
        CheckError: The host cannot be reached, lacks something, or the check could not be made.
    """
    check_host(host)
    program = Path(__file__).with_name("remote_side.py").read_bytes()
    start = f"import sys; exec(sys.stdin.buffer.read({len(program)}))"
    here = f"./{python[2:]}" if python.startswith("~/") else python  # ssh starts in the home folder
    words = [here, "-c", start, *wanted.arguments(EVALUATION)]
    status, output, errors = _run([*SSH, host, shlex.join(words)], program, wanted.files)
    if status == SSH_FAILED:
        reason = _last(errors) or "the connection ended, or what ran there was killed"
        raise CheckError(
            f"--ssh {host}: {reason}; `ssh {host} true` has to work, and to ask for nothing"
        )
    if status in (NOT_FOUND, NOT_EXECUTABLE):
        raise CheckError(
            f"--ssh {host}: cannot run {python} there ({_last(errors)}): install Python 3.10 or"
            " later, numpy and onnxruntime, or name another Python with --python"
        )
    return _read(wanted, f"ssh {host}", status, output, errors)


def check_host(host: str) -> None:
    """Refuse what `ssh` would take for an option.

    Raises:
        CheckError: It is no host.
    """
    if not host or host.startswith("-"):
        raise CheckError(f"--ssh {host}: not a host")


def _run(command: Sequence[str], program: bytes, files: Mapping[str, Path]) -> tuple[int, str, str]:
    """Run ssh with the program and a tar of the files as its input, which stays open meanwhile."""
    with (
        tempfile.TemporaryFile() as packed,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, path in files.items():
                with path.open("rb") as file:
                    archive.addfile(_member(name, path), file)
        packed.seek(0)
        try:
            # In a session of its own: an interrupt at the terminal is for this side alone, which
            # then closes the input and lets the other side remove its folder.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise CheckError(f"cannot run {command[0]}: {error}; install OpenSSH") from error
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # it ended early, and its status says why
                process.stdin.write(program)
                shutil.copyfileobj(packed, process.stdin)
                process.stdin.flush()
            status = process.wait()
        finally:
            with suppress(OSError):
                process.stdin.close()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        output.seek(0)
        errors.seek(0)
        return (
            status,
            output.read().decode(errors="replace"),
            errors.read().decode(errors="replace"),
        )


def _member(name: str, path: Path) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = path.stat().st_size
    return member


def _read(wanted: Wanted, where: str, status: int, output: str, errors: str) -> CheckResult:
    """Return what a `check.py` found; its JSON is the last line, whatever a login prints before."""
    said = [line.partition("error: ")[2] for line in errors.splitlines() if "error: " in line]
    if status == 2 and said:
        raise CheckError(f"{where}: {said[-1]}")
    try:
        result = result_of(json.loads(_last(output)), str(wanted.folder), f"run by: {where}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = _last(errors) or _last(output) or "it printed nothing"
        raise CheckError(f"{where}: the check ended with status {status}: {text}") from error
    if result.exit_status != status:
        raise CheckError(f"{where}: the check ended with status {status} after {_last(output)}")
    return result


def result_of(entry: Mapping[str, Any], bundle: str, note: str) -> CheckResult:
    """Return the result that `--json` printed elsewhere, under its folder's name here.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It is something else.
    """
    bits = entry["bitwise"]
    return CheckResult(
        bundle,
        str(entry["target"]),
        tensors=int(bits["tensors"]),
        compared=int(bits["compared"]),
        mismatches=int(bits["mismatches"]),
        first=None if bits.get("first") is None else str(bits["first"]),
        altered=tuple(str(name) for name in entry["altered"]),
        metrics=_figures(entry["metrics"]),
        latency_ms=_figures(entry["latency_ms"]),
        memory_mib=_figures(entry.get("memory_mib", {})),  # checks of older bundles say nothing
        host={str(k): v if isinstance(v, int) else str(v) for k, v in entry["host"].items()},
        notes=(*(str(text) for text in entry["notes"]), note),
    )


def _figures(entry: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in entry.items()}


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
