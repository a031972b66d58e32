"""The second term of an input that 8 bits ruin: `split-input`."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.calibrate import calibrate
from edgeq.compile import activations
from edgeq.data import input_specs, open_samples
from edgeq.graph import clone
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import linear_group, quantized_tensors
from edgeq.recipe import load_recipe
from edgeq.simulate import Simulator
from edgeq.targeting import find_target
from edgeq.verify import verify

PIPELINE = "choose-qparams, insert-qdq, split-input, quantize-weights"

# The second Conv takes away what most of the first sees: little is left, and rounding shows.
DIFFERENCE = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N,1,8,8] x) => (float[N,2,6,6] y)
<float[2,1,3,3] w = {1, 1, 1, 1, -7.9, 1, 1, 1, 1, 0.5, 0, -0.5, 1, 0, -1, 0.5, 0, -0.5}> {
  y = Conv (x, w)
}"""
GEMM = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N,4] x) => (float[N,2] y) <float[2,4] w = {1, -1, 1, -1, 0.5, 0.5, -0.5, -0.49}> {
  y = Gemm <transB: int = 1> (x, w)
}"""


def samples(model: ir.Model, count: int = 40) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    dims = model.graph.inputs[0].shape
    assert dims is not None
    shape = [1 if not isinstance(d, int) else d for d in dims]
    smooth = [rng.normal(0, 4) + rng.normal(0, 0.05, shape) for _ in range(count)]
    return [{"x": array.astype(np.float32)} for array in smooth]


def quantized(text: str, pipeline: str = PIPELINE) -> tuple[ir.Model, Context]:
    model = ir.from_onnx_text(text)
    feeds = samples(model)
    stream = open_samples(feeds, inputs=input_specs(model, {}))
    context = Context(load_recipe("int8"), find_target("ort-cpu").capabilities, stream)
    context.reference = clone(model)
    context.calibration = calibrate(context.reference, stream, activations(context.reference))
    run_pipeline(pipeline, model, context)
    return model, context


def error(model: ir.Model, reference: ir.Model | None) -> float:
    """Return the mean squared error of the output."""
    assert reference is not None
    simulator, ideal = Simulator(model), Simulator(reference)
    return float(
        np.mean([np.square(simulator.run(f)["y"] - ideal.run(f)["y"]) for f in samples(model, 8)])
    )


@pytest.mark.parametrize("text", [DIFFERENCE, GEMM], ids=["Conv", "Gemm"])
def test_a_second_term_wins_back_what_rounding_lost(text):
    model, context = quantized(text)
    plain, _ = quantized(text, PIPELINE.replace("split-input, ", ""))
    assert any(name == "split-input" for name, _ in context.notes)
    before, after = error(plain, context.reference), error(model, context.reference)
    assert after < before / 2, (before, after)
    (group,) = [g for n in model.graph if (g := linear_group(n)) is not None]
    assert group.w.array is not None and group.w.array.shape[1] == 2 * (
        1 if text is DIFFERENCE else 4
    )


def test_bits_are_those_of_onnx_runtime():
    model, _ = quantized(DIFFERENCE)
    taps = quantized_tensors(model)
    simulator, runner = Simulator(model), find_target("ort-cpu").load(model, taps=taps)
    verdict = verify(lambda feeds: simulator.run(feeds, taps), runner.run, samples(model, 6))
    assert verdict.same and verdict.compared > 1000, verdict.first


def test_an_input_that_8_bits_hold_is_left_alone():
    model, context = quantized(DIFFERENCE, PIPELINE.replace("split-input", "split-input{below=1}"))
    plain, _ = quantized(DIFFERENCE, PIPELINE.replace("split-input, ", ""))
    assert [n.op_type for n in model.graph] == [n.op_type for n in plain.graph]
    assert not context.notes
