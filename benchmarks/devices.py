"""Do all devices compute the same bits? Every model on every device of TVM, and in ONNX Runtime.

    python -m benchmarks.devices [CASE]... [--device NAME]... [--runs N] [--bundles FOLDER]

Each case is quantized once, by the recipe, and that one model is compiled for every device. The
device's own check program runs there, or on its emulator: outputs and every quantized tensor that
lies in memory, on calibration samples, against the simulator. ONNX Runtime's bundle is compared on
the same inputs. `digits` is the repository's sample; the other cases are the zoo's. Prints a
Markdown table of differing and compared elements. Exit status 1 if a bit differs.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import edgeq
from benchmarks.cases import ROOT, ZOO, compile_case, export_case, load_zoo
from benchmarks.peers import read_standings
from edgeq.bundle import open_bundle
from edgeq.check_bits import digest
from edgeq.errors import EdgeqError
from edgeq.runtime import make_session, run
from edgeq.simulate import Simulator
from edgeq.targeting import GoldenRun, find_target
from edgeq.tvm.devices import DEVICES
from edgeq.tvm.toolchain import run_check

Feeds = dict[str, NDArray[Any]]
SMALL = ("digits", "kws-dscnn")
ALL_DEVICES = (*SMALL, "resnet20-cifar10", "fsrcnn-x3", "vww-96", "vit-mnist")
SOME_DEVICES: Mapping[str, tuple[str, ...]] = {
    name: ("tvm-x86-64", "tvm-x86-64-vnni", "tvm-aarch64", "tvm-aarch64-dotprod")
    for name in ("mobilenet-v1-075", "ddpm-attn-mnist32", "opt-shakespeare")
}
FEW = 2  # inputs for a microcontroller, which is emulated whole


class Settings(Protocol):
    """What a case is made with; the command line of a benchmark has it."""

    recipe: str
    runs: int
    zoo: Path
    bundles: Path | None


@dataclass(frozen=True)
class Case:
    """A quantized model with inputs to run.

    Attributes:
        path: The quantized model's file.
        model: The quantized model.
        feeds: Samples, one at a time.
        options: ONNX Runtime's, of the bundle.
    """

    path: Path
    model: ir.Model
    feeds: Sequence[Feeds]
    options: Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """What one device did with one model."""

    runs: int
    compared: int
    differing: int
    first: str
    seconds: float


def read_case(bundle: Path, samples: Sequence[Feeds], runs: int) -> Case:
    """Open a bundle of `ort-cpu`; where samples are few, its golden inputs fill up the runs."""
    opened = open_bundle(bundle)
    feeds = [opened.quantize_inputs(feed) for feed in samples]
    with np.load(bundle / "golden" / "inputs.npz") as golden:
        held = opened.manifest.feeds
        for number in range(max(0, held - (runs - len(feeds))), held):
            if len(feeds) < runs:
                feeds.append({name: _sample(golden[name], number, held) for name in golden.files})
    return Case(opened.artifact, ir.load(opened.artifact), feeds, opened.manifest.session_options)


def _sample(array: NDArray[Any], number: int, held: int) -> NDArray[Any]:
    size = len(array) // held
    return array[number * size : (number + 1) * size]


def compare(case: Case, device: str, folder: Path) -> Cell:
    """Compile a case for a device and run its check there."""
    start = time.perf_counter()
    target = find_target(device)
    model = target.specialize(case.model, case.feeds[0])
    few = DEVICES[device].platform == "semihosting"
    golden = golden_runs(model, target.taps(model), case.feeds[: FEW if few else None])
    artifact = target.complete(model, target.lower(model), golden)
    for name, data in artifact.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with tempfile.TemporaryDirectory() as into:
        found = run_check(folder, DEVICES[device], Path(into), taps=True)
    seconds = time.perf_counter() - start
    return Cell(found.runs, found.compared, found.errors, found.first, seconds)


def golden_runs(model: ir.Model, taps: Sequence[str], feeds: Sequence[Feeds]) -> list[GoldenRun]:
    """Return what the simulator makes of the feeds."""
    simulator, outputs = Simulator(model), [str(value.name) for value in model.graph.outputs]
    runs = []
    for feed in feeds:
        found = simulator.run(feed, taps)
        digests = {name: digest(found[name]) for name in taps}
        runs.append(GoldenRun(feed, {name: found[name] for name in outputs}, digests))
    return runs


def in_session(case: Case) -> Cell:
    """Compare the outputs of ONNX Runtime with the simulator's."""
    start = time.perf_counter()
    session, simulator = make_session(case.model, options=case.options), Simulator(case.model)
    compared = differing = 0
    for feed in case.feeds:
        expected = simulator.run(feed)
        for name, array in run(session, feed).items():
            left, right = (np.ascontiguousarray(a) for a in (array, expected[name]))
            assert left.dtype == right.dtype and left.shape == right.shape, name
            compared += left.size
            size = left.dtype.itemsize
            bits = left.view(np.uint8).reshape(-1, size) != right.view(np.uint8).reshape(-1, size)
            differing += int(bits.any(1).sum())
    return Cell(len(case.feeds), compared, differing, "", time.perf_counter() - start)


def main() -> int:
    """Print the table; return 1 if a bit differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=[*ALL_DEVICES, *SOME_DEVICES])
    parser.add_argument("--device", action="append", choices=[*DEVICES])
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--bundles", type=Path, help="ort-cpu bundles: FOLDER/CASE/RECIPE")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    given = parser.parse_args()
    failed = 0
    print("| case | device | runs | differing / compared | seconds |\n|---|---|---|---|---|")
    for name in given.cases:
        with tempfile.TemporaryDirectory() as scratch:
            case = make_case(name, given, Path(scratch))
            devices = given.device or SOME_DEVICES.get(name, tuple(DEVICES))
            for device in ("ort-cpu", *devices):
                folder = Path(scratch) / device
                try:
                    cell = (
                        in_session(case) if device == "ort-cpu" else compare(case, device, folder)
                    )
                except EdgeqError as error:
                    failed += 1
                    print(f"| {name} | {device} | - | {error} | |", flush=True)
                    continue
                failed += cell.differing > 0 or not cell.compared
                first = f" ({cell.first})" if cell.differing else ""
                print(
                    f"| {name} | {device} | {cell.runs} | {cell.differing} /"
                    f" {cell.compared:,}{first} | {cell.seconds:.1f} |",
                    flush=True,
                )
                shutil.rmtree(folder, ignore_errors=True)
    return int(failed > 0)


def make_case(name: str, given: Settings, scratch: Path) -> Case:
    """Return a case, compiled for `ort-cpu` unless a bundle is there."""
    if name == "digits":
        data = ROOT / "samples" / "digits"
        bundle, calibration = scratch / "bundle", data / "calibration.npz"
        edgeq.compile(
            str(data / "digits.onnx"), target="ort-cpu", calibration=str(calibration),
            recipe=given.recipe, output=bundle,
        )  # fmt: skip
        with np.load(calibration) as arrays:
            samples = [
                {key: arrays[key][n : n + 1] for key in arrays.files if key != "label"}
                for n in range(given.runs)
            ]
        return read_case(bundle, samples, given.runs)
    case = export_case(load_zoo(given.zoo), name, scratch / "export")
    bundle = scratch / "bundle" if given.bundles is None else given.bundles / name / given.recipe
    if not bundle.exists():
        compile_case(case, read_standings()[name], given.recipe, bundle)
    samples = list(islice(case.calibration_feeds(), given.runs))
    return read_case(bundle, samples, given.runs)


if __name__ == "__main__":
    sys.exit(main())
