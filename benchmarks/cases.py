"""The zoo's trained models as the benchmarks use them, and bundles opened with ONNX Runtime alone.

The zoo is a folder outside the repository (`../shared/zoo`, or `--zoo`): its data may be measured
with, not copied. `zoo.py` in it loads, exports and scores the cases.
"""

import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

import edgeq
from benchmarks.peers import Standing
from edgeq.longest import MAX_DIM

ROOT = Path(__file__).parent.parent
ZOO = ROOT.parent / "shared" / "zoo"

Feeds = Mapping[str, NDArray[Any]]
Run = Callable[[Feeds], list[NDArray[Any]]]


@dataclass(frozen=True)
class ExportedCase:
    """A model and its data, as a user would have them.

    Attributes:
        name: The zoo's name.
        model: The float ONNX file.
        calibration: `.npz` of samples.
        metric: `top1`, `psnr`, ... ; `sqnr` where there are no labels.
        zoo: The zoo's own case, which scores.
    """

    name: str
    model: Path
    calibration: Path
    metric: str
    zoo: Any

    def calibration_feeds(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the calibration samples, one at a time."""
        yield from self.zoo.calibration(batch=1)

    def evaluate(self, run: Run, reference: Run) -> float:
        """Return the metric of `run` over the evaluation data."""
        return float(self.zoo.evaluate(run, reference))


def load_zoo(folder: Path) -> ModuleType:
    """Import `zoo.py` by its path.

    Raises:
        SystemExit: There is no zoo.
    """
    path = folder / "zoo.py"
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; say where the zoo is with --zoo")
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def export_case(zoo: ModuleType, name: str, folder: Path) -> ExportedCase:
    """Write the model and its calibration data to `folder`."""
    case = zoo.load(name)
    with contextlib.redirect_stdout(io.StringIO()):  # it says what it wrote
        zoo.export(name, folder, zoo.HERE)
    model, calibration = folder / "model.onnx", folder / "calibration.npz"
    return ExportedCase(name, model, calibration, case.metric, case)


def compile_case(
    case: ExportedCase,
    standing: Standing,
    recipe: str,
    output: Path,
    allow_unproven: Sequence[str] = (),
) -> None:
    """Write the bundle of a case.

    Raises:
        EdgeqError: There is none.
    """
    edgeq.compile(
        str(case.model),
        target="ort-cpu",
        calibration=str(case.calibration),
        recipe=recipe,
        input_ranges=standing.input_ranges,
        max_dim=standing.max_dim or MAX_DIM,
        allow_unproven=allow_unproven,
        output=output,
    )


@dataclass(frozen=True)
class DeployedBundle:
    """A bundle's manifest, as far as a device needs it and a table shows it."""

    artifact: Path
    session_options: Mapping[str, str]
    tensors: int
    compared: int
    mismatches: int
    unproven: int


def open_bundle(folder: Path) -> DeployedBundle:
    """Read `manifest.json` as a device would, without edgeq."""
    manifest = json.loads((folder / "manifest.json").read_text())
    bits = manifest["bitwise"]
    return DeployedBundle(
        folder / manifest["artifact"],
        manifest["session_options"],
        bits["tensors"],
        bits["compared"],
        bits["mismatches"],
        len(manifest["certificate"]["unproven"]),
    )


def make_session(
    model: Path, options: Mapping[str, str] | None = None, threads: int = 1
) -> ort.InferenceSession:
    """Open `model` at ONNX Runtime's default level."""
    ort.set_default_logger_severity(3)  # a line per initializer that is listed as an input
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    return ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])


class NoiseMeter:
    """Signal to noise of each output, summed over everything that ran."""

    def __init__(self) -> None:
        self._signal: list[float] = []
        self._noise: list[float] = []

    def add(self, reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Take in one run."""
        self._signal = self._signal or [0.0] * len(reference)
        self._noise = self._noise or [0.0] * len(reference)
        for index, (wanted, got) in enumerate(zip(reference, outputs, strict=True)):
            exact = wanted.astype(np.float64)
            self._signal[index] += float(np.square(exact).sum())
            self._noise[index] += float(np.square(exact - got).sum())

    def decibels(self) -> list[float]:
        """Return `10 log10(sum(ref^2) / sum((ref - out)^2))` of each output; no noise is inf."""
        with np.errstate(divide="ignore"):
            ratio = np.divide(self._signal, self._noise)
            return [float(value) for value in 10 * np.log10(ratio)]
