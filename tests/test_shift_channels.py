"""shift-channels: which channels get finer steps, and that integer weights take them back."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeq.calibrate import calibrate
from edgeq.certify import certify
from edgeq.channel_shifts import as_samples, voted_shifts
from edgeq.channel_sites import find_sites
from edgeq.compile import activations
from edgeq.data import Samples, input_specs, open_samples
from edgeq.errors import RecipeError
from edgeq.graph import clone, constant
from edgeq.lint import lint
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import UINT8
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, make_pass, parse_steps, run_pipeline
from edgeq.qdq import linear_group, quantize_node, quantized_tensors
from edgeq.recipe import Recipe, load_recipe
from edgeq.simulate import Simulator
from edgeq.targeting import find_target
from edgeq.verify import verify

RNG = np.random.default_rng(0)
WIDE = QParams(UINT8, np.array(0.25, np.float32), np.array(128, np.int32))


def channel(width: float, count: int = 20, outliers: int = 0) -> NDArray[np.float32]:
    """Return samples of one channel; in some of them lies an element near the end of the range."""
    x = RNG.uniform(-width, width, (count, 1, 64))
    x[:outliers, 0, 0] = 31
    return x.astype(np.float32)


VOTES = [
    # rule                                              samples                    shift
    ("the whole range keeps the scale", channel(31), 3),
    ("half of it takes half the step", channel(15), 2),
    ("the finest step is the scale over 8", channel(0.5), 0),
    ("outliers in few samples are outvoted", channel(3.5, 20, 2), 0),
    ("without agreement the range is kept", channel(3.5, 20, 4), 3),
    ("a channel that is always 0 keeps its range", channel(0), 3),
]


@pytest.mark.parametrize(("rule", "samples", "shift"), VOTES, ids=[row[0] for row in VOTES])
def test_votes(rule, samples, shift):
    assert voted_shifts(samples, WIDE, depth=3, agreement=0.85).tolist() == [shift]


def test_tokens_vote_together():
    tokens = RNG.normal(size=(200, 5)).astype(np.float32)
    samples = as_samples(tokens)
    assert samples.shape == (3, 5, 66)
    assert np.array_equal(samples[0].T, tokens[:66])


@given(
    st.integers(-20, 20),
    st.integers(0, 7),
    st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=20),
)
def test_a_scale_per_channel_is_a_multiplication_by_a_power_of_two(exponent, shift, reals):
    x, scale = np.array(reals, np.float32), np.array(0.7 * 2.0**exponent, np.float32)
    plain = QParams(UINT8, scale, np.array(100, np.int32))
    by_channel = QParams(UINT8, np.ldexp(scale, shift)[None], np.array([100], np.int32), 0)
    scaled = x * np.float32(2.0**-shift)
    assert plain.quantize(scaled).tobytes() == by_channel.quantize(x[None]).tobytes()


# -- a network with a shortcut ---------------------------------------------------------------------

WIDTHS = np.array([16.0, 16, 1, 1, 0.5, 2, 8, 16], np.float32)
PREPARE = "cleanup, linear-form"
QUANTIZE = (
    "choose-qparams, relate-scales, insert-qdq, fold-clip, quantize-weights, tabulate,"
    " exact-normalization, fold-channel-scales, prove-fused"
)


def network() -> ir.Model:
    """Build x -> Conv -> a; b = a * a + a; y = Conv3x3(normalized b) + Conv1x1(b)."""

    def normal(*shape: int) -> Any:
        return RNG.normal(0, 0.3, shape).astype(np.float32)

    arrays = {
        "w": normal(8, 2, 3, 3) * WIDTHS.reshape(-1, 1, 1, 1), "v": normal(8, 8, 3, 3),
        "u": normal(8, 8, 1, 1), "gamma": np.ones(8, np.float32), "beta": np.zeros(8, np.float32),
        "d": normal(4, 8, 1, 1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Add", ["a", "s"], ["b"]),
        helper.make_node("InstanceNormalization", ["b", "gamma", "beta"], ["n"]),
        helper.make_node("Conv", ["n", "v"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "u"], ["skip"]),
        helper.make_node("Add", ["c", "skip"], ["sum"]),
        helper.make_node("Gelu", ["sum"], ["g"]),
        helper.make_node("Conv", ["g", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in arrays.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    infer_shapes(model)
    return model


def data(model: ir.Model, count: int = 12) -> Samples:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(0, 1, (1, 2, 8, 8)).astype(np.float32)} for _ in range(count)]
    return open_samples(feeds, inputs=input_specs(model, {}))


def compiled(recipe: Recipe, *steps: str) -> tuple[ir.Model, Context]:
    """Quantize the network with further steps in front of calibration."""
    model = network()
    context = Context(recipe, find_target("ort-cpu").capabilities, data(model))
    run_pipeline(", ".join((PREPARE, *steps)), model, context)
    context.reference = clone(model)
    names = activations(context.reference)
    context.calibration = calibrate(context.reference, context.samples, names)
    run_pipeline(QUANTIZE, model, context)
    return model, context


def four_bits(**settings: str) -> Recipe:
    return load_recipe("int8", {"weight.limit": "7", **settings})


def scales(model: ir.Model) -> Iterator[QParams]:
    """Yield the parameters of each QuantizeLinear that has a scale for each channel."""
    for node in model.graph:
        found = quantize_node(node)
        if found is not None and found.qparams.axis is not None:
            yield found.qparams


@pytest.mark.parametrize("assign", ["vote", "distance"])
def test_shortcuts_get_finer_steps_and_shifted_weights(assign):
    model, context = compiled(four_bits(), f"shift-channels{{assign={assign}}}")
    (found,) = scales(model)
    ratios = found.scale / found.scale.min()
    assert set(ratios.tolist()) <= {1.0, 2.0, 4.0, 8.0} and len(set(ratios.tolist())) > 1
    assert len(set(found.zero_point.tolist())) == 1
    (shift,) = context.weight_shifts.values()
    assert np.array_equal(np.exp2(shift).reshape(-1), ratios)
    (group,) = [
        g for n in model.graph
        if (g := linear_group(n)) is not None and g.w.array is not None
        and g.w.array.shape == (8, 8, 1, 1)
    ]  # fmt: skip
    assert group.w.array is not None and group.x.qparams.axis is None
    codes = group.w.array.astype(np.int32)
    assert np.array_equal(codes >> shift << shift, codes) and np.abs(codes >> shift).max() <= 7
    rounded = context.float_weights[str(group.w.codes.name)]
    assert np.array_equal(
        rounded.codes(rounded.nearest(rounded.units(group.w.qparams.scale))), codes
    )


def error(model: ir.Model, context: Context) -> float:
    assert context.reference is not None
    simulator, ideal = Simulator(model), Simulator(context.reference)
    return float(
        np.mean([np.square(simulator.run(f)["y"] - ideal.run(f)["y"]) for f in context.samples])
    )


def test_bits_and_kernels_stay_integer():
    model, _ = compiled(four_bits(), "shift-channels{values=all,gain_db=-60}")
    assert len(list(scales(model))) >= 2
    assert [f for f in lint(model) if f.rule == "per-axis-result"] == []
    target = find_target("ort-cpu")
    assert not certify(model, target.capabilities).unproven
    assert target.kernels(model)["QLinearConv"] == sum(
        linear_group(node) is not None for node in model.graph
    )
    simulator, names = Simulator(model), quantized_tensors(model)
    for threads in (1, 2):
        runner = target.load(model, threads=threads, taps=names)
        verdict = verify(lambda feed: simulator.run(feed, names), runner.run, data(model))
        assert verdict.same and verdict.compared > 10_000


def test_with_coarse_activations_the_error_falls():
    recipe = four_bits(**{"activation.qtype": "uint6", "weight.limit": "15"})
    plain, shifted = (compiled(recipe, *steps) for steps in ((), ("shift-channels",)))
    assert error(*shifted) < error(*plain)


def test_nothing_is_changed_without_gain():
    model, context = compiled(four_bits(), "shift-channels{gain_db=60}")
    assert list(scales(model)) == [] and not context.weight_shifts and not context.channel_scales


def test_eight_bit_weights_are_not_shifted():
    _, context = compiled(load_recipe("int8"), "shift-channels{gain_db=-60}")
    assert context.channel_scales and not context.weight_shifts


@pytest.mark.parametrize(
    "text", ["values=most", "assign=chance", "depth=0", "depth=8", "groups=0", "agreement=1.5"]
)
def test_bad_options_are_refused(text):
    (step,) = parse_steps(f"shift-channels{{{text}}}")
    with pytest.raises(RecipeError, match="shift-channels"):
        make_pass(step)


def test_the_float_model_computes_the_same():
    model = network()
    before = Simulator(clone(model))
    context = Context(four_bits(), find_target("ort-cpu").capabilities, data(model))
    run_pipeline("shift-channels{values=all,gain_db=-60}", model, context)
    after = Simulator(model)
    mul = [n for n in model.graph if n.outputs[0].name in context.channel_scales]
    assert mul and all(constant(n.inputs[1]) is not None for n in mul)
    for feed in data(model):  # powers of two: not a bit differs
        assert before.run(feed)["y"].tobytes() == after.run(feed)["y"].tobytes()


def test_a_weight_that_is_an_embedding_too_stays_stored_once():
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (int64[N] x) => (float[N,3] y, float[N,2] z)
    <float[3,2] table = {1, 2, 3, 4, 5, 60}, float[2,2] w = {1, 2, 3, 4}> {
      e = Gather (table, x)
      t = Tanh (e)
      y = Gemm <transB: int = 1> (t, table)
      z = Gemm <transB: int = 1> (t, w)
    }"""
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    context = Context(four_bits(), find_target("ort-cpu").capabilities, data(network()))
    ((site,), refused) = find_sites(model, context)
    assert [str(node.outputs[0].name) for node in site.readers] == ["z"]
    assert site.name == "t" and site.branches and refused == 0
