"""How accurate are edgeq's bundles, beside what other tools reached?

    python -m benchmarks.accuracy [CASE]... [--recipe NAME]...

Compiles each case of the zoo for `ort-cpu` with its calibration data, runs the bundle with ONNX
Runtime over all evaluation data and prints a Markdown table. `quantize_static` is measured in the
same way, with the same export and data; the best of the other tools is read from `peers.toml`. SQNR
is that of each output against the float model's, the first one in bold. Exit status 1 if a bit
differs, a proof is missing, or a required value of `peers.toml` is not reached.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

import edgeq
from benchmarks.cases import (
    ZOO,
    DeployedBundle,
    ExportedCase,
    Feeds,
    NoiseMeter,
    compile_case,
    export_case,
    load_zoo,
    make_session,
    open_bundle,
)
from benchmarks.peers import Figure, Required, Standing, read_standings
from benchmarks.static_qdq import quantize_case

RECIPES = ("int8", "int8-power-of-two")
HEAD = (
    "case", "float", "best peer: metric / SQNR", "quantize_static: metric / SQNR",
    "edgeq: metric / SQNR (dB)", "other outputs", "tensors", "compared", "mismatches", "unproven",
    "seconds", "required",
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """What `quantize_static`'s model reaches; no figure where ONNX Runtime loads none."""

    figure: Figure | None
    note: str


@dataclass(frozen=True)
class Row:
    """One line of the table: a case under a recipe.

    Attributes:
        standing: The case.
        float_metric: Of the float model; None for `sqnr`.
        peer: Beside it.
        reached: Of the bundle, with the first output's SQNR; None where there is no bundle.
        others: The SQNR of the other outputs.
        bundle: Its manifest.
        seconds: Time of compiling.
        misses: What is not as it must be.
    """

    standing: Standing
    float_metric: float | None
    peer: Peer
    reached: Figure | None = None
    others: tuple[float, ...] = ()
    bundle: DeployedBundle | None = None
    seconds: float = 0.0
    misses: tuple[str, ...] = ()

    def cells(self) -> list[str]:
        """Return the cells as text."""
        standing, bits = self.standing, self.bundle
        static = "does not load"
        if self.peer.figure is not None:
            static = pair(self.peer.figure, standing)
        cells = [
            standing.name,
            amount(self.float_metric, standing.unit, standing.decimals),
            pair(standing.best, standing),
            static,
        ]
        if self.reached is None or bits is None:
            cells += ["-"] * (len(HEAD) - len(cells) - 1)
        else:
            cells += [
                pair(self.reached, standing, "**"),
                ", ".join(amount(value) for value in self.others) or "-",
                f"{bits.tensors}",
                f"{bits.compared:,}",
                f"{bits.mismatches}",
                f"{bits.unproven}",
                f"{self.seconds:.1f}",
            ]
        return [*cells, "; ".join(self.misses).replace("|", "\\|") or "reached"]


def amount(value: float | None, unit: str = "", decimals: int = 2) -> str:
    """Return a figure with its unit, or a dash."""
    return "-" if value is None else f"{value:.{decimals}f} {unit}".strip()


def pair(figure: Figure, standing: Standing, mark: str = "") -> str:
    """Return metric and SQNR; `mark` stands around the SQNR."""
    metric = amount(figure.metric, standing.unit, standing.decimals)
    return f"{metric} / {mark}{amount(figure.sqnr_db)}{mark}"


def evaluate(case: ExportedCase, session: ort.InferenceSession) -> tuple[Figure, tuple[float, ...]]:
    """Run `session` and the float model side by side over all evaluation data.

    Returns:
        The metric with the SQNR of the first output, and the SQNR of the other outputs.
    """
    original = make_session(case.model, threads=2)
    noise = NoiseMeter()

    def run_both(feeds: Feeds) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(None, feeds)
        noise.add(original.run(None, feeds), outputs)
        return outputs

    metric = case.evaluate(run_both, lambda feeds: original.run(None, feeds))
    first, *others = noise.decibels()
    return Figure(metric if case.metric != "sqnr" else None, first), tuple(others)


def measure_peer(case: ExportedCase, folder: Path) -> Peer:
    """Quantize `case` with `quantize_static`, and evaluate its model."""
    static = quantize_case(case, folder)
    if static.path is None:
        return Peer(None, static.note)
    figure, _ = evaluate(case, make_session(static.path, threads=2))
    return Peer(figure, static.note)


def measure(case: ExportedCase, standing: Standing, peer: Peer, recipe: str, folder: Path) -> Row:
    """Compile `case` into `folder`, and evaluate the bundle."""
    float_metric = case.zoo.float_value if case.metric != "sqnr" else None
    start = time.perf_counter()
    try:
        compile_case(case, standing, recipe, folder)
    except edgeq.EdgeqError as error:  # the other cases are measured all the same
        return Row(standing, float_metric, peer, misses=(f"{error}".replace("\n", " "),))
    seconds = time.perf_counter() - start
    bundle = open_bundle(folder)
    session = make_session(bundle.artifact, bundle.session_options, threads=2)
    reached, others = evaluate(case, session)
    required = standing.required.get(recipe, Required())
    misses = required.misses(reached, float_metric, standing.higher_is_better)
    if bundle.mismatches:
        misses.append(f"{bundle.mismatches} bits differ")
    if bundle.unproven:
        misses.append(f"{bundle.unproven} nodes unproven")
    return Row(standing, float_metric, peer, reached, others, bundle, seconds, tuple(misses))


def line(cells: list[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def notes(standing: Standing, peer: Peer) -> list[str]:
    """Return what the table has no room for."""
    found = [
        f"{name}, with operators left float: {pair(figure, standing)}"
        for name, figure in standing.partly.items()
    ]
    return [f"{standing.name}: {text}" for text in [*found, peer.note] if text]


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
    names, peers, missed = arguments.case or list(standings), dict[str, Peer](), 0
    try:
        for recipe in arguments.recipe or RECIPES:
            print(f"\nRecipe `{recipe}`:\n\n{line(list(HEAD))}\n{line(['---'] * len(HEAD))}")
            for name in names:
                case = export_case(zoo, name, folder / name)
                if name not in peers:
                    peers[name] = measure_peer(case, folder / name)
                bundle = folder / name / recipe
                shutil.rmtree(bundle, ignore_errors=True)
                row = measure(case, standings[name], peers[name], recipe, bundle)
                missed += len(row.misses)
                print(line(row.cells()), flush=True)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    print("", *(text for name in names for text in notes(standings[name], peers[name])), sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
