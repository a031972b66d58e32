"""Models of other quantizers: are the differences between CPUs that edgeq predicts found there?

    python -m benchmarks.foreign [CASE]... [--tool NAME]... [--python TOOL=INTERPRETER]...

Each tool quantizes each case in an environment of its own (`benchmarks.foreign_quantizers`; made in
the cache folder, unless an interpreter is given). Each model, and what `edgeq lint --fix` makes of
it, runs with stock onnxruntime on every emulated CPU, every quantized tensor with it. Prints, as a
Markdown table, for each model:

    differ     tensors whose bits on a CPU are not those of this machine, CPU by CPU
    named      tensors whose bits on a CPU are not what the nodes in front of them define, and how
               many of these have a finding of `edgeq lint` for that CPU at one of these nodes
    predicted  elements predicted by `edgeq.predict` from what the CPU itself made of the tensors in
               front, and how many of these predictions were wrong
    fixed      as `differ`, behind --fix, and how many findings were left

Exit status 1 if a prediction was wrong, a tensor was not named, or one without findings differs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.cases import ZOO, ExportedCase, export_case, load_zoo
from benchmarks.emulation import CACHE, install, run_python
from edgeq.cpus import CPUS, Cpu
from edgeq.fix import fix
from edgeq.golden import npz_bytes
from edgeq.lint import Finding, lint
from edgeq.opening import open_model
from edgeq.predict import Prediction
from edgeq.predicted_check import as_deployed, code_names
from edgeq.simulate import Simulator
from edgeq.targets.ort_cpu import tap

Arrays = Mapping[str, NDArray[Any]]
CASES = ("kws-dscnn", "resnet20-cifar10")
SAMPLES = 4
HOST = "x86-64-vnni"
KINDS = ("made", "fixed")
PACKAGES = {
    "onnxruntime-uint8": ("onnxruntime==1.31.1", "onnx", "sympy"),
    "onnxruntime-int8": ("onnxruntime==1.31.1", "onnx", "sympy"),
    "nncf": ("nncf==3.4.0", "onnx", "onnxruntime==1.31.1"),
    "modelopt": ("nvidia-modelopt[onnx]==0.47.0", "onnxruntime==1.31.1"),
    "quark": ("amd-quark==0.13", "torch", "onnxruntime==1.31.1"),
}


@dataclass
class Row:
    """What came out for one model.

    Attributes:
        differ: Tensors that differ from this machine's, by CPU.
        leaving: Tensors that leave the definition, of all CPUs.
        named: How many of these the linter names.
        predicted: Elements predicted.
        wrong: How many of these predictions were wrong.
    """

    differ: dict[str, int] = field(default_factory=dict)
    leaving: int = 0
    named: int = 0
    predicted: int = 0
    wrong: int = 0


@dataclass(frozen=True)
class Model:
    """A quantized model as its tool made it, and as `--fix` writes it.

    Attributes:
        name: Case and tool.
        paths: The two files.
        folders: Where the two run.
        tapped: Both with every quantized tensor as an output.
        feeds: Some samples.
    """

    name: str
    paths: tuple[Path, ...]
    folders: tuple[Path, ...]
    tapped: tuple[ir.Model, ...]
    feeds: Arrays

    def examine(self, kind: str, cpus: Sequence[Cpu]) -> tuple[Row, tuple[Finding, ...]]:
        """Hold what the CPUs made against prediction, definition and linter."""
        place = KINDS.index(kind)
        return examine(self.tapped[place], self.paths[place], self.feeds, self.folders[place], cpus)


def interpreter(tool: str, given: Mapping[str, str], cache: Path) -> str:
    """Return the Python that has the tool; its environment is made where none is given."""
    if tool in given:
        return given[tool]
    folder = cache / "tools" / tool.partition("-")[0]
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, *PACKAGES[tool]], check=True)
    return str(python)


def quantize(python: str, tool: str, case: ExportedCase, output: Path) -> None:
    """Let a tool quantize a case."""
    script = Path(__file__).with_name("foreign_quantizers.py")
    arguments = [tool, str(case.model), str(case.calibration), str(output)]
    found = subprocess.run(
        [python, str(script), *arguments], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise RuntimeError(f"{tool}: {found.stderr.strip()[-300:]}")


def place(path: Path, feeds: Arrays, folder: Path) -> ir.Model:
    """Write a model with every quantized tensor as an output beside its inputs; return it."""
    model = as_deployed(path)
    tapped = tap(model, code_names(model))
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(tapped, folder / "model.onnx")
    (folder / "feeds.npz").write_bytes(npz_bytes(feeds))
    return tapped


def run_all(folders: Sequence[Path], cpus: Sequence[Cpu], cache: Path) -> None:
    """Run the models in `folders` on the CPUs: `CPU.npz` beside each."""
    script = Path(__file__).with_name("run_on_cpu.py")
    for cpu in cpus:
        os.environ["CPU"] = cpu.name
        found = run_python(cpu, [str(script), *map(str, folders)], cache)
        if found.returncode:
            raise RuntimeError(f"{cpu.name}: {found.stderr[-500:]}")


def examine(
    tapped: ir.Model, path: Path, feeds: Arrays, folder: Path, cpus: Sequence[Cpu]
) -> tuple[Row, tuple[Finding, ...]]:
    """Hold what the CPUs made against prediction, definition and linter."""
    opened, row = open_model(path), Row()
    findings, simulator = lint(opened), Simulator(opened)
    host = _read(folder, HOST)
    for cpu in cpus:
        made = _read(folder, cpu.name)
        row.differ[cpu.name] = sum(_differ(host[name], made[name]) > 0 for name in host)
        for name, array in Prediction(tapped, cpu).run(feeds, made).items():
            row.predicted += array.size
            row.wrong += _differ(array, made[name])
        flagged = {f.node for f in findings if cpu.name in f.cpus.split(", ")}
        for name, nodes in _leaving(simulator, opened, feeds, made):
            row.leaving += 1
            row.named += not flagged.isdisjoint(nodes)
            if flagged.isdisjoint(nodes):
                print(f"not named for {cpu.name}: {path.name}: {name}", file=sys.stderr)
    return row, findings


def _read(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    with np.load(folder / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}


def _differ(a: NDArray[Any], b: NDArray[Any]) -> int:
    size = a.dtype.itemsize
    bits = [np.ascontiguousarray(x).view(np.uint8).reshape(-1, size) for x in (a, b)]
    return int((bits[0] != bits[1]).any(1).sum())


def _leaving(
    simulator: Simulator, model: ir.Model, feeds: Arrays, made: Arrays
) -> Iterator[tuple[str, set[str]]]:
    """Yield each tensor that is not what the definition makes of those in front of it.

    With the names of the nodes in between.
    """
    env: dict[str, NDArray[Any]] = dict(feeds)
    for step in simulator.steps:
        step.execute(env)
        for name in step.outputs:
            if name in made:
                if _differ(np.asarray(env[name]), made[name]):
                    yield name, _between(model, name, made)
                env[name] = made[name]


def _between(model: ir.Model, name: str, taps: Arrays) -> set[str]:
    producers = {out.name: node for node in model.graph for out in node.outputs}
    found: set[str] = set()
    waiting = [name]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or str(node.name) in found:
            continue
        found.add(str(node.name))
        waiting += [str(v.name) for v in node.inputs if v is not None and v.name not in taps]
    return found


def main() -> int:
    """Print the table; return 1 if something was not as predicted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--tool", action="append", choices=[*PACKAGES])
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=INTERPRETER")
    parser.add_argument("--models", type=Path, help="keep CASE.TOOL.onnx there, or take it")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    given = parser.parse_args()
    install(given.cache)
    cpus, failed = list(CPUS.values()), 0
    others = [cpu for cpu in cpus if cpu.name != HOST]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        models = make_models(given, work)
        run_all([folder for model in models for folder in model.folders], cpus, given.cache)
        print(f"Differing tensors on {', '.join(cpu.name for cpu in others)}:\n")
        columns = "model | tensors | differ | named | predicted, wrong | findings | fixed, left"
        print(f"| {columns} |\n|---|---|---|---|---|---|---|")
        for model in models:
            (row, findings), (after, left) = (model.examine(kind, cpus) for kind in KINDS)
            text = [
                model.name, str(len(model.tapped[0].graph.outputs)), _numbers(row, others),
                f"{row.named} of {row.leaving}",
                f"{row.predicted + after.predicted:,}, {row.wrong + after.wrong}",
                str(len(findings)), f"{_numbers(after, others)}, {len(left)}",
            ]  # fmt: skip
            print(f"| {' | '.join(text)} |", flush=True)
            failed += bool(row.wrong or after.wrong or row.named < row.leaving)
            failed += bool(not left and any(after.differ.values()))
    return int(failed > 0)


def make_models(given: argparse.Namespace, work: Path) -> list[Model]:
    """Return every model, as its tool made it and as `--fix` writes it, ready to run."""
    pythons = dict(text.split("=", 1) for text in given.python)
    models = []
    for name in given.cases:
        case = export_case(load_zoo(given.zoo), name, work / name)
        feeds = _feeds(case, given.samples)
        for tool in given.tool or PACKAGES:
            made = (given.models or work) / f"{name}.{tool}.onnx"
            if not made.exists():
                quantize(interpreter(tool, pythons, given.cache), tool, case, made)
            fixed = work / f"{name}.{tool}.fixed.onnx"
            opened = open_model(made)
            fix(opened)
            ir.save(opened, fixed)
            folders = tuple(work / f"{name}.{tool}.{kind}" for kind in KINDS)
            paths = (made, fixed)
            tapped = tuple(place(p, feeds, f) for p, f in zip(paths, folders, strict=True))
            models.append(Model(f"{name}, {tool}", paths, folders, tapped, feeds))
    return models


def _feeds(case: ExportedCase, count: int) -> dict[str, NDArray[Any]]:
    """Return some samples as one batch."""
    chosen = [feeds for feeds, _ in zip(case.calibration_feeds(), range(count), strict=False)]
    return {name: np.concatenate([feeds[name] for feeds in chosen]) for name in chosen[0]}


def _numbers(row: Row, cpus: Sequence[Cpu]) -> str:
    return " / ".join(str(row.differ[cpu.name]) for cpu in cpus)


if __name__ == "__main__":
    sys.exit(main())
