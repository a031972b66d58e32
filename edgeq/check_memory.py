"""Memory of the process that checks: its peak, and what a session added.

From `/proc` where there is one; elsewhere from `getrusage`, which knows the peak alone.

Part of a bundle's `check.py`: standard library.
"""

import sys
from pathlib import Path

MIB = 2**20


class MemoryMeter:
    """Resident memory of this process, from when the meter is made."""

    def __init__(self) -> None:
        self._before = _resident("VmRSS")
        self._session: int | None = None

    def session_ran(self) -> None:
        """Note what is resident, now that a session was opened and has run."""
        self._session = _resident("VmRSS")

    def mib(self) -> dict[str, float]:
        """Return `peak` and `session` in MiB; nothing where the system does not tell."""
        peak = _resident("VmHWM")
        found = {} if peak is None else {"peak": peak / MIB}
        if self._before is not None and self._session is not None:
            found["session"] = max(0, self._session - self._before) / MIB
        return found


def _resident(field: str) -> int | None:
    """Return bytes: VmRSS, what is resident; VmHWM, the most that ever was."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
