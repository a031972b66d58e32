"""The bits of a session's outputs and taps against a bundle's golden vectors.

Part of a bundle's `check.py`: numpy and standard library.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.check_folder import Arrays, CheckError, golden, inside, read_arrays
from edgeq.check_session import Session, run_model


def digest(array: NDArray[Any]) -> bytes:
    """Return the sha256 of an array: of its dtype, shape and little-endian bytes in C order."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    head = f"{array.dtype.name}{list(array.shape)}".encode()
    return hashlib.sha256(head + little.tobytes()).digest()


def difference(name: str, run: int, want: NDArray[Any], got: NDArray[Any]) -> tuple[int, str]:
    """Return how many elements differ in their bits, and the first of them in words."""
    if want.dtype != got.dtype or want.shape != got.shape:
        kinds = [f"{a.dtype.name}{list(a.shape)}" for a in (want, got)]
        return max(want.size, 1), f"tensor {name!r}, feed {run}: {kinds[0]} became {kinds[1]}"
    size = want.dtype.itemsize
    left, right = (
        np.frombuffer(np.ascontiguousarray(a).tobytes(), np.uint8).reshape(-1, size)
        for a in (want, got)
    )
    differs = (left != right).any(axis=1)
    count = int(np.count_nonzero(differs))
    if count == 0:
        return 0, ""
    flat = int(np.argmax(differs))
    index = [int(i) for i in np.unravel_index(flat, want.shape)]
    texts = [
        f"{a.reshape(-1)[flat]} (bytes {b[flat].tobytes().hex()})"
        for a, b in ((want, left), (got, right))
    ]
    place = f"tensor {name!r}, feed {run}, index {index}"
    return count, f"{place}: expected {texts[0]}, found {texts[1]}"


def within(tolerance: float, want: NDArray[Any], got: NDArray[Any]) -> bool:
    """Whether the root mean square of the difference is at most `tolerance` times that of `want`.

    For outputs that depend on nodes without a proof, which the user allowed.
    """
    if want.dtype != got.dtype or want.shape != got.shape:
        return False
    noise = np.square(got.astype(np.float64) - want.astype(np.float64)).sum()
    return bool(noise <= tolerance**2 * np.square(want.astype(np.float64)).sum())


class Tally:
    """Counts what was compared, and keeps the first difference in words."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], runs: int | None = None) -> None:
        """Read the golden vectors: all, or those of the first `runs`."""
        self.names: dict[str, None] = {}
        self.compared = 0
        self.mismatches = 0
        self.first: str | None = None
        self._folder = folder
        self._taps: Sequence[Mapping[str, Any]] = manifest.get("taps", [])
        feeds = golden(folder, manifest, "inputs")
        self._stored = len(feeds)
        self._feeds = feeds[:runs]
        self._expected = golden(folder, manifest, "outputs")[:runs]
        self._tolerances: dict[str, float] = {
            item["name"]: float(item["tolerance"])
            for item in manifest["outputs"]
            if "tolerance" in item
        }

    @property
    def feeds(self) -> list[Arrays]:
        """The golden inputs."""
        return self._feeds

    def outputs(self, session: Session, threads: int) -> None:
        """Compare the golden outputs."""
        names = list(self._expected[0])
        for run, (feeds, expected) in enumerate(zip(self._feeds, self._expected, strict=True)):
            for name, got in zip(names, run_model(session, names, feeds), strict=True):
                count, text = difference(name, run, expected[name], got)
                limit = self._tolerances.get(name)
                if count and limit is not None and within(limit, expected[name], got):
                    count = 0
                self._count(name, expected[name].size, count, f"{text}, with {threads} threads")

    def taps(self, session: Session) -> None:
        """Compare the digest of every tap: a tensor that differs counts as one element per feed.

        Taps are in the order of the graph, so the first that differs is nearer to the cause than an
        output is, and is named before it.
        """
        stored = read_arrays(inside(self._folder, "golden/taps.npz"))["digests"]
        names = [tap["name"] for tap in self._taps]
        if stored.shape != (len(names), self._stored, 32):
            raise CheckError(f"{self._folder}: golden/taps.npz does not fit the manifest's taps")
        if not names:
            return
        of_outputs, self.first = self.first, None
        for run, feeds in enumerate(self._feeds):
            values = run_model(session, names, feeds)
            for name, got, want in zip(names, values, stored[:, run], strict=True):
                same = digest(got) == want.tobytes()
                self._count(name, got.size, 0 if same else 1, f"tap {name!r}, feed {run}")
        self.first = "; ".join(text for text in (self.first, of_outputs) if text) or None

    def figure(self, name: str, figures: Mapping[str, float]) -> None:
        """Compare a figure of the same data with the host's, where outputs have to be the same.

        Sums over batches of another size differ in the last bits of a float64.
        """
        here, host = figures[name], figures.get(f"{name}_host")
        if host is None or self._tolerances or math.isclose(here, host, rel_tol=1e-9):
            return
        self.mismatches += 1
        self.first = self.first or f"{name} is {here} here and {host} on the host, of the same data"

    def _count(self, name: str, size: int, mismatches: int, text: str) -> None:
        self.names[name] = None
        self.compared += size
        self.mismatches += mismatches
        if mismatches and self.first is None:
            self.first = text
