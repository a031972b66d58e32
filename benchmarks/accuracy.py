"""How accurate are edgeq's bundles, beside what other tools reached?

    python -m benchmarks.accuracy [CASE]... [--recipe NAME]...

Compiles each case of the zoo for `ort-cpu` with its calibration data, runs the bundle with ONNX
Runtime over all evaluation data and prints a Markdown table. SQNR is that of each output against
the float model's, the first one in bold. Exit status 1 if a bit differs, a proof is missing, or a
required value of `peers.toml` is not reached.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import edgeq
from benchmarks.cases import (
    ZOO,
    DeployedBundle,
    ExportedCase,
    Feeds,
    NoiseMeter,
    export_case,
    load_zoo,
    make_session,
    open_bundle,
)
from benchmarks.peers import Figure, Required, Standing, read_standings

RECIPES = ("int8", "int8-power-of-two")
HEAD = (
    "case", "float", "best peer: metric / SQNR", "edgeq: metric / SQNR (dB)", "other outputs",
    "tensors", "compared", "mismatches", "unproven", "seconds", "required",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: a case under a recipe."""

    standing: Standing
    float_metric: float | None
    reached: Figure
    others: tuple[float, ...]
    bundle: DeployedBundle
    seconds: float
    misses: tuple[str, ...]

    def cells(self) -> list[str]:
        """Return the cells as text."""
        unit, bits = self.standing.unit, self.bundle
        return [
            self.standing.name,
            amount(self.float_metric, unit),
            f"{amount(self.standing.best.metric, unit)} / {amount(self.standing.best.sqnr_db)}",
            f"{amount(self.reached.metric, unit)} / **{amount(self.reached.sqnr_db)}**",
            ", ".join(amount(value) for value in self.others) or "-",
            f"{bits.tensors}",
            f"{bits.compared:,}",
            f"{bits.mismatches}",
            f"{bits.unproven}",
            f"{self.seconds:.1f}",
            "; ".join(self.misses) or "reached",
        ]


def amount(value: float | None, unit: str = "") -> str:
    """Return a figure with its unit, or a dash."""
    return "-" if value is None else f"{value:.2f} {unit}".strip()


def measure(case: ExportedCase, standing: Standing, recipe: str, folder: Path) -> Row:
    """Compile `case`, and evaluate bundle and float model side by side."""
    start = time.perf_counter()
    edgeq.compile(
        str(case.model),
        target="ort-cpu",
        calibration=str(case.calibration),
        recipe=recipe,
        output=folder,
    )
    seconds = time.perf_counter() - start
    bundle = open_bundle(folder)
    deployed = make_session(bundle.artifact, bundle.session_options, threads=2)
    original = make_session(case.model, threads=2)
    noise = NoiseMeter()

    def run_both(feeds: Feeds) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = deployed.run(None, feeds)
        noise.add(original.run(None, feeds), outputs)
        return outputs

    labelled = case.metric != "sqnr"
    metric = case.evaluate(run_both, lambda feeds: original.run(None, feeds))
    float_metric = case.zoo.float_value if labelled else None
    first, *others = noise.decibels()
    reached = Figure(metric if labelled else None, first)
    misses = standing.required.get(recipe, Required()).misses(reached, float_metric)
    if bundle.mismatches:
        misses.append(f"{bundle.mismatches} bits differ")
    if bundle.unproven:
        misses.append(f"{bundle.unproven} nodes unproven")
    return Row(standing, float_metric, reached, tuple(others), bundle, seconds, tuple(misses))


def line(cells: list[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print a table per recipe; return the exit status."""
    standings = read_standings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("case", nargs="*", help=f"default: {' '.join(standings)}")
    parser.add_argument("--recipe", action="append", help=f"default: {' '.join(RECIPES)}")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--keep", type=Path, help="keep models, data and bundles in this folder")
    arguments = parser.parse_args()
    unknown = set(arguments.case) - set(standings)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; known: {', '.join(standings)}")
    zoo = load_zoo(arguments.zoo)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="edgeq-accuracy-"))
    missed = 0
    try:
        for recipe in arguments.recipe or RECIPES:
            print(f"\nRecipe `{recipe}`:\n\n{line(list(HEAD))}\n{line(['---'] * len(HEAD))}")
            for name in arguments.case or standings:
                case = export_case(zoo, name, folder / name)
                bundle = folder / name / recipe
                shutil.rmtree(bundle, ignore_errors=True)
                try:
                    row = measure(case, standings[name], recipe, bundle)
                except edgeq.EdgeqError as error:  # the other cases are measured all the same
                    missed += 1
                    print(line([name, *["-"] * (len(HEAD) - 2), str(error)]), flush=True)
                    continue
                missed += len(row.misses)
                print(line(row.cells()), flush=True)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
