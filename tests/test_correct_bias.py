"""correct-bias: the mean of every channel comes back to that of the float model."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.calibrate import calibrate
from edgeq.errors import RecipeError
from edgeq.graph import clone, constant, remove_dead, to_bytes
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import LinearGroup, linear_group
from edgeq.recipe import load_recipe
from edgeq.roles import is_activation
from edgeq.simulate import Simulator
from edgeq.targeting import find_target

PASS = "correct-bias"
# Weights of 9 codes: their rounding moves the means by many steps of the bias.
COARSE = {"weight.limit": "4", "activation.observer": '"minmax"'}
QUANTIZE = "choose-qparams, insert-qdq, fold-clip, quantize-weights"


SHAPES = {"w": (4, 2, 3, 3), "b": (4,), "v": (4, 4, 3, 3), "c": (4,), "u": (3, 16), "d": (3,)}


def model_of(*, bias: bool = True, outputs: str = "float[N,3] y") -> ir.Model:
    rng = np.random.default_rng(6)
    weights = []
    for name, shape in SHAPES.items():
        numbers = ", ".join(f"{v:.6f}" for v in rng.normal(0.05, 0.3, shape).reshape(-1))
        weights.append(f"float[{','.join(map(str, shape))}] {name} = {{{numbers}}}")
    b, c = (", b", ", c") if bias else ("", "")
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        f"g (float[N,2,6,6] x) => ({outputs}) <{', '.join(weights)}>"
        f" {{ p = Conv (x, w{b})  r = Relu (p)  q = Conv (r, v{c})"
        "  f = Flatten (q)  y = Gemm <transB: int = 1> (f, u, d) }"
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    remove_dead(model.graph)
    infer_shapes(model)
    return model


def samples() -> Any:
    rng = np.random.default_rng(7)
    return [{"x": rng.normal(0.5, 1, (1, 2, 6, 6)).astype(np.float32)} for _ in range(12)]


def quantized(reference: ir.Model) -> tuple[ir.Model, Context]:
    model = clone(reference)
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    names = [str(v.name) for v in values if is_activation(v)]
    context = Context(
        recipe=load_recipe("int8", COARSE),
        capabilities=find_target("ort-cpu").capabilities,
        samples=samples(),
        calibration=calibrate(reference, samples(), names),
        reference=reference,
    )
    run_pipeline(QUANTIZE, model, context)
    return model, context


def groups(model: ir.Model) -> list[LinearGroup]:
    return [g for node in model.graph if (g := linear_group(node)) is not None]


def errors(model: ir.Model, reference: ir.Model, count: int = 12) -> dict[str, Any]:
    """Return, by layer, every channel's mean error in steps of the bias."""
    feeds = samples()[:count]
    names = ["p", "q", "y"]
    wanted = calibrate(reference, feeds, names).statistics
    simulator = Simulator(model)
    runs = [simulator.run(feed, names) for feed in feeds]
    found = {}
    for group in groups(model):
        name = str(group.node.outputs[0].name)
        assert group.bias is not None
        arrays = [run[name].astype(np.float64) for run in runs]
        mean = np.mean([a.mean(tuple(i for i in range(a.ndim) if i != 1)) for a in arrays], axis=0)
        found[name] = (wanted[name].channel_mean - mean) / group.bias.qparams.scale
    return found


def test_means_come_back_to_less_than_a_step():
    reference = model_of()
    model, context = quantized(reference)
    before = errors(model, reference)
    (record,) = run_pipeline(PASS, model, context)
    after = errors(model, reference)
    assert record.rewrites == 3 and list(after) == ["p", "q", "y"]
    for name, error in after.items():
        assert np.abs(before[name]).max() > 5
        # Half a step of rounding; float32 means of the reference add a thousandth.
        assert np.abs(error).max() <= 0.501, name


def test_the_cause_may_be_the_weights_alone():
    reference = model_of()
    model, context = quantized(reference)
    old = {str(g.node.outputs[0].name): g for g in groups(model)}
    before = {name: constant(g.bias.codes) for name, g in old.items() if g.bias is not None}
    run_pipeline(f"{PASS}{{cause=weights}}", model, context)
    simulator = Simulator(model)
    runs = [simulator.run(feed, "all") for feed in samples()]
    weights = {"p": "w", "q": "v", "y": "u"}
    for group in groups(model):
        name = str(group.node.outputs[0].name)
        assert group.bias is not None and group.bias.array is not None and group.w.array is not None
        float_weight = constant(reference.graph.initializers[weights[name]])
        assert float_weight is not None
        error = float_weight - group.w.qparams.dequantize(group.w.array).astype(np.float64)
        x = [group.x.qparams.dequantize(run[str(group.x.codes.name)]) for run in runs]
        axes = tuple(i for i in range(x[0].ndim) if i != 1)
        mean = np.mean([a.mean(axes, dtype=np.float64) for a in x], axis=0)
        lost = (error.reshape(*error.shape[:2], -1).sum(2) * mean).sum(1)
        shift = group.bias.array - before[name]
        assert np.abs(shift).max() > 5
        assert np.abs(shift - lost / group.bias.qparams.scale).max() <= 0.501, name


def test_an_unknown_cause():
    model, context = quantized(model_of())
    with pytest.raises(RecipeError, match="cause is 'weight'; one of all, weights"):
        run_pipeline(f"{PASS}{{cause=weight}}", model, context)


def bits(model: ir.Model) -> dict[str, bytes]:
    arrays = {name: constant(value) for name, value in model.graph.initializers.items()}
    return {name: array.tobytes() for name, array in arrays.items() if array is not None}


def test_only_biases_change():
    reference = model_of()
    model, context = quantized(reference)
    old = bits(model)
    biases = {g.bias.codes.name for g in groups(model) if g.bias is not None}
    nodes = [(n.op_type, [i.name for i in n.inputs if i is not None]) for n in model.graph]
    run_pipeline(PASS, model, context)
    assert nodes == [(n.op_type, [i.name for i in n.inputs if i is not None]) for n in model.graph]
    new = bits(model)
    changed = {name for name in old if old[name] != new[name]}
    assert changed == biases and len(biases) == 3


def test_a_second_run_finds_nothing():
    reference = model_of()
    model, context = quantized(reference)
    run_pipeline(PASS, model, context)
    (record,) = run_pipeline(PASS, model, context)
    assert record.rewrites == 0


def test_the_same_bytes_twice():
    results = []
    for _ in range(2):
        reference = model_of()
        model, context = quantized(reference)
        run_pipeline(PASS, model, context)
        results.append(to_bytes(model))
    assert results[0] == results[1]


@pytest.mark.parametrize(("option", "used"), [("samples=3", 3), ("megabytes=0", 1)])
def test_samples_are_bounded(option, used):
    reference = model_of()
    model, context = quantized(reference)
    run_pipeline(f"{PASS}{{{option}}}", model, context)
    # Exactly corrected on the samples in use, and on no others.
    assert max(np.abs(e).max() for e in errors(model, reference, used).values()) <= 0.501
    assert max(np.abs(e).max() for e in errors(model, reference).values()) > 1


def test_layers_without_a_bias_get_one():
    reference = model_of(bias=False)
    model, context = quantized(reference)
    assert [g.bias is None for g in groups(model)] == [True, True, False]
    (record,) = run_pipeline(PASS, model, context)
    assert record.rewrites == 3
    found = errors(model, reference)
    assert list(found) == ["p", "q", "y"]
    assert max(np.abs(e).max() for e in found.values()) <= 0.501


def test_layers_that_are_outputs():
    reference = model_of(outputs="float[N,4,4,4] p, float[N,3] y")
    model, context = quantized(reference)
    names = [str(g.node.outputs[0].name) for g in groups(model)]
    assert names == ["p_replaced", "q", "y"]
    (record,) = run_pipeline(PASS, model, context)
    assert record.rewrites == 3


def test_a_float_model_stays():
    reference = model_of()
    _, context = quantized(reference)
    model = clone(reference)
    before = to_bytes(model)
    (record,) = run_pipeline(PASS, model, context)
    assert record.rewrites == 0 and to_bytes(model) == before
