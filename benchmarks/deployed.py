"""How fast are edgeq's bundles, beside what `quantize_static` deploys and the float model?

    python -m benchmarks.deployed [CASE]... [--bundles FOLDER]

One thread, batch 1, ONNX Runtime's default level; edgeq runs in `Bundle.session()`. The three
models take turns in one process, the first to go changing every round, so that whatever else the
machine does hits them alike; figures are medians. Exit status 1 if edgeq / quantize_static is above
1.10 as geometric mean or above 1.25 anywhere, or if edgeq is not faster than float where float
takes over 0.3 ms.
"""

import argparse
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

import edgeq
from benchmarks.cases import (
    ZOO,
    ExportedCase,
    Feeds,
    export_case,
    load_zoo,
    make_session,
)
from benchmarks.peers import read_standings
from benchmarks.static_qdq import modern, quantize_case
from edgeq.bundle import open_bundle

MEAN_LIMIT, LIMIT, SMALL_MS = 1.10, 1.25, 0.3
WARM_UP, MIN_ROUNDS, MAX_ROUNDS = 5, 50, 3000


@dataclass(frozen=True)
class Latency:
    """Medians of one case, in milliseconds."""

    case: str
    float32: float
    static: float
    edgeq: float
    rounds: int

    @property
    def ratio(self) -> float:
        """The time of edgeq over that of quantize_static."""
        return self.edgeq / self.static

    def misses(self) -> list[str]:
        """Return what is not reached."""
        found = []
        if self.ratio > LIMIT:
            found.append(f"{self.ratio:.2f} > {LIMIT}")
        if self.float32 > SMALL_MS and self.edgeq >= self.float32:
            found.append("slower than float")
        return found


def medians(
    sessions: Mapping[str, ort.InferenceSession], feeds: Feeds, seconds: float
) -> tuple[dict[str, float], int]:
    """Time the sessions in turn for about `seconds`; return milliseconds by name, and rounds."""
    names = list(sessions)
    for name in names * WARM_UP:
        sessions[name].run(None, feeds)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() < end):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            sessions[name].run(None, feeds)
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}, rounds


def measure(case: ExportedCase, bundle: Path, folder: Path, seconds: float) -> Latency:
    """Time the three forms of `case`; compile the bundle unless it is there."""
    if not bundle.is_dir():
        edgeq.compile(
            str(case.model), target="ort-cpu", calibration=str(case.calibration), output=bundle
        )
    sessions = {
        "float": make_session(modern(case.model, folder)),
        "static": make_session(quantize_case(case, folder)),
        "edgeq": open_bundle(bundle).session(),
    }
    taken, rounds = medians(sessions, next(case.calibration_feeds()), seconds)
    return Latency(case.name, taken["float"], taken["static"], taken["edgeq"], rounds)


def main() -> int:
    """Print the table; return the exit status."""
    standings = read_standings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("case", nargs="*", help=f"default: {' '.join(standings)}")
    parser.add_argument("--bundles", type=Path, help="what `accuracy --keep` left: CASE/int8")
    parser.add_argument("--seconds", type=float, default=8, help="of timing per case")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    arguments = parser.parse_args()
    zoo = load_zoo(arguments.zoo)
    folder = Path(tempfile.mkdtemp(prefix="edgeq-deployed-"))
    results: list[Latency] = []
    print("| case | float (ms) | quantize_static (ms) | edgeq (ms) | edgeq / quantize_static |"
          " edgeq / float | rounds | required |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    try:
        for name in arguments.case or standings:
            case = export_case(zoo, name, folder / name)
            bundle = (arguments.bundles or folder) / name / "int8"
            result = measure(case, bundle, folder / name, arguments.seconds)
            results.append(result)
            print(
                f"| {name} | {result.float32:.3f} | {result.static:.3f} | {result.edgeq:.3f} |"
                f" **{result.ratio:.2f}** | {result.edgeq / result.float32:.2f} |"
                f" {result.rounds} | {'; '.join(result.misses()) or 'reached'} |",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)
    mean = math.exp(statistics.fmean(math.log(result.ratio) for result in results))
    print(f"\nGeometric mean of edgeq / quantize_static: {mean:.3f} (required: {MEAN_LIMIT})")
    return 1 if mean > MEAN_LIMIT or any(result.misses() for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
