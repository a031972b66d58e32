"""A command of the user's that runs something elsewhere: `CMD {}`, as on a board or an emulator."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeq.errors import BundleError, EdgeqError


def runner_command(runner: str, program: Path) -> list[str]:
    """Return the words of `runner`, with `program` in place of each `{}`.

    >>> runner_command("qemu-arm -cpu 'max' {}", Path("/check"))
    ['qemu-arm', '-cpu', 'max', '/check']

    Raises:
        EdgeqError: It has no `{}`, or is not the text of a command.
    """
    if "{}" not in runner:
        raise EdgeqError(f"the runner {runner!r} has no {{}}, which stands for the program")
    try:
        words = shlex.split(runner)
    except ValueError as error:
        raise EdgeqError(f"the runner {runner!r} is no command: {error}") from error
    words = [sys.executable, *words[1:]] if words[0] == "python3" else words
    return [word.replace("{}", str(program.resolve())) for word in words]


def finished(
    command: Sequence[str], folder: Path | None = None, *, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what a board says need not be text.

    Raises:
        EdgeqError: It cannot be run.
        BundleError: It did not end within `timeout` seconds.
    """
    try:
        return subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise EdgeqError(f"cannot run {shlex.join(command)}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{shlex.join(command)}: no answer after {timeout} s") from error
