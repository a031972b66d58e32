"""The pass "quantize-float8", the recipe fp8: bits where sums are exact, a message elsewhere."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import edgeq
from edgeq.calibrate import calibrate
from edgeq.certify import certify
from edgeq.compile import activations
from edgeq.data import Samples, input_specs, open_samples
from edgeq.errors import EdgeqError, ModelError, RecipeError, VerificationError
from edgeq.float_search import choose_for_weight
from edgeq.graph import constant, replace_uses, to_bytes
from edgeq.numerics.floating import FORMATS
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import quantized_tensors
from edgeq.recipe import load_recipe
from edgeq.runtime import LEVELS, make_session, run
from edgeq.simulate import Simulator
from edgeq.targeting import find_target
from edgeq.targets.ort_cpu import tap
from edgeq.verify import Comparison

TARGET = find_target("ort-cpu")
EVERYWHERE = {"rule": "[]"}  # in the first and the last layer too
POWERS = {"activation.scale": "power_of_two", "weight.scale": "power_of_two"}

# Patterns that ONNX Runtime takes for those of integers, each behind a linear op and before one.
NETWORKS = {
    "conv, relu, conv": (
        "float[N,3,6,6] x",
        "float[N,4,2,2] y",
        "float[8,3,3,3] v, float[8] b, float[4,8,3,3] w",
        "h = Conv (x, v, b) r = Relu (h) y = Conv (r, w)",
    ),
    "gemm, squeeze, matmul": (
        "float[N,8] x",
        "float[N,4] y",
        "float[8,16] v, float[16] b, float[16,4] w, int64[1] one = {1}",
        "h = Gemm (x, v, b) u = Unsqueeze (h, one) t = Squeeze (u, one) y = MatMul (t, w)",
    ),
    "three gemms": (
        "float[N,8] x",
        "float[N,4] y",
        "float[8,16] u, float[16,16] v, float[16,4] w",
        "h = Gemm (x, u) t = Gemm (h, v) y = Gemm (t, w)",
    ),
    "two values": (
        "float[2,5,8] x",
        "float[2,5,5] y",
        "float[8,8] v, float[8,8] w",
        "q = MatMul (x, v) k = MatMul (x, w)"
        " t = Transpose <perm = [0, 2, 1]> (k) y = MatMul (q, t)",
    ),
}


FEED = {"x": np.ones((1, 3, 6, 6), np.float32)}


def network(name: str, weights: str = "normal") -> tuple[ir.Model, Samples]:
    """Return a float model with random weights, and samples."""
    x, y, constants, body = NETWORKS[name]
    random, parts = np.random.default_rng(1), []
    for text in constants.split(", "):
        dims = text.partition("[")[2].partition("]")[0]
        shape = [int(n) for n in dims.split(",")]
        normal = weights == "normal"
        array = random.normal(size=shape) if normal else random.choice([-1, 0, 1], shape)
        numbers = ", ".join(f"{v:.9g}" for v in array.reshape(-1))
        parts.append(text if "=" in text else f"{text} = {{{numbers}}}")
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 21]> g ({x}) => ({y}) <{", ".join(parts)}>'
        f" {{ {body} }}"
    )
    infer_shapes(model)
    dims = x.partition("[")[2].partition("]")[0]
    shape = [1 if d == "N" else int(d) for d in dims.split(",")]
    feeds = [{"x": random.normal(size=shape).astype(np.float32)} for _ in range(8)]
    return model, open_samples(feeds, inputs=input_specs(model))


def quantized(name: str, settings: dict[str, str] | None = None, weights: str = "normal"):
    model, samples = network(name, weights)
    context = Context(
        load_recipe("fp8", EVERYWHERE | (settings or {})), TARGET.capabilities, samples
    )
    context.calibration = calibrate(model, samples, activations(model))
    (record,) = run_pipeline(context.recipe.quantize, model, context)
    return model, samples, context, record.rewrites


@pytest.mark.parametrize("name", NETWORKS)
def test_codes_are_those_of_onnx_runtime(name):
    """Input codes to the bit; what float sums made, to the rounding of a few codes."""
    model, samples, _, rewrites = quantized(name)
    taps = quantized_tensors(model)
    assert rewrites >= len(taps) >= 2
    simulator = Simulator(model)
    for level in LEVELS:
        session = make_session(tap(model, taps), level=level)
        for feed in samples:
            expected, found = simulator.run(feed, taps), run(session, feed)
            assert found["x_q"].dtype.name == "float8_e4m3fn"
            assert found["x_q"].tobytes() == expected["x_q"].tobytes()
            for tensor in (*taps, "y"):
                want, got = (a[tensor].astype(np.float64) for a in (expected, found))
                assert np.square(want - got).sum() <= 1e-3 * np.square(want).sum(), (level, tensor)


@pytest.mark.parametrize("name", ["conv, relu, conv", "two values"])
def test_without_a_sum_onnx_runtime_takes_it_for_integers(name):
    model, samples, *_ = quantized(name)
    plain = run(make_session(model), next(iter(samples)))["y"]
    for node in list(model.graph):
        if node.op_type == "Sum":
            replace_uses(node.outputs[0], node.inputs[0])
            model.graph.remove(node, safe=True)
    unfused = run(make_session(model, level="basic"), next(iter(samples)))["y"]
    assert unfused.tobytes() == plain.tobytes() or np.allclose(unfused, plain, rtol=1e-3)
    with pytest.raises(ModelError, match="float8e4m3fn"):
        make_session(model)


@pytest.mark.parametrize("name", ["conv, relu, conv", "gemm, squeeze, matmul"])
@pytest.mark.parametrize("level", LEVELS)
def test_exact_sums_are_certified_and_the_same_bit_by_bit(name, level):
    """Weights of -1, 0 and 1, powers of two as scales: every sum is exact, in any order."""
    model, samples, *_ = quantized(name, POWERS, "ternary")
    # The second op sums more: only the first is proven, and no node besides them is in doubt.
    first = next(iter(model.graph)).outputs[0]
    assert first.name == "x_sum"
    proofs = certify(model, TARGET.capabilities).proofs
    linear = [p for p in proofs if p.op_type in ("Conv", "Gemm", "MatMul")]
    assert linear[0].kind == "exact sum", linear[0]
    assert all(p.kind == "ieee" for p in proofs if p.op_type in ("Sum", "QuantizeLinear"))
    taps = quantized_tensors(model)
    simulator = Simulator(model)
    for threads in (1, 2):
        session = make_session(tap(model, taps), level=level, threads=threads)
        comparison = Comparison()
        for sample in samples:
            feed = {"x": sample["x"] * 7}
            expected, found = simulator.run(feed, taps), run(session, feed)
            comparison.add({name: expected[name] for name in taps}, found)
        verdict = comparison.verdict()
        assert verdict.same, verdict.first
        assert verdict.tensors == len(taps) >= 2 and verdict.compared > 100


def test_an_inexact_sum_says_that_it_is_one():
    model, *_ = quantized("conv, relu, conv")
    proofs = certify(model, TARGET.capabilities)
    assert len(proofs.unproven) == 2
    for proof in proofs.unproven:
        assert proof.detail.startswith("it multiplies 8-bit floats in float32: ")


@pytest.mark.parametrize("asked", ["float8", "float8e4m3fn", "float8e5m2"])
def test_formats(asked):
    settings = {"weight.qtype": asked, "activation.qtype": asked}
    model, _, context, _ = quantized("two values", settings)
    kinds = {v.dtype.name.lower() for n in model.graph for v in n.outputs if v.name.endswith("_q")}
    assert kinds == {"float8e4m3fn" if asked == "float8" else asked}
    (note,) = [text for name, text in context.notes if name == "quantize-float8"]
    assert note == f"tensors of 8-bit floats: 5 {next(iter(kinds))}"
    assert context.qparams["x"].qtype.name in kinds
    taps = quantized_tensors(model)
    feed = {"x": np.random.default_rng(3).normal(size=(2, 5, 8)).astype(np.float32)}
    found = run(make_session(tap(model, taps)), feed)
    assert found["x_q"].tobytes() == Simulator(model).run(feed, taps)["x_q"].tobytes()


def test_the_search_may_say_e5m2():
    """Powers of two that lie 29 binades apart: E4M3 has 18 of them."""
    model, samples = network("two values")
    value = model.graph.initializers["v"]
    powers = np.ldexp(1.0, -np.arange(64).reshape(8, 8) % 30).astype(np.float32)
    value.const_value = ir.tensor(powers, name="v")
    settings = EVERYWHERE | POWERS | {"weight.granularity": "per_tensor"}
    context = Context(load_recipe("fp8", settings), TARGET.capabilities, samples)
    context.calibration = calibrate(model, samples, activations(model))
    run_pipeline("quantize-float8", model, context)
    codes = model.graph.initializers["v_q"].const_value
    assert codes is not None and codes.dtype == ir.DataType.FLOAT8E5M2
    scale = model.graph.initializers["v_scale"].const_value
    assert scale is not None
    real = codes.numpy().astype(np.float32) * scale.numpy()
    assert real.tobytes() == powers.tobytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_formats_without_a_type_are_tables(name):
    model, samples, context, _ = quantized(name, {"passes.quantize-float8.tables": "true"})
    (note,) = [text for made_by, text in context.notes if made_by == "quantize-float8"]
    assert "e2m5fn" in note and "float8e4m3fn" in note
    stored = [v for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.UINT8]
    assert len(stored) == (3 if name == "three gemms" else 2)
    plain, *_ = quantized(name)
    original, _ = network(name)
    simulator = Simulator(model)
    noise = [0.0, 0.0]
    for feed in samples:
        expected = run(make_session(original), feed)["y"]
        for place, other in enumerate((model, plain)):
            found = run(make_session(other), feed)["y"]
            noise[place] += float(np.square(found - expected).sum())
        ours, theirs = simulator.run(feed, "all"), run(make_session(tap(model, ["x_q"])), feed)
        assert ours["x_q"].tobytes() == theirs["x_q"].tobytes()
        np.testing.assert_allclose(theirs["y"], ours["y"], atol=0.02 * np.abs(ours["y"]).max())
    assert noise[0] < noise[1]


@pytest.mark.parametrize("level", LEVELS)
def test_a_table_gives_the_bits_of_its_format(level):
    model, *_ = quantized("conv, relu, conv", {"passes.quantize-float8.tables": "true"})
    (conv, _) = [node for node in model.graph if node.op_type == "Conv"]
    weight = conv.inputs[1]
    assert weight is not None
    found = run(make_session(tap(model, [str(weight.name)]), level=level), FEED)[str(weight.name)]
    original, _ = network("conv, relu, conv")
    real = constant(original.graph.initializers["v"])
    assert real is not None
    form = FORMATS["e2m5fn"]
    chosen = choose_for_weight(real, ("e2m5fn",), 0)
    scale = chosen.scale.reshape(-1, 1, 1, 1)
    assert found.tobytes() == (form.round(real / scale) * scale).tobytes() and found.size == 216


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight.qtype": "int8"}, "makes float8e4m3fn, float8e5m2, or float8 for the better"),
        ({"activation.qtype": "uint8"}, "the activation qtype of Conv is uint8"),
    ],
)
def test_other_formats_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        quantized("conv, relu, conv", settings)


def test_passes_of_integers_are_not_given_floats():
    with pytest.raises(RecipeError, match="needs the pass quantize-float8, which recipe fp8 has"):
        load_recipe("int8", {"activation.qtype": "float8"})


def test_the_ends_of_a_model_stay_float():
    model, samples = network("three gemms")
    context = Context(load_recipe("fp8"), TARGET.capabilities, samples)
    context.calibration = calibrate(model, samples, activations(model))
    assert run_pipeline("quantize-float8", model, context)[0].rewrites == 2
    assert quantized_tensors(model) == ["h_q"]


def test_keep_float():
    model, samples = network("conv, relu, conv")
    recipe = load_recipe("fp8", {"rule": "[{op_type = 'Conv', keep_float = true}]"})
    context = Context(recipe, TARGET.capabilities, samples)
    context.calibration = calibrate(model, samples, activations(model))
    before = to_bytes(model)
    assert run_pipeline("quantize-float8", model, context)[0].rewrites == 0
    assert to_bytes(model) == before


# --- from a model to a bundle


def compiled(output: Path, *, target: str = "ort-cpu", allow: tuple[str, ...] = ("*",)):
    model, samples = network("conv, relu, conv")
    return edgeq.compile(
        model,
        target=target,
        calibration=list(samples),
        recipe="fp8",
        settings=EVERYWHERE,
        output=output,
        allow_unproven=allow,
    )


def test_a_bundle_is_checked_on_its_own(tmp_path):
    bundle = compiled(tmp_path / "b")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["taps"] == [{"name": "x_q", "dtype": "float8_e4m3fn"}]
    assert manifest["certificate"]["unproven"] and manifest["bitwise"]["mismatches"] == 0
    result = edgeq.check(bundle, taps=True)
    result.raise_for_mismatch()
    assert result.tensors == 2 and result.compared > 100
    stored = (bundle.path / "model.onnx").stat().st_size
    weights = sum(n.size for n in map(np.zeros, [(8, 3, 3, 3), (4, 8, 3, 3)]))
    assert stored < weights + 4000
    tensors = edgeq.simulate(bundle, {"x": np.ones((1, 3, 6, 6), np.float32)}, "all")
    assert tensors["x_q"].dtype == FORMATS["e4m3fn"].dtype


def test_what_has_no_proof_is_refused_in_one_message(tmp_path):
    with pytest.raises(VerificationError) as raised:
        compiled(tmp_path / "b", allow=())
    text = str(raised.value)
    assert text.startswith("2 nodes without a proof; first: Conv 'h': it multiplies 8-bit floats")
    assert "accept it with --allow-unproven 'h', all of them with '*'" in text


def test_targets_of_integers_refuse_it_by_name(tmp_path):
    with pytest.raises(EdgeqError, match=r"recipe fp8: tvm-c computes with integers.*int8"):
        compiled(tmp_path / "b", target="tvm-c")
