"""Is a plan of widths better than uniform widths, and than plans drawn at random?

    python -m benchmarks.mixed_precision [CASE]... [--budget 0.6] [--random 3] [--loss mse]

For each case of the zoo: all weights in 8 bits; the plan of `plan-bits` within a share of those
bytes; plans of the same budget that widen layers in random order, as long as they fit; all weights
in 4 bits. Prints a Markdown table of metric and SQNR over all evaluation data, run by ONNX Runtime,
of the bytes of the weights that were planned, and of the artifact. Exit status 1 where a random
plan has the better SQNR.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path

import numpy as np

from benchmarks.accuracy import evaluate, line, pair
from benchmarks.cases import ZOO, ExportedCase, export_case, load_zoo, make_session
from benchmarks.peers import Figure, Standing, read_standings
from edgeq.bit_choice import BitChoice, BitOption
from edgeq.compile import open_calibrated
from edgeq.graph import clone
from edgeq.longest import MAX_DIM
from edgeq.passing import Context, format_steps, parse_steps, run_pipeline
from edgeq.recipe import Recipe, Rule, load_recipe
from edgeq.request import CompileRequest
from edgeq.targeting import find_target

CASES = ("resnet20-cifar10", "mobilenet-v1-075", "vit-mnist", "opt-shakespeare")
NARROW, WIDE = "int4", "int8"
HEAD = ["case", "plan", "metric / SQNR (dB)", "bytes planned", "bytes of the artifact"]


@dataclasses.dataclass(frozen=True)
class Row:
    """What a plan came to."""

    plan: str
    figure: Figure
    planned: int
    artifact: int


def measure(
    case: ExportedCase, standing: Standing, options: str, count: int, samples: int | None
) -> Iterator[Row]:
    """Yield a row for each plan of a case: that of plan-bits first."""
    recipe = load_recipe("mixed")
    rest = [step for step in parse_steps(recipe.quantize) if step.name != "plan-bits"]
    recipe = dataclasses.replace(recipe, quantize=format_steps(rest))
    request = CompileRequest(
        model=str(case.model),
        target="ort-cpu",
        calibration=str(case.calibration),
        recipe=recipe,
        samples=samples,
        input_ranges=standing.input_ranges,
        max_dim=standing.max_dim or MAX_DIM,
        dry_run=True,
    )
    with open_calibrated(request) as context:
        assert context.reference is not None
        run_pipeline(f"plan-bits{{{options}}}", clone(context.reference), context)
        planned, choices = context.recipe, list(context.bit_choices)
        budget = sum(row.weight_bytes for row in choices)
        yield _row(case, "planned", planned, budget, context)
        for seed in range(count):
            drawn = _drawn(choices, budget, seed)
            size = sum(_bytes(row, qtype) for row, qtype in zip(choices, drawn, strict=True))
            ruled = recipe.with_rules(_rules(choices, drawn))
            yield _row(case, f"random {seed}", ruled, size, context)
        for qtype in (WIDE, NARROW):
            ruled = recipe.with_rules(_rules(choices, [qtype] * len(choices)))
            size = sum(_bytes(row, qtype) for row in choices)
            yield _row(case, f"all {qtype}", ruled, size, context)


def _row(case: ExportedCase, plan: str, recipe: Recipe, planned: int, calibrated: Context) -> Row:
    """Quantize the calibrated model with `recipe`, and evaluate it."""
    assert calibrated.reference is not None
    model = clone(calibrated.reference)
    context = dataclasses.replace(
        calibrated,
        recipe=recipe,
        qparams={},
        copies={},
        notes=[],
        softmax_rows=[],
        float_weights={},
    )
    run_pipeline(recipe.quantize, model, context)
    target = find_target("ort-cpu")
    artifact = target.lower(target.specialize(model, next(iter(context.samples))))
    with tempfile.TemporaryDirectory() as folder:
        for name, data in artifact.files.items():
            Path(folder, name).write_bytes(data)
        options = target.capabilities.session_options
        session = make_session(Path(folder, artifact.entry), options, threads=1)
        figure, _ = evaluate(case, session)
    return Row(plan, figure, planned, artifact.size)


def _drawn(choices: Sequence[BitChoice], budget: int, seed: int) -> list[str]:
    """Return formats that fit: layers are widened in random order while they do."""
    drawn = [NARROW] * len(choices)
    spent = sum(_bytes(row, NARROW) for row in choices)
    for place in np.random.default_rng(seed).permutation(len(choices)):
        more = _bytes(choices[place], WIDE) - _bytes(choices[place], NARROW)
        if spent + more <= budget:
            drawn[place], spent = WIDE, spent + more
    return drawn


def _bytes(row: BitChoice, qtype: str) -> int:
    return BitOption(qtype, row.activation).weight_bytes(row.weight_count)


def _rules(choices: Sequence[BitChoice], formats: Sequence[str]) -> list[Rule]:
    return [
        Rule(op_type=row.op_type, name=escape(row.layer), weight=(("qtype", qtype),))
        for row, qtype in zip(choices, formats, strict=True)
    ]


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--budget", type=float, default=0.6, help="share of the bytes in 8 bits")
    parser.add_argument("--random", type=int, default=3, help="plans drawn at random")
    parser.add_argument("--loss", default="mse", help="mse or kl")
    parser.add_argument("--samples", type=int, help="calibration samples; all of them without it")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    arguments = parser.parse_args()
    zoo, standings = load_zoo(arguments.zoo), read_standings()
    options = f"budget_bytes={arguments.budget},loss={arguments.loss}"
    options += f",weights={NARROW}|{WIDE}"
    print(line(HEAD), line(["---"] * len(HEAD)), sep="\n", flush=True)
    worse = False
    for name in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            case, standing = export_case(zoo, name, Path(folder)), standings[name]
            best = None
            for row in measure(case, standing, options, arguments.random, arguments.samples):
                best = best or row.figure.sqnr_db
                if row.plan.startswith("random") and (row.figure.sqnr_db or 0) > (best or 0):
                    worse = True
                cells = [name, row.plan, pair(row.figure, standing), f"{row.planned:,}"]
                print(line([*cells, f"{row.artifact:,}"]), flush=True)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
