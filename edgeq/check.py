"""Verify a bundle on the machine where it runs; needs numpy and onnxruntime only.

    python BUNDLE/check.py [--taps] [--evaluation DATA.npz --metric top1] [--json]

Digests of all files, the tested versions and CPUs, the bits of the golden outputs with one and two
threads, with --taps the bits of every quantized tensor; accuracy, latency and memory. Each bundle
holds this file, put together with the `edgeq/check_*.py` that it imports, as its `check.py`.

Exit status: 0 all bits agree; 1 a bit or a file differs; 2 the check could not be made.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeq.check_accuracy import METRICS, accuracy, same_data
from edgeq.check_bits import Tally
from edgeq.check_folder import CheckError, MismatchError, altered_files, read_manifest
from edgeq.check_machine import machine_notes
from edgeq.check_memory import MemoryMeter
from edgeq.check_session import host_facts, measure, open_session, version_notes


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        bundle: Its folder, as given.
        target: The target it was compiled for.
        tensors: Tensors compared.
        compared: Elements compared, over all feeds and thread counts.
        mismatches: Elements that differ; of a tapped tensor, known by its digest, one per feed; and
            a metric that is not the host's on the same data.
        first: The first difference, in words.
        altered: Files that are missing or not those of the manifest.
        metrics: Accuracy here, and on the host as `NAME_host`.
        latency_ms: `median`, `p95`, `first` (run of a new session), `load`.
        memory_mib: Of this process: its `peak`, and what an open `session` and its runs added.
        host: Facts about this machine.
        notes: What the user should know.
    """

    bundle: str
    target: str
    tensors: int = 0
    compared: int = 0
    mismatches: int = 0
    first: str | None = None
    altered: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    memory_mib: Mapping[str, float] = field(default_factory=dict)
    host: Mapping[str, str | int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 when everything agrees, else 1."""
        return 1 if self.mismatches or self.altered or not self.compared else 0

    def raise_for_mismatch(self) -> None:
        """Raise unless everything agrees.

        Raises:
            MismatchError: A file is altered, a bit differs, or nothing was compared.
        """
        if self.altered:
            raise MismatchError(f"{self.bundle}: altered or missing: {', '.join(self.altered)}")
        if self.mismatches:
            raise MismatchError(
                f"{self.bundle}: {self.mismatches} of {self.compared} elements differ from the"
                f" simulator's; first: {self.first}"
            )
        if not self.compared:
            raise MismatchError(f"{self.bundle}: nothing was compared")

    def to_json(self) -> dict[str, object]:
        """Return the object that `--json` prints."""
        bitwise: dict[str, object] = {
            "tensors": self.tensors,
            "compared": self.compared,
            "mismatches": self.mismatches,
        }
        if self.first is not None:
            bitwise["first"] = self.first
        return {
            "bundle": self.bundle,
            "target": self.target,
            "bitwise": bitwise,
            "altered": list(self.altered),
            "metrics": dict(self.metrics),
            "latency_ms": {name: round(value, 4) for name, value in self.latency_ms.items()},
            "memory_mib": {name: round(value, 2) for name, value in self.memory_mib.items()},
            "host": dict(self.host),
            "notes": list(self.notes),
        }


def check(
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
) -> CheckResult:
    """Verify a bundle on this machine.

    Args:
        bundle: Its folder.
        taps: Compare every quantized tensor, not the outputs alone.
        evaluation: `.npz` with the model's inputs and `label`, sample axis first.
        metric: One of `METRICS`, for `evaluation`.
        threads: Of the session whose latency is measured; bits are compared with 1, 2 and these.
        repeat: Timed runs; None: up to 50, at most half a second.
        runs: Golden inputs that are compared: the first so many; None: all.
        any_version: Check although this onnxruntime was not tested.
        any_cpu: Check although bits may differ on this kind of CPU.

    Raises:
        CheckError: The folder is no bundle, a version was not tested, bits cannot hold on this CPU,
            or data do not fit.
    """
    folder = Path(bundle)
    if (evaluation is None) != (metric is None):
        raise CheckError("--evaluation and --metric go together: give both")
    if threads < 1 or any(count is not None and count < 1 for count in (repeat, runs)):
        raise CheckError("threads, repeat and runs must be at least 1")
    manifest = read_manifest(folder)
    name, target, host = str(bundle), str(manifest["target"]), host_facts()
    altered = altered_files(folder, manifest)
    if altered:
        return CheckResult(name, target, altered=altered, host=host)
    try:
        notes = version_notes(manifest, str(host["onnxruntime"]), any_version)
        notes += machine_notes(manifest, any_cpu)
        tally, memory = Tally(folder, manifest, runs), MemoryMeter()
        latency: dict[str, float] = {}
        metrics: dict[str, float] = {}
        for count in dict.fromkeys((threads, 1, 2)):
            start = time.perf_counter()
            session = open_session(folder, manifest, threads=count)
            load = (time.perf_counter() - start) * 1e3
            if count == threads:
                latency = {**measure(session, tally.feeds[0], repeat), "load": load}
                memory.session_ran()
                if evaluation is not None and metric is not None:
                    metrics = accuracy(session, manifest, Path(evaluation), metric)
                    same = same_data(manifest, Path(evaluation))
                    if same:
                        tally.figure(metric, metrics)
                    elif same is not None and f"{metric}_host" in metrics:
                        notes.append(f"{metric}_host was measured on other data")
            tally.outputs(session, count)
        if taps:
            session = open_session(folder, manifest, taps=True)
            tally.outputs(session, 1)
            tally.taps(session)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        # The manifest is not trusted, and these are what a wrong one leads to.
        raise CheckError(f"{folder}: the manifest does not fit the bundle: {error!r}") from error
    return CheckResult(
        *(name, target, len(tally.names), tally.compared, tally.mismatches, tally.first),
        metrics=metrics,
        latency_ms=latency,
        memory_mib=memory.mib(),
        host=host,
        notes=tuple(notes),
    )


def describe(result: CheckResult) -> list[str]:
    """Return the result as lines for people."""
    if result.altered:
        return [f"FAILED: altered or missing: {name}" for name in result.altered]
    lines = [
        f"{result.mismatches} of {result.compared} elements differ, in {result.tensors} tensors",
        *(f"{name}: {value:.6g}" for name, value in result.metrics.items()),
    ]
    if result.first is not None:
        lines.append(f"first difference: {result.first}")
    for what, figures, digits in (
        ("latency in ms", result.latency_ms, 3),
        ("memory in MiB", result.memory_mib, 1),
    ):
        if figures:
            text = ", ".join(f"{name} {value:.{digits}f}" for name, value in figures.items())
            lines.append(f"{what}: {text}")
    lines.append("host: " + ", ".join(f"{key} {value}" for key, value in result.host.items()))
    lines += [f"note: {note}" for note in result.notes]
    lines.append("FAILED" if result.exit_status else "ok: the same bits as the simulator's")
    return lines


def report(result: CheckResult, as_json: bool) -> int:
    """Print the result, on a mismatch also its message on stderr; return the exit status."""
    lines = [json.dumps(result.to_json())] if as_json else describe(result)
    print("\n".join(lines))
    try:
        result.raise_for_mismatch()
    except MismatchError as error:
        hints = [note for note in result.notes if "session option" in note]
        print("; ".join([f"error: {error}", *hints]), file=sys.stderr)
    return result.exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check of the bundle that this file lies in; return the exit status."""
    parser = argparse.ArgumentParser(description="Verify this bundle on this machine.")
    parser.add_argument("--bundle", default=str(Path(__file__).parent), help="another folder")
    parser.add_argument("--taps", action="store_true", help="compare every quantized tensor")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--evaluation", help=".npz with the inputs and label")
    parser.add_argument("--metric", choices=METRICS, help="for --evaluation")
    parser.add_argument("--threads", type=int, default=1, help="for the latency (default 1)")
    parser.add_argument("--repeat", type=int, help="timed runs (default: half a second)")
    parser.add_argument("--runs", type=int, help="golden inputs to compare (default: all)")
    parser.add_argument("--any-version", action="store_true", help="allow untested versions")
    parser.add_argument("--any-cpu", action="store_true", help="compare bits on any kind of CPU")
    given = parser.parse_args(arguments)
    try:
        result = check(
            given.bundle,
            taps=given.taps,
            evaluation=given.evaluation,
            metric=given.metric,
            threads=given.threads,
            repeat=given.repeat,
            runs=given.runs,
            any_version=given.any_version,
            any_cpu=given.any_cpu,
        )
    except CheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return report(result, given.json)


if __name__ == "__main__":
    sys.exit(main())
