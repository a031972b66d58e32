"""equalize and align-scales: the same function in real arithmetic, in better units."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.calibrate import calibrate
from edgeq.graph import constant
from edgeq.numerics.qtype import UINT8
from edgeq.observe import choose_range
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import QuantSpec, Rule, load_recipe
from edgeq.runtime import make_session, run
from edgeq.targeting import Capabilities

# Of the largest output: two layers of at most 72 products, each weight rounded anew by 2**-24.
TOLERANCE = 2.0**-17
CHANNELS = np.array([16.0, 4.0, 1.0, 0.25, 0.0625, 8.0, 2.0, 0.5], np.float32)

Nodes = list[Any]


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def weights() -> dict[str, Any]:
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Any:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    return {
        "w": normal(8, 2, 3, 3) * CHANNELS.reshape(-1, 1, 1, 1),
        "b": normal(8) * CHANNELS,
        "v": normal(3, 8, 3, 3),
        "c": normal(3),
        "d": normal(8, 1, 3, 3),
        "slope": np.full((8, 1, 1), 0.25, np.float32),
        "low": np.float32(0),
        "high": np.float32(6),
        "k": normal(1, 8, 6, 6),
        "u": normal(3, 16, 3, 3),
    }


def make(nodes: Nodes, outputs: str = "y", inputs: str = "x") -> ir.Model:
    """Build a model of images [N, 2, 8, 8]; further inputs have the shape [N, 8, 1, 1]."""
    used = {name for n in nodes for name in n.input}
    shapes: dict[str, list[Any]] = {"x": ["N", 2, 8, 8]}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(i, TensorProto.FLOAT, shapes.get(i, ["N", 8, 1, 1]))
            for i in inputs.split()
        ],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs.split()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights().items() if n in used],
    )
    opset = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    infer_shapes(model)
    return model


def feeds(count: int = 8, inputs: str = "x") -> list[dict[str, Any]]:
    rng = np.random.default_rng(4)
    shapes = {"x": (1, 2, 8, 8)}
    return [
        {
            name: rng.normal(0, 1, shapes.get(name, (1, 8, 1, 1))).astype(np.float32)
            for name in inputs.split()
        }
        for _ in range(count)
    ]


def transform(name: str, model: ir.Model, *, inputs: str = "x", recipe: Any = None) -> int:
    """Run a pass; the outputs on ONNX Runtime must stay what they were."""
    samples: Any = feeds(inputs=inputs)
    recipe = recipe or load_recipe("int8", {"activation.observer": '"minmax"'})
    context = Context(recipe=recipe, capabilities=Capabilities(), samples=samples)
    expected = [run(make_session(model), feed) for feed in samples]
    (record,) = run_pipeline(name, model, context)
    session = make_session(model)
    compared = 0
    for feed, before in zip(samples, expected, strict=True):
        after = run(session, feed)
        for output, array in before.items():
            assert np.abs(after[output] - array).max() <= TOLERANCE * np.abs(array).max(), output
            compared += array.size
    assert compared >= 8 * 3
    return record.rewrites


def spread(model: ir.Model, name: str) -> float:
    """Return how many times the widest channel is wider than the narrowest."""
    seen = calibrate(model, feeds(), [name]).statistics[name]
    wide = np.maximum(np.abs(seen.channel_low), np.abs(seen.channel_high))
    return float(wide.max() / wide.min())


FIRST = node("Conv", "x w b", "p")
LAST = node("Conv", "r v c", "y")
BETWEEN: dict[str, Nodes] = {
    "Relu": [node("Relu", "p", "r")],
    "PRelu": [node("PRelu", "p slope", "r")],
    "LeakyRelu": [node("LeakyRelu", "p", "r", alpha=0.25)],
    "MaxPool": [node("Relu", "p", "q"), node("MaxPool", "q", "r", kernel_shape=[2, 2])],
    "AveragePool": [node("AveragePool", "p", "r", kernel_shape=[2, 2], pads=[1, 1, 1, 1])],
}


@pytest.mark.parametrize("between", BETWEEN)
def test_channels_are_equalized(between):
    model = make([FIRST, *BETWEEN[between], LAST])
    before = spread(model, "p")
    assert transform("equalize", model) == 1
    # Half of the way in decibels, channels below 1/8 of the widest counted as 1/8: sqrt(8).
    assert spread(model, "p") < before / 2.8


def test_without_anything_between():
    model = make([node("Conv", "x w b", "r"), LAST])
    assert transform("equalize", model) == 1


def test_depthwise_reader():
    model = make([FIRST, node("Relu", "p", "r"), node("Conv", "r d", "y", group=8)])
    transform("equalize", model)


def test_several_readers():
    last = node("Conv", "r v", "z")
    model = make([FIRST, node("Relu", "p", "r"), LAST, last], "y z")
    assert transform("equalize", model) == 1


def test_a_chain_is_equalized_link_by_link():
    middle = [node("Relu", "p", "r"), node("Conv", "r d", "q", group=8), node("Relu", "q", "s")]
    model = make([FIRST, *middle, node("Conv", "s v", "y")])
    assert transform("equalize", model) >= 1


def test_gemm():
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f g1", "p", transB=1), node("Relu", "p", "r"),
             node("Gemm", "r g2 c", "y")]  # fmt: skip
    rng = np.random.default_rng(2)
    model = make(nodes)
    for name, shape in (("g1", (8, 128)), ("g2", (8, 3))):
        array = rng.normal(0, 0.3, shape) * (CHANNELS[:, None] if name == "g1" else 1)
        value = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32), name=name))
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
        for n in model.graph:
            for index, old in enumerate(n.inputs):
                if old is not None and old.name == name:
                    n.replace_input_with(index, value)
    assert transform("equalize", model) == 1


KEPT: dict[str, tuple[Nodes, str, str]] = {
    "an output": ([FIRST, node("Relu", "p", "r"), LAST], "y r", "x"),
    "a reader that is not linear": (
        [FIRST, node("Relu", "p", "r"), LAST, node("Sigmoid", "r", "s")], "y s", "x",
    ),
    "a function between": ([FIRST, node("Sigmoid", "p", "r"), LAST], "y", "x"),
    "a Clip between": ([FIRST, node("Clip", "p low high", "r"), LAST], "y", "x"),
    "the slope of a PRelu": (
        [node("Conv", "x w b", "p"), node("PRelu", "k p", "r"), LAST], "y", "x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", KEPT)
def test_channels_stay(why):
    nodes, outputs, inputs = KEPT[why]
    assert transform("equalize", make(nodes, outputs, inputs), inputs=inputs) == 0


def test_keep_float_stays():
    recipe = load_recipe("int8").with_rules([Rule(name="y", keep_float=True)])
    assert transform("equalize", make([FIRST, *BETWEEN["Relu"], LAST]), recipe=recipe) == 0


def test_balanced_channels_stay():
    model = make([FIRST, *BETWEEN["Relu"], LAST])
    rng = np.random.default_rng(1)
    weight = model.graph.initializers["w"]
    flat = np.tile(rng.normal(0, 1, (1, 2, 3, 3)), (8, 1, 1, 1)).astype(np.float32)
    weight.const_value = ir.tensor(flat, name="w")
    model.graph.initializers["b"].const_value = ir.tensor(np.zeros(8, np.float32), name="b")
    model.graph.initializers["v"].const_value = ir.tensor(np.ones((3, 8, 3, 3), np.float32))
    assert transform("equalize", model) == 0


# -- align-scales ----------------------------------------------------------------------------------


def step(model: ir.Model, name: str) -> float:
    """Return the scale that a float recipe would choose for a value."""
    seen = calibrate(model, feeds(), [name]).statistics[name]
    low, high = choose_range(seen, QuantSpec("uint8"), UINT8)
    return (high - low) / 255


def is_aligned(scale: float) -> bool:
    exponent = math.log2(scale)
    return 0 <= scale / 2.0 ** round(exponent) - 1 < 2.0**-16 or (
        0 <= 1 - scale / 2.0 ** round(exponent) < 2.0**-16
    )


ALIGNED: dict[str, tuple[Nodes, list[str], int]] = {
    "Relu": ([FIRST, *BETWEEN["Relu"], LAST], ["r"], 1),
    "PRelu": ([FIRST, *BETWEEN["PRelu"], LAST], ["p"], 1),
    "no op between": ([node("Conv", "x w b", "r"), LAST], ["r"], 1),
    "Clip": ([FIRST, node("Clip", "p low high", "r"), LAST], ["r"], 1),
    "two layers": (
        [
            FIRST,
            node("Relu", "p", "r"),
            node("Conv", "r d", "q", group=8),
            node("Conv", "q v", "y"),
        ],
        ["r", "q"],
        2,
    ),
}


@pytest.mark.parametrize("what", ALIGNED)
def test_ranges_become_powers_of_two(what):
    nodes, names, groups = ALIGNED[what]
    model = make(nodes)
    assert not any(is_aligned(step(model, name)) for name in names)
    assert transform("align-scales", model) == groups
    assert all(is_aligned(step(model, name)) for name in names)


def test_the_limits_of_a_clip_move():
    model = make(ALIGNED["Clip"][0])
    before = step(model, "r")
    transform("align-scales", model)
    clip = next(n for n in model.graph if n.op_type == "Clip")
    high = constant(clip.inputs[2])
    assert high is not None
    assert high == pytest.approx(6 * step(model, "r") / before, rel=2.0**-20)


def test_both_sides_of_an_add_move_alike():
    nodes = [node("Conv", "x w b", "p"), node("Conv", "x w", "q"), node("Add", "p q", "r"), LAST]
    model = make(nodes)
    before = [step(model, name) for name in "pqr"]
    assert transform("align-scales", model) == 1
    ratios = [step(model, name) / old for name, old in zip("pqr", before, strict=True)]
    assert max(ratios) / min(ratios) < 1 + 2.0**-16
    assert is_aligned(max(step(model, name) for name in "pqr"))


UNALIGNED: dict[str, tuple[Nodes, str, str]] = {
    "an output": ([FIRST, node("Relu", "p", "r"), LAST], "y r", "x"),
    "a function": ([FIRST, node("Sigmoid", "p", "r"), LAST], "y", "x"),
    "a product": ([FIRST, node("Mul", "p p", "r"), LAST], "y", "x"),
    "a constant added": ([FIRST, node("Add", "p k", "r"), LAST], "y", "x"),
    "a constant beside it": (
        [FIRST, node("Concat", "p k", "r", axis=1), node("Conv", "r u c", "y")], "y", "x",
    ),
    "a slope that is computed": (
        [FIRST, node("Conv", "x w", "q"), node("GlobalMaxPool", "q", "s"),
         node("PRelu", "p s", "r"), LAST],
        "y", "x",
    ),
    "a slope from outside": ([FIRST, node("PRelu", "p s", "r"), LAST], "y", "x s"),
    "a limit from outside": (
        [FIRST, node("ReduceMax", "s", "m", keepdims=0), node("Clip", "p  m", "r"), LAST],
        "y", "x s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", UNALIGNED)
def test_scales_stay(why):
    nodes, outputs, inputs = UNALIGNED[why]
    model = make(nodes, outputs, inputs)
    assert transform("align-scales", model, inputs=inputs) == 0


def test_keep_float_is_not_scaled():
    recipe = load_recipe("int8").with_rules([Rule(name="y", keep_float=True)])
    assert transform("align-scales", make([FIRST, *BETWEEN["Relu"], LAST]), recipe=recipe) == 0
