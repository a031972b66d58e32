"""Peak memory of calibration, with 50 samples and with 500, beside ONNX Runtime's calibrators.

    python -m benchmarks.calibration_memory

Each run has a process of its own, whose peak resident memory Linux keeps (`VmHWM`). One run of
edgeq's calibration serves all observers; ranges are chosen with each of them. Exit status 1 when
500 samples take over 1.05 times the memory of 50.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import ROOT, ZOO, export_case, load_zoo

MODEL = "mobilenet-v1-075"
FEW, MANY = 50, 500
LIMIT = 1.05  # memory of MANY over that of FEW
PEERS = {"onnxruntime MinMax": "MinMax", "onnxruntime Entropy": "Entropy"}


@dataclass(frozen=True)
class Peak:
    """What one run took.

    Attributes:
        name: The calibrator.
        samples: How many samples it saw.
        mebibytes: Peak resident memory of the process.
        seconds: Time of the whole process.
    """

    name: str
    samples: int
    mebibytes: float
    seconds: float


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder with zoo.py")
    parser.add_argument("--run", nargs=3, metavar=("NAME", "MODEL", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, model, data = options.run
        print(measure(name, Path(model), Path(data)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        case = export_case(load_zoo(options.zoo), MODEL, Path(folder))
        data = {n: repeated(case.calibration, n, Path(folder) / f"{n}.npz") for n in (FEW, MANY)}
        runs = [("edgeq", FEW), ("edgeq", MANY), *((name, FEW) for name in PEERS)]
        peaks = [in_a_process(name, n, case.model, data[n]) for name, n in runs]
    print(f"{MODEL}\n{'calibrator':<22}{'samples':>8}{'peak MiB':>10}{'seconds':>9}")
    for peak in peaks:
        print(f"{peak.name:<22}{peak.samples:>8}{peak.mebibytes:>10.0f}{peak.seconds:>9.1f}")
    ratio = peaks[1].mebibytes / peaks[0].mebibytes
    print(f"edgeq, {MANY} samples over {FEW}: {ratio:.3f} (at most {LIMIT})")
    return 0 if ratio <= LIMIT else 1


def repeated(source: Path, count: int, path: Path) -> Path:
    """Write `count` samples to `path`: those of `source`, over and over."""
    with np.load(source) as arrays:
        inputs = {name: arrays[name] for name in arrays.files if name != "label"}
    np.savez(path, **{n: a[np.arange(count) % len(a)] for n, a in inputs.items()})
    return path


def in_a_process(name: str, samples: int, model: Path, data: Path) -> Peak:
    """Measure one calibrator in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.calibration_memory", "--run", name]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, str(model), str(data)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.perf_counter() - start
    return Peak(name, samples, float(done.stdout.split()[-1]), seconds)


def measure(name: str, model: Path, data: Path) -> float:
    """Calibrate, and return the peak resident memory of this process in MiB."""
    if name == "edgeq":
        by_edgeq(model, data)
    else:
        by_onnxruntime(PEERS[name], model, data)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def by_edgeq(model: Path, data: Path) -> None:
    """Observe every activation of the model, and choose ranges with every observer."""
    from edgeq.calibrate import calibrate
    from edgeq.compile import activations
    from edgeq.data import input_specs, open_samples
    from edgeq.load import load_model
    from edgeq.numerics.qtype import UINT8
    from edgeq.observe import choose_range
    from edgeq.recipe import OBSERVERS, QuantSpec

    loaded = load_model(model).model
    samples = open_samples(data, inputs=input_specs(loaded))
    specs = [QuantSpec("uint8", observer=observer) for observer in OBSERVERS]
    ratio = specs[0].clip_ratio(8)
    found = calibrate(loaded, samples, activations(loaded), clip_ratios=[ratio])
    for statistics in found.statistics.values():
        for spec in specs:
            choose_range(statistics, spec, UINT8)


def by_onnxruntime(method: str, model: Path, data: Path) -> None:
    """Do the same with one of ONNX Runtime's calibrators."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime is untyped
        """The samples, one at a time."""

        def __init__(self) -> None:
            self._feeds = feeds(data)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            """Return the next feed; None behind the last."""
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            model,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[method],
        )
        calibrator.set_execution_providers(["CPUExecutionProvider"])
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def feeds(data: Path) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the samples of a `.npz`, one at a time; the arrays are loaded whole."""
    with np.load(data) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    for i in range(len(next(iter(inputs.values())))):
        yield {name: array[i : i + 1] for name, array in inputs.items()}


if __name__ == "__main__":
    sys.exit(main())
