"""split-concat: the parts of a Concat have units of their own, in one integer convolution."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.calibrate import calibrate
from edgeq.compile import activations
from edgeq.data import Samples, input_specs, open_samples
from edgeq.graph import clone
from edgeq.numerics.affine import QParams
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import quantize_node, quantized_tensors
from edgeq.recipe import load_recipe
from edgeq.simulate import Simulator
from edgeq.targeting import find_target
from edgeq.verify import verify

QUANTIZE = (
    "choose-qparams, relate-scales, insert-qdq, fold-clip, quantize-weights, tabulate,"
    " exact-normalization, fold-channel-scales, prove-fused"
)


def network(ratio: float) -> ir.Model:
    """Build y = Conv1x1(Concat(a, b)) + Conv3x3(normalized): b is `ratio` times as wide as a."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> Any:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    arrays = {
        "w": normal(4, 2, 3, 3), "v": normal(6, 2, 3, 3) * ratio, "u": normal(5, 10, 1, 1),
        "t": normal(5, 10, 3, 3), "gamma": np.ones(10, np.float32), "d": normal(3, 5, 1, 1),
        "beta": np.zeros(10, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a0"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "v"], ["b0"], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["a0"], ["a1"]),
        helper.make_node("Tanh", ["b0"], ["b1"]),
        helper.make_node("Add", ["a0", "a1"], ["a"]),
        helper.make_node("Add", ["b0", "b1"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        helper.make_node("InstanceNormalization", ["c", "gamma", "beta"], ["n"]),
        helper.make_node("Conv", ["n", "t"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "u"], ["skip"]),
        helper.make_node("Add", ["z", "skip"], ["sum"]),
        helper.make_node("Conv", ["sum", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    infer_shapes(model)
    return model


def data(model: ir.Model) -> Samples:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(0, 1, (1, 2, 8, 8)).astype(np.float32)} for _ in range(10)]
    return open_samples(feeds, inputs=input_specs(model, {}))


def compiled(ratio: float, step: str, **settings: str) -> tuple[ir.Model, Context]:
    model = network(ratio)
    recipe = load_recipe("int8", settings)
    context = Context(recipe, find_target("ort-cpu").capabilities, data(model))
    run_pipeline(step, model, context)
    context.reference = clone(model)
    names = activations(context.reference)
    context.calibration = calibrate(context.reference, context.samples, names)
    run_pipeline(QUANTIZE, model, context)
    return model, context


def scales(model: ir.Model) -> list[QParams]:
    found = [quantize_node(node) for node in model.graph]
    return [r.qparams for r in found if r is not None and r.qparams.axis is not None]


def error(model: ir.Model, ratio: float) -> float:
    simulator, ideal = Simulator(model), Simulator(network(ratio))
    return float(
        np.mean([np.square(simulator.run(f)["y"] - ideal.run(f)["y"]) for f in data(model)])
    )


FOUR = {"weight.limit": "7", "activation.qtype": "uint6"}


@pytest.mark.parametrize(("ratio", "shift"), [(4.0, 2), (0.25, 2), (60.0, 3)])
def test_four_bit_weights_are_shifted_by_the_ratio_of_the_ranges(ratio, shift):
    model, context = compiled(ratio, "split-concat", **FOUR)
    (found,) = scales(model)
    wide = slice(4, 10) if ratio > 1 else slice(0, 4)
    expected = np.zeros(10, np.int32)
    expected[wide] = shift
    assert np.array_equal(found.scale / found.scale.min(), np.exp2(expected))
    (shifts,) = context.weight_shifts.values()
    assert np.array_equal(shifts.reshape(-1), expected)


def test_eight_bit_weights_take_the_exact_ratio():
    model, context = compiled(5.0, "split-concat", **{"activation.qtype": "uint4"})
    (found,) = scales(model)
    first, *_, last = found.scale
    assert len(set(found.scale.tolist())) == 2 and 3 < last / first < 8
    assert not context.weight_shifts and len(context.channel_scales) == 1


def test_the_error_falls():
    plain, _ = compiled(6.0, "cleanup", **FOUR)
    split, _ = compiled(6.0, "split-concat", **FOUR)
    assert error(split, 6.0) < error(plain, 6.0)


def test_parts_of_one_range_stay_together():
    model, context = compiled(1.0, "split-concat", **FOUR)
    assert scales(model) == [] and not context.channel_scales
    assert ("split-concat", "0 of 1 values that parts make have units for each part") in (
        context.notes
    )


def test_shifts_add_up_behind_one_another():
    model, context = compiled(4.0, "split-concat, shift-channels{gain_db=-60,depth=1}", **FOUR)
    (found,) = scales(model)
    (shifts,) = context.weight_shifts.values()
    assert np.array_equal(found.scale / found.scale.min(), np.exp2(shifts.reshape(-1)))
    assert shifts.max() >= 2


def test_bits_are_those_of_onnx_runtime():
    model, _ = compiled(6.0, "split-concat", **FOUR)
    assert len(scales(model)) == 1
    simulator, names = Simulator(model), quantized_tensors(model)
    runner = find_target("ort-cpu").load(model, taps=names)
    verdict = verify(lambda feed: simulator.run(feed, names), runner.run, data(model))
    assert verdict.same and verdict.compared > 10_000
