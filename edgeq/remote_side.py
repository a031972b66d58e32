"""The other end of `edgeq check --ssh`: unpacks a bundle, runs its check, removes everything.

Its text is sent over; a tar follows on standard input, which then stays open: when it ends, nobody
waits for the result any longer. Standard library alone, nothing of edgeq.
"""

from __future__ import annotations  # for a Python that is too old to tell, by the check, that it is

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Unpack standard input, run `bundle/check.py` there; return its exit status."""
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name):  # raised, so that the folder is removed on the way out
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="edgeq-check-") as folder:
            unpack(Path(folder))
            return check(Path(folder), arguments)
    except (OSError, tarfile.TarError) as error:
        print(f"error: the bundle cannot be copied: {error}", file=sys.stderr)
        return 2


def unpack(folder: Path) -> None:
    """Write the regular files of the tar on standard input below `folder`."""
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            data = archive.extractfile(member)
            assert data is not None, "the tar holds regular files"
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(data, file)


def check(folder: Path, arguments: list[str]) -> int:
    """Run the check in `folder`, unless standard input ends before."""
    command = [sys.executable, str(folder / "bundle" / "check.py"), *arguments]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder)

    def stop_when_left() -> None:
        while os.read(0, 4096):
            pass
        child.kill()

    threading.Thread(target=stop_when_left, daemon=True).start()
    try:
        status = child.wait()
        return status if status >= 0 else 128 - status  # ended by a signal, as a shell says it
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
