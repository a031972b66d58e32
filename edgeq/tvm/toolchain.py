"""Build a bundle's check with the device's tools and run it: its Makefile, from Python."""

import importlib.util
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeq.errors import BundleError, EdgeqError
from edgeq.runner import finished, runner_command
from edgeq.tvm.devices import DEBIAN, PIP, Device

SUMMARY = re.compile(r"^Errors: (\d+) out of (\d+) elements, in (\d+) runs$", re.MULTILINE)
FIRST = re.compile(r"^First difference: (.*)$", re.MULTILINE)
FASTEST = re.compile(r"^Fastest run: (\d+) nanoseconds$", re.MULTILINE)
TIMEOUT = 600  # seconds, for a build or a check


@dataclass(frozen=True)
class CheckResult:
    """What a check program found.

    Attributes:
        runs: Golden runs.
        compared: Elements compared.
        errors: Elements that differ; a tap that differs counts as one.
        first: The first difference in words, or an empty text.
        microseconds: Of the fastest run; `None` where the device has no clock, under an emulator,
            and with taps.
        output: All that the program printed.
    """

    runs: int
    compared: int
    errors: int
    first: str
    microseconds: float | None
    output: str

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing differs."""
        return self.errors == 0 and self.compared > 0


def missing_tools(device: Device, *, run: bool = True) -> tuple[str, ...]:
    """Return, in words, what building (and running) for `device` lacks on this machine."""
    tools = device.tools if run else device.build_tools
    found = [
        f"{tool} (Debian: apt-get install {DEBIAN[tool]})"
        for tool in tools
        if shutil.which(tool) is None
    ]
    if run:
        found += [
            f"Python's {name} (pip install {PIP[name]})"
            for name in device.libraries
            if importlib.util.find_spec(name) is None
        ]
        if device.is_native and not device.is_source:
            missing = missing_features(device)
            found += [f"a CPU with {', '.join(missing)}"] if missing else []
    return tuple(found)


def missing_features(device: Device) -> tuple[str, ...]:
    """Return the CPU features that `device` needs natively and this machine lacks."""
    return tuple(flag for flag in device.cpu_flags if flag not in _own_flags())


def build(
    folder: Path,
    device: Device,
    into: Path,
    *,
    goal: str = "check",
    cflags: Sequence[str] = (),
) -> Path:
    """Build a program of the bundle in `folder`.

    Args:
        folder: The bundle; nothing is written there.
        device: What it was compiled for.
        into: A folder for what is built.
        goal: `check`, `taps`, or a file that the Makefile makes; for WebAssembly also
            `edgeq_model`.
        cflags: Further options of the C compiler.

    Returns:
        The program.

    Raises:
        EdgeqError: A tool is missing; the message names its package.
        BundleError: The compiler refuses the sources.
    """
    _require(device, run=False)
    program = into / (f"{goal}.wasm" if device.platform == "wasm" else goal)
    flags = " ".join((*device.cflags, "-Wall", "-Wextra", *cflags))
    # Named, for make would take a GNUmakefile first, which no manifest lists.
    command = ["make", "-s", "-C", str(folder), "-f", "Makefile"]
    command += [f"BUILD={into.resolve()}", f"CFLAGS={flags}", str(program.resolve())]
    made = finished(command, timeout=TIMEOUT)
    if made.returncode != 0:
        raise BundleError(f"{folder}: cannot build for {device.name}:\n{_ends(made.stderr)}")
    return program


def modules(files: Mapping[str, bytes], device: Device) -> dict[str, bytes]:
    """Return what a browser loads, built from a bundle's files: `edgeq_model.wasm`, `check.wasm`.

    Raises:
        EdgeqError: A tool is missing; the message names its package.
        BundleError: The compiler refuses the sources.
    """
    assert device.platform == "wasm", device.name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, data in files.items():
            (folder / path).write_bytes(data)
        into = folder / "build"
        into.mkdir()
        built = [build(folder, device, into, goal=goal) for goal in ("edgeq_model", "check")]
        return {path.name: path.read_bytes() for path in built}


def run_check(
    folder: Path,
    device: Device,
    into: Path,
    *,
    runner: str | None = None,
    taps: bool = False,
    cflags: Sequence[str] = (),
) -> CheckResult:
    """Build the check of the bundle in `folder` and run it.

    Args:
        folder: The bundle; nothing is written there.
        device: What it was compiled for.
        into: A folder for what is built.
        runner: A command that runs a program on the device; `{}` is the program. By default the
            device's own, which runs in `folder`.
        taps: Compare every quantized tensor too.
        cflags: Further options of the C compiler.

    Raises:
        EdgeqError: A tool is missing; the message names its package.
        BundleError: The program cannot be built, crashes, or does not say what it found.
    """
    _require(device, run=runner is None)
    chosen = device.runner if runner is None else runner
    runner_command(chosen, folder)  # refused before anything is built
    program = build(folder, device, into, goal="taps" if taps else "check", cflags=cflags)
    command = runner_command(chosen, program)
    ran = finished(command, folder if runner is None else None, timeout=TIMEOUT)
    result = read_result(ran.stdout, ran.stderr, ran.returncode)
    emulated = runner is None and not device.is_native
    return replace(result, microseconds=None) if emulated else result


def read_result(output: str, complaints: str, status: int) -> CheckResult:
    """Return what a check program said.

    Raises:
        BundleError: It said nothing that can be relied on.
    """
    summary, first = SUMMARY.search(output), FIRST.search(output)
    if summary is None:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise BundleError(f"the check {how}:\n{_ends(output + complaints)}")
    fastest = FASTEST.search(output)
    result = CheckResult(
        runs=int(summary[3]),
        compared=int(summary[2]),
        errors=int(summary[1]),
        first=first[1] if first else "",
        microseconds=int(fastest[1]) / 1e3 if fastest else None,
        output=output,
    )
    if result.passed != (status == 0):
        raise BundleError(f"the check ended with status {status} after:\n{_ends(output)}")
    return result


def _require(device: Device, *, run: bool) -> None:
    missing = missing_tools(device, run=run)
    if missing:
        raise EdgeqError(f"{device.name} needs what this machine has not: {'; '.join(missing)}")


def _own_flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    lines: Mapping[str, str] = dict(
        (key.strip(), value)
        for key, _, value in (line.partition(":") for line in text.splitlines())
    )
    return frozenset(lines.get("flags", "").split())


def _ends(text: str, lines: int = 12) -> str:
    """Return the first and last lines: compilers say what is wrong first, others last."""
    found = text.strip().splitlines()
    return "\n".join(found if len(found) <= 2 * lines else [*found[:lines], "...", *found[-lines:]])
