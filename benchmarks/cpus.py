"""Does one bundle give the same bits on every CPU? The zoo's bundles, checked on emulated CPUs.

    python -m benchmarks.cpus [CASE]... [--recipe NAME]... [--cpu NAME]... [--runs N]

Installs what it needs into a cache folder (`benchmarks.emulation`), compiles each case for
`ort-cpu`, unless its bundle is there, and runs a bundle's `check.py --taps` on each CPU with stock
onnxruntime: files, outputs with one and two threads, every quantized tensor, of the first golden
inputs. Prints a Markdown table of differing and compared elements. Exit status 1 if a bit differs.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import edgeq
from benchmarks.cases import ROOT, ZOO, compile_case, export_case, load_zoo
from benchmarks.emulation import CACHE, install, run_python
from benchmarks.peers import read_standings
from edgeq.bundle import standalone_check
from edgeq.cpus import CPUS, Cpu

CASES = ("kws-dscnn", "resnet20-cifar10", "vit-mnist", "ddpm-attn-mnist32")
RUNS = {"resnet20-cifar10": 20, "vit-mnist": 20, "ddpm-attn-mnist32": 4}  # emulation is slow
RECIPES = ("int8", "int8-power-of-two")


@dataclass(frozen=True)
class Cell:
    """What the check of one bundle said on one CPU.

    Attributes:
        compared: Elements compared.
        differing: Elements that differ.
        message: The first difference, or why the check was refused; empty where all agree.
        seconds: How long it took.
    """

    compared: int
    differing: int
    message: str
    seconds: float

    @property
    def same(self) -> bool:
        """Whether something was compared, and all of it agrees."""
        return self.compared > 0 and not self.differing

    def __str__(self) -> str:
        if not self.compared:
            return f"refused: {self.message}"
        return f"{self.differing} / {self.compared:,}"


def check_on(
    cpu: Cpu,
    bundle: Path,
    runs: int | None = None,
    cache: Path = CACHE,
    *,
    any_cpu: bool = False,
) -> Cell:
    """Check a bundle on a CPU, as its own `check.py` does; with `any_cpu` also what it refuses."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "check.py"
        script.write_bytes(standalone_check())
        options = ["--bundle", str(bundle.absolute()), "--taps", "--repeat", "1", "--json"]
        options += [] if runs is None else ["--runs", str(runs)]
        options += ["--any-cpu"] if any_cpu else []
        found = run_python(cpu, [str(script), *options], cache)
    seconds = time.perf_counter() - start
    if found.returncode not in (0, 1):
        return Cell(0, 0, found.stderr.strip()[-300:] or f"status {found.returncode}", seconds)
    bits = json.loads(found.stdout)["bitwise"]
    return Cell(bits["compared"], bits["mismatches"], bits.get("first", ""), seconds)


def make_bundle(case: str, recipe: str, zoo: Path, folder: Path) -> Path:
    """Return the bundle of a case, compiled unless it is in `folder`."""
    bundle = folder / case / recipe
    if bundle.exists():
        return bundle
    bundle.parent.mkdir(parents=True, exist_ok=True)
    if case == "digits":
        data = ROOT / "samples" / "digits"
        edgeq.compile(
            str(data / "digits.onnx"),
            target="ort-cpu",
            calibration=str(data / "calibration.npz"),
            recipe=recipe,
            output=bundle,
        )
        return bundle
    exported = export_case(load_zoo(zoo), case, folder / "export" / case)
    compile_case(exported, read_standings()[case], recipe, bundle)
    return bundle


def main() -> int:
    """Print the table; return 1 if a bit differs or a check was refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--cpu", action="append", choices=[*CPUS])
    parser.add_argument("--bundles", type=Path, help="FOLDER/CASE/RECIPE; kept there if given")
    parser.add_argument("--runs", type=int, help="golden inputs (default: of large cases some)")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    given = parser.parse_args()
    install(given.cache)
    failed = 0
    print("| case | recipe | CPU | differing / compared | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for case in given.cases:
            for recipe in given.recipe or RECIPES:
                bundle = make_bundle(case, recipe, given.zoo, given.bundles or Path(scratch))
                for name in given.cpu or CPUS:
                    cell = check_on(CPUS[name], bundle, given.runs or RUNS.get(case), given.cache)
                    failed += not cell.same
                    place = f" ({cell.message})" if cell.differing else ""
                    print(
                        f"| {case} | {recipe} | {name} | {cell}{place} | {cell.seconds:.0f} |",
                        flush=True,
                    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
