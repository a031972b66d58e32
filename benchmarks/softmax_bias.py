"""What softmax bias correction is worth on attention: SQNR of `P @ V` in dB.

    python -m benchmarks.softmax_bias [--bits 8 4]
    python -m benchmarks.softmax_bias --models [CASE]... [--bits 8 4]

Scores are normal with standard deviation sigma, 256 rows; V is normal, with a mean of its own per
channel. With `--models` both are those of the zoo's models, in float, on calibration samples. The
probabilities are those of the deployed kernel: `exact-softmax` writes it, edgeq's simulator and
ONNX Runtime run it, and their bits must be equal. Corrections, and the range, are found on one
half of the rows or samples and measured on the other. Exit status 1 if a bit differs or a figure is
missed.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.cases import ZOO, ExportedCase, export_case, load_zoo
from edgeq.attention import MASKED, find_attentions
from edgeq.chain import Chain
from edgeq.graph import Editor, producer
from edgeq.load import load_model
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.runtime import make_session, run
from edgeq.simulate import Simulator
from edgeq.softmax_bias import Form, Observed, SoftmaxBiasMeter, softmax
from edgeq.softmax_form import HIGHEST_TERM, TERMS, TOTAL
from edgeq.targeting import find_target

Float64 = NDArray[np.float64]
LENGTHS, SIGMAS = (77, 256, 1024, 4096), (0.5, 1.0, 2.0, 4.0)
ROWS, WIDTH = 256, 64
CASES = ("vit-mnist", "opt-shakespeare", "ddpm-attn-mnist32")
SAMPLES = 64  # of a model's calibration data
ONE_SCALE: tuple[Form, ...] = ("none", "scale", "beta")
BY_ROW: tuple[Form, ...] = ("row", "row+beta")
LABELS = ("none", "scale", "beta", "range", "range + scale", "range + beta", *BY_ROW)
TARGET = find_target("ort-cpu")
NO_SAMPLES: Any = ()  # exact-softmax looks at no data
# What ideal probabilities reach with `range + beta` at 8 bits, and how much less is still enough.
IDEAL: Mapping[tuple[int, float], float] = MappingProxyType(
    {
        (1024, 1.0): 51.8, (1024, 2.0): 35.4, (1024, 4.0): 36.3,
        (4096, 1.0): 55.9, (4096, 2.0): 32.5, (4096, 4.0): 32.1,
    }
)  # fmt: skip
SLACK = 1.0


@dataclass(frozen=True, eq=False)
class Example:
    """What one attention is made of, once.

    Attributes:
        scores: float64 (batch, heads, rows, keys).
        v: float64 (batch, heads, keys, width).
    """

    scores: Float64
    v: Float64

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which scores no mask hides."""
        return self.scores > MASKED


Examples = Sequence[Example]


def draws() -> Iterator[tuple[int, float, Examples, Examples]]:
    """Yield length and sigma of each attention, and what to fit and to measure on."""
    random = np.random.default_rng(0)
    for length in LENGTHS:
        for sigma in SIGMAS:
            scores = random.normal(size=(1, 1, ROWS, length)) * sigma
            v = random.normal(size=(length, WIDTH)) + random.normal(size=(1, WIDTH))
            fit, test = np.split(scores, 2, axis=2)
            yield length, sigma, [Example(fit, v[None, None])], [Example(test, v[None, None])]


def attentions(case: ExportedCase) -> Iterator[tuple[str, Examples, Examples]]:
    """Yield each attention of a model in float: its name, what to fit and to measure on."""
    model = load_model(case.model).model
    run_pipeline(
        "cleanup", model, Context(load_recipe("int8", {}), TARGET.capabilities, NO_SAMPLES)
    )
    found = [(a, a.softmax.inputs[0], a.v) for a in find_attentions(model)]
    simulator, every = Simulator(model), list(case.calibration_feeds())
    feeds = every[:: max(1, len(every) // SAMPLES)][:SAMPLES]
    for attention, scores, v in found:
        assert scores is not None and v is not None, attention
        taps = [str(scores.name), str(v.name)]
        seen = [[simulator.run(feed, taps)[tap] for tap in taps] for feed in feeds]
        examples = [Example(*(array.astype(np.float64) for array in pair)) for pair in seen]
        yield str(attention.output.name), examples[::2], examples[1::2]


def deployed(shape: tuple[int, ...], scale: float, highest: int) -> tuple[ir.Model, float]:
    """Return the kernel that makes codes of real scores, and what one code of a row stands for.

    Its outputs: codes of this scale; codes of rows whose largest is `highest`; the sums of the
    terms that these count in.
    """
    dims = ",".join(map(str, shape))
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[{dims}] x)'
        f" => (uint8[{dims}] y) <float s = {{{scale}}}, uint8 z = {{0}}>"
        " { p = Softmax(x) y = QuantizeLinear(p, s, z) }"
    )
    infer_shapes(model)
    run_pipeline(
        "exact-softmax", model, Context(load_recipe("int8", {}), TARGET.capabilities, NO_SAMPLES)
    )
    (codes,) = model.graph.outputs
    values = {value.name: value for node in model.graph for value in node.outputs}
    terms, total = (values[codes.metadata_props[key]] for key in (TERMS, TOTAL))
    unit = np.float32(int(codes.metadata_props[HIGHEST_TERM]) / highest)
    editor = Editor(model.graph)
    write = Chain(editor, "rows")
    parameters = write.constant(unit), write.constant(np.uint8(0))
    by_row = write("QuantizeLinear", terms, *parameters, dtype=ir.DataType.UINT8)
    editor.insert_after(producer(total), [by_row])
    model.graph.outputs.extend([by_row, total])
    return model, float(unit)


def rounded(scores: Float64, scale: float, highest: int) -> tuple[Float64, Float64]:
    """Return what the codes of the probabilities stand for, with one scale and one for each row.

    They have the same bits in the simulator and the runtime.
    """
    model, unit = deployed(scores.shape, scale, highest)
    feeds = {"x": scores.astype(np.float32)}
    simulated = list(Simulator(model).run(feeds).values())
    session = make_session(model, options=TARGET.capabilities.session_options)
    for ours, found in zip(simulated, run(session, feeds).values(), strict=True):
        if found.tobytes() != ours.tobytes():
            raise SystemExit(f"{(found != ours).sum()} of {found.size} codes differ")
    codes, by_row, total = (array.astype(np.float64) for array in simulated)
    return np.minimum(codes, highest) * scale, by_row * unit / total


def measure(fit: Examples, test: Examples, bits: int) -> dict[str, float]:
    """Return the SQNR of each form, in dB."""
    highest, largest = 2**bits - 1, max(softmax(e.scores, e.kept).max() for e in fit)
    found: dict[str, float] = {}
    for name, top in (("", 1.0), ("range", float(largest))):
        fitted, tested = (_meter(examples, top / highest, highest) for examples in (fit, test))
        for form in ONE_SCALE:
            label = " + ".join(part for part in (name, form) if part not in ("", "none")) or form
            found[label] = tested.worth(form, fitted.correction(form).value).sqnr_db
    return found | {form: tested.correction(form).sqnr_db for form in BY_ROW}


def _meter(examples: Examples, scale: float, highest: int) -> SoftmaxBiasMeter:
    meter = SoftmaxBiasMeter(examples[0].scores.shape[1])
    for example in examples:
        ideal = softmax(example.scores, example.kept)
        found = rounded(example.scores, scale, highest)
        meter.add(Observed(ideal, *found, example.v, example.kept))
    return meter


def synthetic(bits: int) -> int:
    """Print the table of drawn scores; return how many figures are missed."""
    print(_head(f"{bits} bits: keys | sigma", "required"))
    missed = 0
    for length, sigma, fit, test in draws():
        found = measure(fit, test, bits)
        wanted = IDEAL.get((length, sigma)) if bits == 8 else None
        verdict = ""
        if wanted is not None:
            reached = found["range + beta"] >= wanted - SLACK
            verdict = "reached" if reached else f"missed: {wanted - SLACK:.1f}"
            missed += not reached
        print(f"| {length} | {sigma:g} | {_cells(found)} | {verdict} |", flush=True)
    return missed


def trained(names: Sequence[str], zoo: Path, bits: int) -> None:
    """Print the table of the zoo's models."""
    print(_head(f"{bits} bits: model | attention | keys"))
    cases = load_zoo(zoo)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            case = export_case(cases, name, Path(folder))
            for attention, fit, test in attentions(case):
                cells = _cells(measure(fit, test, bits))
                keys = fit[0].scores.shape[-1]
                print(f"| {name} | {attention} | {keys} | {cells} |", flush=True)


def _head(*names: str) -> str:
    first, *last = names
    head = " | ".join((first, *LABELS, *last))
    return f"\n| {head} |\n" + "|---" * (head.count(" | ") + 1) + "|"


def _cells(found: Mapping[str, float]) -> str:
    return " | ".join(f"{found[label]:.1f}" for label in LABELS)


def main() -> int:
    """Print the tables; return 1 if a required value is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--models", nargs="*", metavar="CASE", help=f"default: {', '.join(CASES)}")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    options = parser.parse_args()
    if options.models is None:
        return int(sum(map(synthetic, options.bits)) > 0)
    for bits in options.bits:
        trained(options.models or CASES, options.zoo, bits)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
