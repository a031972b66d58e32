"""How fast is compiled code beside ONNX Runtime, on the same quantized model?

    python -m benchmarks.compiled [CASE]... [--bundles FOLDER]

One thread, batch 1, on this machine: the bundle of `ort-cpu` in ONNX Runtime, with its inputs and
outputs bound, and the same model compiled for each x86-64 device that this CPU is. They take turns
in one process, the first to go changing every round; figures are medians. Also says how long
compiling took. Exit status 1 if a ratio or a time is above its limit.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.cases import ZOO
from benchmarks.devices import Case, make_case
from edgeq.check_saturation import needed_options
from edgeq.targeting import find_target
from edgeq.targets.tvm import TvmRunner
from edgeq.tvm.devices import DEVICES
from edgeq.tvm.toolchain import missing_tools

# Of compiled / ONNX Runtime, which uses what the CPU has, VNNI included.
LIMITS = {"tvm-x86-64-vnni": 1.3, "tvm-x86-64": 3.0}
LIMITED = ("resnet20-cifar10", "mobilenet-v1-075", "kws-dscnn")
OTHERS = ("vit-mnist", "opt-shakespeare", "ddpm-attn-mnist32")
COMPILE_S = 60.0
WARM_UP, ROUNDS, SECONDS = 5, 2000, 6.0


@dataclass(frozen=True)
class Timed:
    """A model that is ready to run."""

    name: str
    run: Callable[[], object]
    compile_s: float


def compiled(case: Case, device: str) -> Timed:
    """Compile a case for a device that is this machine."""
    start = time.perf_counter()
    target = find_target(device)
    model = target.specialize(case.model, case.feeds[0])
    runner = target.load(model)
    assert isinstance(runner, TvmRunner)
    seconds = time.perf_counter() - start
    return Timed(device, runner.bound(case.feeds[0]), seconds)


def in_session(case: Case, folder: Path) -> Timed:
    """Open a case in ONNX Runtime, with what it reads and writes bound."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    for key, value in needed_options(case.options).items():  # as Bundle.session() has them
        settings.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(case.path), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in case.feeds[0].items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return Timed("ort-cpu", lambda: session.run_with_iobinding(binding), 0.0)


def measure(models: list[Timed]) -> dict[str, float]:
    """Return the median of each, in ms."""
    for model in models:
        for _ in range(WARM_UP):
            model.run()
    times: dict[str, list[float]] = {model.name: [] for model in models}
    end, turn = time.perf_counter() + SECONDS, 0
    while turn < ROUNDS and time.perf_counter() < end:
        for place in range(len(models)):
            model = models[(turn + place) % len(models)]
            start = time.perf_counter()
            model.run()
            times[model.name].append(time.perf_counter() - start)
        turn += 1
    return {name: statistics.median(found) * 1e3 for name, found in times.items()}


def main() -> int:
    """Print the table; return 1 if a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=[*LIMITED, *OTHERS])
    parser.add_argument("--bundles", type=Path, help="ort-cpu bundles: FOLDER/CASE/RECIPE")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    given = parser.parse_args()
    here = [name for name in LIMITS if not missing_tools(DEVICES[name])]
    print("| case | ort-cpu (ms) | device | ms | device / ort-cpu | compile (s) | required |")
    print("|---|---|---|---|---|---|---|")
    missed = 0
    for name in given.cases:
        with tempfile.TemporaryDirectory() as scratch:
            facts = argparse.Namespace(recipe="int8", runs=1, zoo=given.zoo, bundles=given.bundles)
            case = make_case(name, facts, Path(scratch))
            models = [in_session(case, Path(scratch)), *(compiled(case, d) for d in here)]
            found = measure(models)
        for model in models[1:]:
            ratio = found[model.name] / found["ort-cpu"]
            limit = LIMITS[model.name] if name in LIMITED else None
            late = ratio > limit if limit is not None else False
            slow = model.compile_s > COMPILE_S
            missed += late + slow
            verdict = "" if limit is None else ("missed" if late else "reached") + f": {limit}"
            print(
                f"| {name} | {found['ort-cpu']:.3f} | {model.name} | {found[model.name]:.3f} |"
                f" **{ratio:.2f}** | {model.compile_s:.1f} | {verdict} |",
                flush=True,
            )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
