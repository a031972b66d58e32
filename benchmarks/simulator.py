"""How long does the simulator take, beside ONNX Runtime in float32?

    python -m benchmarks.simulator [CASE]... [--model QUANTIZED.onnx]

Batch 16, two threads each. The simulator runs the `model.onnx` that edgeq's `int8` recipe makes of
the case, or the one given. Both take turns of some runs, so that whatever else the machine does
hits them alike; figures are medians, and the best of each. Exit status 1 if a case takes more than
4 times as long.

Both choose their kernels by the CPU: if the environment pins numpy's OpenBLAS to older ones
(OPENBLAS_CORETYPE; ONNX Runtime cannot be pinned), the benchmark says so and starts again without.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.cases import ZOO, ExportedCase, export_case, load_zoo, make_session, open_bundle
from edgeq.simulate import Simulator

LIMIT, BATCH, THREADS, ROUNDS, BURST = 4.0, 16, 2, 5, 6
# ONNX Runtime's threads keep a core busy for 30 ms after a run (measured), waiting for the next:
# the core that the other side needs. So turns are bursts, with a pause in front, in seconds.
PAUSE = 0.1
CASES = ("mobilenet-v1-075", "resnet20-cifar10")


@dataclass(frozen=True)
class Times:
    """Milliseconds of one side, round by round."""

    wall: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.wall)

    @property
    def best(self) -> float:
        """The shortest."""
        return min(self.wall)


def take_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> list[Times]:
    """Time both in turn, `rounds` times, each turn `BURST` runs after two unmeasured ones."""
    walls: list[list[float]] = [[], []]
    for _ in range(rounds):
        for wall, run in zip(walls, (first, second), strict=True):
            time.sleep(PAUSE)
            for turn in range(BURST + 2):
                start = time.perf_counter()
                run()
                if turn >= 2:
                    wall.append((time.perf_counter() - start) * 1e3)
    return [Times(tuple(wall)) for wall in walls]


def batch_of(case: ExportedCase) -> dict[str, NDArray[Any]]:
    """Return the first calibration samples as one batch."""
    feeds = [sample for sample, _ in zip(case.calibration_feeds(), range(BATCH), strict=False)]
    return {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}


def quantized(case: ExportedCase, folder: Path) -> Path:
    """Compile the case with edgeq and return the quantized model."""
    import edgeq

    bundle = folder / "bundle"
    edgeq.compile(
        str(case.model), target="ort-cpu", calibration=str(case.calibration), output=bundle
    )
    return open_bundle(bundle).artifact


def measure(name: str, zoo_folder: Path, model: Path | None) -> float:
    """Print one line and return the ratio of the medians."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        case = export_case(load_zoo(zoo_folder), name, folder)
        simulator = Simulator(ir.load(model or quantized(case, folder)))
        session = make_session(case.model, threads=THREADS)
        feeds = batch_of(case)
        runtime, ours = take_turns(
            lambda: session.run(None, feeds), lambda: simulator.run(feeds), ROUNDS
        )
    ratio = ours.median / runtime.median
    print(
        f"{name:20} ORT float32 {runtime.median:7.1f} ms (best {runtime.best:.1f})"
        f"   simulator {ours.median:7.1f} ms (best {ours.best:.1f})   ratio {ratio:.2f}"
        f" (of the best {ours.best / runtime.best:.2f})",
        flush=True,
    )
    return ratio


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE")
    parser.add_argument("--model", type=Path, help="simulate this quantized model (one CASE)")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    options = parser.parse_args(arguments)
    if options.model is not None and len(options.cases) != 1:
        parser.error("--model goes with one CASE")
    ratios = [measure(name, options.zoo, options.model) for name in options.cases]
    return 1 if max(ratios) > LIMIT else 0


def unpin_blas() -> None:
    """Start again without the variables that pin OpenBLAS, which reads them when it is loaded."""
    pins = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ]
    if not pins:
        return
    print(f"not heeded: {', '.join(f'{name}={os.environ.pop(name)}' for name in pins)}", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.simulator", *sys.argv[1:]])


if __name__ == "__main__":
    unpin_blas()
    sys.exit(main())
