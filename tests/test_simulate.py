"""Whole graphs: bits against ONNX Runtime's fused kernels, taps, errors, and what is kept when."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeq.errors import DataError
from edgeq.simulate import Simulator
from tests.conformance.quantized import linear_model
from tests.conformance.runtime import by_onnxruntime, same_bits

Array = NDArray[Any]


class Network:
    """Builds a QDQ network of uint8 activations, node by node."""

    def __init__(self, seed: int, shape: Sequence[int | str], *, weight_limit: int = 64) -> None:
        # Weights of 7 bits: no pair of products saturates on any CPU, so fused kernels are exact.
        self.random = np.random.default_rng(seed)
        self.limit = weight_limit
        self.nodes: list[onnx.NodeProto] = []
        self.fixed: dict[str, Array] = {}
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        self.scales: dict[str, str] = {}
        self.count = 0

    def constant(self, array: Any, dtype: Any) -> str:
        self.count += 1
        self.fixed[f"c{self.count}"] = np.asarray(array, dtype)
        return f"c{self.count}"

    def node(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.count += 1
        name = f"{op_type.lower()}{self.count}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def quantize(self, value: str, scale: float, zero: int) -> str:
        s, z = self.constant(scale, np.float32), self.constant(zero, np.uint8)
        codes = self.node("QuantizeLinear", [value, s, z])
        self.scales[codes] = s
        return self.node("DequantizeLinear", [codes, s, z])

    def weight(self, shape: Sequence[int], axis: int) -> tuple[str, Array]:
        codes = self.random.integers(-self.limit, self.limit + 1, shape).astype(np.int8)
        scale = self.random.uniform(0.001, 0.02, shape[axis]).astype(np.float32)
        s, z = self.constant(scale, np.float32), self.constant(np.zeros(shape[axis]), np.int8)
        w = self.node("DequantizeLinear", [self.constant(codes, np.int8), s, z], axis=axis)
        return w, scale

    def bias(self, scale_x: float, scale_w: Array) -> str:
        scale = np.float32(scale_x) * scale_w
        codes = self.random.integers(-3000, 3000, scale.shape)
        s, z = self.constant(scale, np.float32), self.constant(np.zeros(scale.shape), np.int32)
        return self.node("DequantizeLinear", [self.constant(codes, np.int32), s, z], axis=0)

    def linear(self, op: str, x: str, sx: float, shape: Sequence[int], **attributes: Any) -> str:
        w, scale_w = self.weight(shape, 0)
        return self.node(op, [x, w, self.bias(sx, scale_w)], **attributes)

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(a, n) for n, a in self.fixed.items()]
        values = [helper.make_empty_tensor_value_info(n) for n in outputs]
        graph = helper.make_graph(self.nodes, "network", self.inputs, values, tensors)
        opset = [helper.make_opsetid("", 21)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def convolutional(seed: int, zeros: tuple[int, int, int] = (128, 7, 0)) -> onnx.ModelProto:
    """Every fused linear op: 3x3, strided, depthwise, 1x1, grouped, Mul, Gemm, MatMul."""
    net = Network(seed, ["N", 3, 17, 15])
    a = net.quantize("x", 0.02, zeros[0])
    y = net.linear("Conv", a, 0.02, (8, 3, 3, 3), pads=[1, 1, 1, 1])
    b = net.quantize(y, 0.05, zeros[1])
    y = net.linear("Conv", b, 0.05, (8, 1, 3, 3), group=8, pads=[0, 1, 2, 1], strides=[2, 2])
    c = net.quantize(y, 0.03, zeros[2])
    y = net.linear("Conv", c, 0.03, (12, 8, 1, 1))
    d = net.quantize(y, 0.011, zeros[1])
    y = net.linear("Conv", d, 0.011, (12, 6, 3, 3), group=2, dilations=[2, 2], pads=[2, 2, 2, 2])
    e = net.quantize(y, 0.07, zeros[0])
    pooled = net.node("MaxPool", [e], kernel_shape=[2, 2], strides=[2, 2])
    f = net.quantize(pooled, 0.07, zeros[0])
    shape = net.constant([0, -1], np.int64)
    flat = net.quantize(net.node("Reshape", [f, shape]), 0.07, zeros[0])
    y = net.linear("Gemm", flat, 0.07, (16, 12 * 4 * 4), transB=1)
    g = net.quantize(y, 0.2, zeros[1])
    w, _ = net.weight((16, 16), 1)
    h = net.quantize(net.node("MatMul", [g, w]), 0.15, zeros[2])
    w, scale_w = net.weight((5, 16), 0)
    tail = net.node("Gemm", [h, w, net.bias(0.15, scale_w)], transB=1)
    return net.model([tail])


def with_all_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every quantized value a further output."""
    known = {out.name for out in model.graph.output}
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] not in known:
            tapped.graph.output.append(helper.make_empty_tensor_value_info(node.output[0]))
    return onnx.shape_inference.infer_shapes(tapped, strict_mode=True)


def feeds_for(seed: int, samples: int = 3) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {"x": (random.standard_normal((samples, 3, 17, 15)) * 1.5).astype(np.float32)}


@pytest.mark.parametrize("zeros", [(128, 7, 0), (0, 0, 0), (255, 128, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_every_quantized_tensor_equals_the_fused_kernels(seed: int, zeros: Any) -> None:
    model = with_all_codes(convolutional(seed, zeros))
    feeds = feeds_for(seed)
    theirs = by_onnxruntime(model, feeds, optimize=True)
    ours = Simulator(ir.from_proto(convolutional(seed, zeros))).run(feeds, taps=list(theirs))
    assert len(theirs) == 10
    compared = 0
    for name, expected in theirs.items():
        assert same_bits(ours[name], expected), name
        compared += expected.size
    assert compared > 10_000
    assert len(np.unique(theirs[model.graph.output[-1].name])) > 5  # not all saturated


OPERANDS = st.tuples(
    st.sampled_from([1.0, 2.0, 0.5, 0.25, 0.1, 0.3]), st.integers(0, 255), st.integers(0, 255)
)


@settings(max_examples=60, deadline=None)
@given(OPERANDS, st.sampled_from([1.0, 2.0, 4.0, 0.05]), st.integers(0, 255), st.integers(0))
def test_linear_ops_equal_the_fused_kernels_for_related_scales(
    operands: tuple[float, int, int], ratio: float, zero_y: int, seed: int
) -> None:
    scale, zero_x, _ = operands
    random = np.random.default_rng(seed)
    w = random.integers(-64, 65, (6, 4, 3, 3)).astype(np.int8)
    model = linear_model(
        "Conv",
        (2, 4, 9, 9),
        w,
        bias=random.integers(-999, 999, 6).astype(np.int32),
        attributes={"pads": [1, 1, 1, 1]},
        x_scale=scale,
        x_zero=zero_x,
        w_scale=[0.5] * 6,
        y=(scale * 16 * ratio, zero_y),
    )
    feeds = {"x": random.integers(0, 256, (2, 4, 9, 9)).astype(np.uint8)}
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    theirs = by_onnxruntime(proto, feeds, optimize=True)["y"]
    assert same_bits(Simulator(model).run(feeds)["y"], theirs)


def test_mul_is_an_integer_group() -> None:
    """x86 adds the zero point before it rounds: an even one moves no tie."""
    model = linear_model("Mul", (16, 256), None, w_shape=(16, 256), x_zero=3, y=(0.01, 128))
    random = np.random.default_rng(0)
    x, w = (random.integers(0, 256, (16, 256)).astype(np.uint8) for _ in range(2))
    simulator = Simulator(model)
    assert len(simulator.steps) == 1
    acc = (x.astype(np.int64) - 3) * w.astype(np.int64)
    factor = np.float32(np.float32(0.02) * np.float32(0.01)) / np.float32(0.01)
    expected = np.clip(np.rint(acc.astype(np.float32) * factor) + 128, 0, 255).astype(np.uint8)
    assert same_bits(simulator.run({"x": x, "w": w})["y"], expected)


def test_taps_inside_a_group_are_consistent() -> None:
    w = np.random.default_rng(1).integers(-99, 99, (5, 3, 3, 3)).astype(np.int8)
    bias = np.arange(5, dtype=np.int32) * 100
    model = linear_model("Conv", (2, 3, 8, 8), w, bias=bias, x_zero=9, y=(0.2, 3))
    simulator = Simulator(model)
    x = np.random.default_rng(2).integers(0, 256, (2, 3, 8, 8)).astype(np.uint8)
    found = simulator.run({"x": x}, taps=["xd", "wd", "bd", "real", "x", "w"])
    assert list(found) == ["y", "xd", "wd", "bd", "real", "x", "w"]
    assert same_bits(found["xd"], (x.astype(np.float32) - 9) * np.float32(0.02))
    assert same_bits(found["wd"], w.astype(np.float32) * np.float32(0.01))
    assert same_bits(found["w"], w) and same_bits(found["x"], x)
    scale = np.float32(0.02) * np.float32(0.01)
    units = found["real"] / scale
    assert np.abs(units - np.rint(units)).max() < 0.01
    assert same_bits(np.rint(units) * scale, found["real"])
    factor = scale / np.float32(0.2)
    codes = np.clip(np.rint(np.rint(units) * factor) + 3, 0, 255).astype(np.uint8)
    assert same_bits(found["y"], codes)


def test_all_taps_are_every_value_that_depends_on_an_input() -> None:
    model = convolutional(0)
    simulator = Simulator(ir.from_proto(model))
    found = simulator.run(feeds_for(0), taps="all")
    weights = {
        n.output[0]
        for n in model.graph.node
        if n.op_type == "DequantizeLinear"
        and n.input[0] in {t.name for t in model.graph.initializer}
    }
    assert set(found) == {out for n in model.graph.node for out in n.output} - weights
    plain = simulator.run(feeds_for(0))
    (name,) = plain
    assert same_bits(plain[name], found[name])


def test_values_are_dropped_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = Simulator(ir.from_proto(convolutional(0)))
    held: list[int] = []
    kind = type(simulator.steps[0])
    execute = kind.execute

    def watch(step: Any, env: dict[str, Array]) -> None:
        execute(step, env)
        held.append(len(env))

    monkeypatch.setattr(kind, "execute", watch)
    simulator.run(feeds_for(0))
    assert len(held) == len(simulator.steps)
    assert max(held) <= 2  # a chain: what is read and what is made


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_of_values_are_given_as_soon_as_they_are_known(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator, feeds = Simulator(ir.from_proto(convolutional(seed))), feeds_for(seed)
    every = simulator.run(feeds, "all")
    groups = [[first, "x", last] for first, last in pairwise(every)] + [["x"], []]
    held: list[int] = []
    kind = type(simulator.steps[0])
    execute = kind.execute

    def watch(step: Any, env: dict[str, Array]) -> None:
        execute(step, env)
        held.append(len(env))

    monkeypatch.setattr(kind, "execute", watch)
    kept: list[dict[str, Array]] = []
    numbers = []
    for number, values in simulator.observe(feeds, groups):
        assert list(values) == groups[number] and not any(kept)  # what was given is gone
        assert all(same_bits(values[n], {**feeds, **every}[n]) for n in values)
        numbers.append(number)
        kept.append(values)
    assert sorted(numbers) == list(range(len(groups))) and numbers[0] == len(groups) - 2
    assert max(held) <= 5  # the input, a group, what is read and what is made


def test_constants_can_be_observed_and_unknown_values_are_named() -> None:
    simulator, feeds = Simulator(ir.from_proto(convolutional(0))), feeds_for(0)
    name = next(iter(simulator.run(feeds)))
    fixed = next(n for n in ir.from_proto(convolutional(0)).graph.initializers)
    ((number, values),) = [(n, dict(v)) for n, v in simulator.observe(feeds, [[name, fixed]])]
    assert number == 0 and same_bits(values[fixed], simulator.run(feeds, [fixed])[fixed])
    with pytest.raises(DataError, match="no value 'nothing'"):
        next(simulator.observe(feeds, [["nothing"]]))


def test_steps_can_be_executed_one_by_one() -> None:
    simulator = Simulator(ir.from_proto(convolutional(1)))
    feeds = feeds_for(1)
    env = dict(feeds)
    for step in simulator.steps:
        assert set(step.inputs) <= set(env)
        step.execute(env)
    for name, array in simulator.run(feeds).items():
        assert same_bits(env[name], array)


def test_a_batch_is_its_samples() -> None:
    simulator = Simulator(ir.from_proto(convolutional(2)))
    feeds = feeds_for(2, samples=7)
    (name,) = simulator.run(feeds)
    whole = simulator.run(feeds)[name]
    parts = [simulator.run({"x": feeds["x"][i : i + 1]})[name] for i in range(7)]
    assert same_bits(whole, np.concatenate(parts))


def test_refresh_reads_an_edited_bias() -> None:
    w = np.ones((2, 3), np.int8)
    model = linear_model("Gemm", (1, 3), w.T.copy(), bias=np.array([0, 0], np.int32), y=(0.001, 0))
    simulator = Simulator(model)
    x = {"x": np.array([[1, 2, 3]], np.uint8)}
    before = simulator.run(x)["y"]
    value = model.graph.initializers["b"]
    value.const_value = ir.tensor(np.array([10, 0], np.int32), name="b")
    assert same_bits(simulator.run(x)["y"], before)
    node = next(n for n in model.graph if n.name == "the_linear")
    simulator.refresh(node)
    after = simulator.run(x)["y"]
    assert same_bits(after, Simulator(model).run(x)["y"])
    assert (before.tolist(), after.tolist()) == ([[1, 1]], [[3, 1]])


def test_the_largest_value_is_that_of_all_taps() -> None:
    model = linear_model("Gemm", (2, 3), np.ones((3, 5), np.int8), y=(0.1, 0))
    simulator = Simulator(model)
    feeds = {"x": np.ones((2, 3), np.uint8)}
    every = simulator.run(feeds, "all").values()
    assert simulator.largest(feeds) == max(array.nbytes for array in every) == 4 * 2 * 5


def test_refresh_evaluates_folded_constants_anew() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> {
            b = Neg(a)
            y = Add(x, b)
        }"""
    )
    simulator = Simulator(model)
    assert len(simulator.steps) == 1
    model.graph.initializers["a"].const_value = ir.tensor(np.array([5, 6], np.float32), name="a")
    simulator.refresh(model.graph.node(1))
    assert simulator.run({"x": np.zeros(2, np.float32)})["y"].tolist() == [-5, -6]
