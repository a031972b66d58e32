"""Which observer chooses the best ranges for activations?

    python -m benchmarks.observers [CASE]... [--bits 8 4] [--alpha A]...

Quantizes the activations of a model of the zoo alone, weights stay float: what differs is the
observer's. Calibrates once, writes the QuantizeLinear / DequantizeLinear pairs of each observer
into the graph, and runs it with ONNX Runtime over the evaluation data. Prints a Markdown table:
metric, and SQNR of the first output against the float model, for each width. Several `--alpha`
compare values of `clip_alpha`.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from benchmarks.accuracy import evaluate, line, pair
from benchmarks.cases import ZOO, ExportedCase, export_case, load_zoo, make_session
from benchmarks.peers import Figure, read_standings
from edgeq.calibrate import Calibration, calibrate
from edgeq.compile import activations
from edgeq.data import Samples, input_specs, open_samples
from edgeq.graph import clone, to_bytes
from edgeq.load import load_model
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import OBSERVERS, load_recipe
from edgeq.targeting import find_target

CASES = ("resnet20-cifar10", "kws-dscnn", "vit-mnist")
PLAIN = {"session.disable_quant_qdq": "1"}  # else ONNX Runtime quantizes float weights too
TARGET = find_target("ort-cpu")
RECIPE = "int8"
ALPHAS = (0.002, 0.01, 0.03)


@dataclass(frozen=True)
class Prepared:
    """A float model, ready to be quantized, and what calibration showed of it."""

    case: ExportedCase
    model: ir.Model
    samples: Samples
    calibration: Calibration


@dataclass(frozen=True)
class Choice:
    """An observer with its settings."""

    label: str
    settings: tuple[tuple[str, str], ...]


def choices(alphas: Sequence[float]) -> Iterator[Choice]:
    """Yield every observer, `clip_ratio` once for each alpha."""
    for observer in OBSERVERS:
        setting = ("activation.observer", observer)
        if observer != "clip_ratio":
            yield Choice(f"`{observer}`", (setting,))
            continue
        for alpha in alphas:
            yield Choice(
                f"`{observer}` {alpha:g}", (setting, ("activation.clip_alpha", f"{alpha}"))
            )


def prepare(case: ExportedCase, found: Sequence[Choice]) -> Prepared:
    """Run the float passes, and calibrate for all observers at once."""
    recipes = [load_recipe(RECIPE, dict(choice.settings)) for choice in found]
    model = load_model(case.model).model
    samples = open_samples(case.calibration, inputs=input_specs(model))
    context = Context(recipes[0], TARGET.capabilities, samples)
    run_pipeline(recipes[0].prepare, model, context)
    ratios = tuple({ratio for recipe in recipes for ratio in recipe.clip_ratios()})
    seen = calibrate(model, samples, activations(model), clip_ratios=ratios)
    return Prepared(case, model, samples, seen)


def measure(prepared: Prepared, choice: Choice, bits: int, folder: Path) -> Figure:
    """Quantize the activations, and evaluate."""
    qtype = {"activation.qtype": f"uint{bits}"}
    recipe = load_recipe(RECIPE, dict(choice.settings) | qtype)
    model = clone(prepared.model)
    context = Context(recipe, TARGET.capabilities, prepared.samples, prepared.calibration)
    run_pipeline("choose-qparams, insert-qdq", model, context)
    path = folder / "quantized.onnx"
    path.write_bytes(to_bytes(model))
    figure, _ = evaluate(prepared.case, make_session(path, PLAIN, threads=1))
    return figure


def main() -> int:
    """Print the table."""
    standings = read_standings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("case", nargs="*", default=CASES, help=f"default: {' '.join(CASES)}")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--alpha", type=float, action="append", help=f"default: {ALPHAS}")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    arguments = parser.parse_args()
    found = list(choices(arguments.alpha or ALPHAS))
    print(line(["case", "bits of activations", *(choice.label for choice in found)]))
    print(line(["---"] * (2 + len(found))))
    zoo = load_zoo(arguments.zoo)
    for name in arguments.case:
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(export_case(zoo, name, Path(folder)), found)
            for bits in arguments.bits:
                figures = [measure(prepared, choice, bits, Path(folder)) for choice in found]
                best = max(figure.sqnr_db or 0 for figure in figures)
                cells = [
                    pair(f, standings[name], "**" if f.sqnr_db == best else "") for f in figures
                ]
                print(line([name, f"{bits}", *cells]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
