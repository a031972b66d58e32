"""How fast are edgeq's bundles, beside what `quantize_static` deploys and the float model?

    python -m benchmarks.deployed [CASE]... [--bundles FOLDER]

One thread, batch 1, ONNX Runtime's default level; edgeq runs in `Bundle.session()`. The three
models take turns in one process, the first to go changing every round, so that whatever else the
machine does hits them alike; figures are medians. A case's input is its first calibration sample:
for opt-shakespeare 256 tokens. Exit status 1 if edgeq / quantize_static is above the limits of the
case's group, or if edgeq is not faster than float: attention in any case, others where float takes
over 0.3 ms.
"""

import argparse
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

import edgeq
from benchmarks.cases import (
    ZOO,
    ExportedCase,
    Feeds,
    compile_case,
    export_case,
    load_zoo,
    make_session,
)
from benchmarks.peers import Standing, read_standings
from benchmarks.static_qdq import modern, quantize_case
from edgeq.bundle import open_bundle


@dataclass(frozen=True)
class Limit:
    """On the latency of a group of cases.

    Attributes:
        mean: Of edgeq / quantize_static: geometric mean over the cases whose peer loads.
        each: Of edgeq / quantize_static in any one case.
        small_ms: Where float takes no longer than that, edgeq may be slower.
    """

    mean: float
    each: float = math.inf
    small_ms: float = 0.0


LIMITS = {"convolution": Limit(1.10, 1.25, 0.3), "attention": Limit(1.30)}
WARM_UP, MIN_ROUNDS, MAX_ROUNDS = 5, 50, 3000


@dataclass(frozen=True)
class Latency:
    """Medians of one case, in milliseconds; None for a quantize_static that does not load."""

    case: str
    float32: float
    static: float | None
    edgeq: float
    rounds: int
    group: str = "convolution"

    @property
    def ratio(self) -> float | None:
        """The time of edgeq over that of quantize_static."""
        return None if self.static is None else self.edgeq / self.static

    def misses(self) -> list[str]:
        """Return what is not reached."""
        found, limit = [], LIMITS[self.group]
        if self.ratio is not None and self.ratio > limit.each:
            found.append(f"{self.ratio:.2f} > {limit.each}")
        if self.float32 > limit.small_ms and self.edgeq >= self.float32:
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


def measure(
    case: ExportedCase, standing: Standing, bundle: Path, folder: Path, seconds: float
) -> Latency:
    """Time the three forms of `case`; compile the bundle unless it is there."""
    if not bundle.is_dir():
        compile_case(case, standing, "int8", bundle)
    static = quantize_case(case, folder)
    sessions = {
        "float": make_session(modern(case.model, folder)),
        **({} if static.path is None else {"static": make_session(static.path)}),
        "edgeq": open_bundle(bundle).session(),
    }
    taken, rounds = medians(sessions, next(case.calibration_feeds()), seconds)
    return Latency(
        case.name, taken["float"], taken.get("static"), taken["edgeq"], rounds, standing.group
    )


def cells(result: Latency) -> list[str]:
    """Return a line of the table."""
    static, ratio = result.static, result.ratio
    return [
        result.case,
        f"{result.float32:.3f}",
        "does not load" if static is None else f"{static:.3f}",
        f"{result.edgeq:.3f}",
        "-" if ratio is None else f"**{ratio:.2f}**",
        f"{result.edgeq / result.float32:.2f}",
        f"{result.rounds}",
        "; ".join(result.misses()) or "reached",
    ]


def means(results: Sequence[Latency]) -> dict[str, float]:
    """Return the geometric mean of edgeq / quantize_static, by group."""
    found = {}
    for group in LIMITS:
        ratios = [r.ratio for r in results if r.group == group and r.ratio is not None]
        if ratios:
            found[group] = statistics.geometric_mean(ratios)
    return found


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
    missed = False
    print("| case | float (ms) | quantize_static (ms) | edgeq (ms) | edgeq / quantize_static |"
          " edgeq / float | rounds | required |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    try:
        for name in arguments.case or standings:
            case = export_case(zoo, name, folder / name)
            bundle = (arguments.bundles or folder) / name / "int8"
            try:
                result = measure(case, standings[name], bundle, folder / name, arguments.seconds)
            except edgeq.EdgeqError as error:  # the other cases are measured all the same
                missed = True
                print(f"| {name} |{' - |' * 6} {error} |", flush=True)
                continue
            results.append(result)
            missed |= bool(result.misses())
            print(f"| {' | '.join(cells(result))} |", flush=True)
    finally:
        shutil.rmtree(folder)
    for group, mean in means(results).items():
        limit = LIMITS[group].mean
        missed |= mean > limit
        print(f"\nGeometric mean of edgeq / quantize_static, {group}: {mean:.3f}"
              f" (required: {limit})")  # fmt: skip
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
