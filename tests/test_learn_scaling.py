"""learn-scaling: factors by channel that lessen the error of layers, at no cost at run time."""

import builtins
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeq.calibrate import calibrate
from edgeq.certify import certify
from edgeq.compile import activations
from edgeq.data import Samples, input_specs, open_samples
from edgeq.errors import RecipeError
from edgeq.graph import clone, constant
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, make_pass, parse_steps, run_pipeline
from edgeq.qdq import linear_group, quantize_node, quantized_tensors
from edgeq.recipe import Recipe, load_recipe
from edgeq.simulate import Simulator
from edgeq.targeting import find_target
from edgeq.verify import verify

PREPARE = "cleanup, linear-form"
QUANTIZE = (
    "choose-qparams, relate-scales, insert-qdq, fold-clip, quantize-weights, tabulate,"
    " exact-normalization, fold-channel-scales, prove-fused"
)
# A few channels are large, and their weights are small: what factors can balance.
WIDTHS = np.array([12, 0.3, 1, 0.2, 8, 0.5, 1, 0.4], np.float32)
QUICK = "learn-scaling{iterations=40}"


def network() -> ir.Model:
    """Build Conv - Relu - Conv - LayerNormalization - Gemm x 2, with channels of all widths."""
    rng = np.random.default_rng(2)

    def normal(*shape: int) -> Any:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    arrays = {
        "w": normal(8, 2, 3, 3) * WIDTHS.reshape(-1, 1, 1, 1),
        "v": normal(8, 8, 3, 3) / np.sqrt(WIDTHS)[None, :, None, None],
        "rows": np.array([-1, 8], np.int64),
        "gamma": WIDTHS,
        "beta": normal(8),
        "u": normal(8, 5) / WIDTHS[:, None],
        "t": normal(4, 8),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["b"], pads=[0, 1, 1, 0], strides=[2, 1]),
        helper.make_node("Transpose", ["b"], ["m"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["m", "rows"], ["k"]),
        helper.make_node("LayerNormalization", ["k", "gamma", "beta"], ["n"]),
        helper.make_node("Gemm", ["n", "u"], ["y"]),
        helper.make_node("Gemm", ["n", "t"], ["z"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in "yz"],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    infer_shapes(model)
    return model


def data(model: ir.Model, count: int = 40) -> Samples:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(0, 1, (1, 2, 8, 8)).astype(np.float32)} for _ in range(count)]
    return open_samples(feeds, inputs=input_specs(model, {}))


def four_bits() -> Recipe:
    return load_recipe("int8", {"weight.limit": "7"})


def prepared(*steps: str) -> tuple[ir.Model, Context]:
    model = network()
    context = Context(four_bits(), find_target("ort-cpu").capabilities, data(model))
    run_pipeline(", ".join((PREPARE, *steps)), model, context)
    return model, context


def compiled(*steps: str) -> tuple[ir.Model, Context]:
    model, context = prepared(*steps)
    context.reference = clone(model)
    names = activations(context.reference)
    context.calibration = calibrate(context.reference, context.samples, names)
    run_pipeline(QUANTIZE, model, context)
    return model, context


def error(model: ir.Model) -> float:
    simulator, ideal = Simulator(model), Simulator(network())
    total = 0.0
    for feed in data(model):
        found, wanted = simulator.run(feed), ideal.run(feed)
        total += sum(float(np.square(found[y] - wanted[y]).mean()) for y in "yz")
    return total


STEPS = [
    pytest.param(QUICK, marks=pytest.mark.torch, id="learned"),
    pytest.param("learn-scaling{iterations=0}", id="closed"),
]


@pytest.mark.parametrize("step", STEPS)
def test_the_error_falls(step):
    assert error(compiled(step)[0]) < 0.8 * error(compiled()[0])


@pytest.mark.torch
def test_learning_is_better_than_the_closed_form():
    learned, closed = (compiled(f"learn-scaling{{iterations={n}}}")[0] for n in (200, 0))
    assert error(learned) < error(closed)


@pytest.mark.parametrize("step", STEPS)
def test_the_float_model_computes_the_same(step):
    before, (model, context) = Simulator(network()), prepared(step)
    after = Simulator(model)
    assert len(context.channel_scales) == 1  # behind the normalization; the Conv takes its own
    for feed in data(model):
        found, wanted = after.run(feed), before.run(feed)
        for name in "yz":
            assert np.abs(found[name] - wanted[name]).max() < 2.0**-18 * np.abs(wanted[name]).max()


@pytest.mark.parametrize("step", STEPS)
def test_bits_are_those_of_onnx_runtime(step):
    model, _ = compiled(step)
    by_channel = [
        found for n in model.graph
        if (found := quantize_node(n)) is not None and found.qparams.axis is not None
    ]  # fmt: skip
    assert len(by_channel) == 1 and len(set(by_channel[0].qparams.scale.tolist())) == 8
    target = find_target("ort-cpu")
    assert not certify(model, target.capabilities).unproven
    kernels = target.kernels(model)
    assert kernels["QLinearConv"] == 2 and kernels["QGemm"] == 2
    assert sum(linear_group(node) is not None for node in model.graph) == 4
    simulator, names = Simulator(model), quantized_tensors(model)
    runner = target.load(model, taps=names)
    verdict = verify(lambda feed: simulator.run(feed, names), runner.run, data(model))
    assert verdict.same and verdict.compared > 10_000


@pytest.mark.torch
def test_the_same_bytes_twice():
    def bits(model: ir.Model) -> list[bytes]:
        arrays = (constant(v) for v in model.graph.initializers.values())
        return [a.tobytes() for a in arrays if a is not None]

    assert bits(prepared(QUICK)[0]) == bits(prepared(QUICK)[0])


@pytest.mark.torch
def test_the_same_factors_whoever_learns_them():
    def factors(executor: Executor | None) -> list[bytes]:
        model = network()
        context = Context(four_bits(), find_target("ort-cpu").capabilities, data(model))
        context.executor = executor
        run_pipeline(QUICK, model, context)
        arrays = (constant(v) for v in model.graph.initializers.values())
        return [a.tobytes() for a in arrays if a is not None]

    with ThreadPoolExecutor(2) as executor:
        assert factors(executor) == factors(None)


def rows(x: NDArray[np.float32], buckets: list[int], exponent: float) -> dict[str, Any]:
    """Return a task: one Gemm of 4-bit weights."""
    rng = np.random.default_rng(0)
    return {
        "x": x,
        "buckets": np.array(buckets),
        "apart": np.arange(len(x)) % 3 == 2,
        "codes": np.array([0, 255]),
        "symmetric": np.array(False),
        "shrink": np.array(1.0),
        "start": np.ones((1, x.shape[1])),
        "readers": np.array(1),
        "weight_0": rng.normal(size=(6, x.shape[1])).astype(np.float32),
        "geometry_0": np.array([1]),
        "grid_0": np.arange(-7, 8),
        "shrink_0": np.ones(6),
        "iterations": np.array(100),
        "rate": np.array(0.02),
        "batch": np.array(16),
        "exponent": np.array(exponent),
        "seed": np.array(0),
        "device": np.array("cpu"),
    }


@pytest.mark.torch
def test_timesteps_with_large_losses_count_less():
    from edgeq.learning.scaling import learn_factors

    rng = np.random.default_rng(3)
    loud = rng.normal(size=(16, 8)) * np.array([40, 1, 1, 1, 1, 1, 1, 1.0])
    x = np.concatenate([loud, rng.normal(size=(48, 8))]).astype(np.float32)
    buckets = [0] * 16 + [1, 2, 3] * 16
    factors = {
        exponent: learn_factors(rows(x, buckets, exponent))["factors"] for exponent in (0.0, 20.0)
    }
    assert not np.allclose(factors[0.0], factors[20.0])
    unknown = learn_factors(rows(x, [-1] * 64, 20.0))["factors"]
    assert unknown.tobytes() == learn_factors(rows(x, [-1] * 64, 0.0))["factors"].tobytes()


@pytest.mark.torch
def test_losses_never_rise():
    from edgeq.learning.scaling import learn_factors

    rng = np.random.default_rng(4)
    x = (rng.normal(size=(64, 8)) * WIDTHS).astype(np.float32)
    before, started, after = learn_factors(rows(x, [-1] * 64, 20.0))["losses"]
    assert after < started == before


def test_without_torch_the_closed_form_is_offered(monkeypatch):
    load = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("edgeq.learning"):
            raise ImportError("No module named 'torch'")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RecipeError, match=r"pip install edgeq\[torch\].*iterations=0"):
        prepared(QUICK)


@pytest.mark.parametrize("text", ["iterations=-1", "batch=0", "rate=0", "samples=0"])
def test_bad_options_are_refused(text):
    (step,) = parse_steps(f"learn-scaling{{{text}}}")
    with pytest.raises(RecipeError, match="learn-scaling"):
        make_pass(step)
