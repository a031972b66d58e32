"""The differentiable executor: the simulator's codes, and straight-through gradients."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.errors import DataError
from edgeq.load import load_model
from edgeq.qdq import quantized_tensors
from edgeq.simulate import Simulator
from tests.conftest import tiny_proto
from tests.quantizing import float_model, quantize, samples

torch = pytest.importorskip("torch", reason="needs edgeq[torch]")
pytestmark = pytest.mark.torch
from edgeq.learning.executor import Executor  # noqa: E402  # behind the check for torch

ZOO = Path(__file__).parent.parent.parent / "shared" / "zoo"


def tensors(feeds):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in feeds.items()}


def compare(model, feeds):
    """Return how many elements were compared, and of how many tensors: all codes are equal."""
    names = quantized_tensors(model)
    assert len(names) > 1
    wanted = Simulator(model).run(feeds, names)
    with torch.no_grad():
        got = Executor(model).run(tensors(feeds), names)
    compared = 0
    for name in names:
        codes = got[name].numpy().astype(wanted[name].dtype)
        assert np.array_equal(got[name].numpy(), codes), f"{name}: no codes"
        assert codes.tobytes() == np.ascontiguousarray(wanted[name]).tobytes(), name
        compared += codes.size
    return compared, len(names)


def stacked(feeds):
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


@pytest.mark.parametrize(
    ("name", "recipe", "until", "tensors", "elements"),
    [
        ("network", "int8", "", 8, 30_000),
        ("network", "int8", "quantize-weights", 8, 30_000),
        ("network", "int8-power-of-two", "", 8, 30_000),
        ("block", "int8", "", 20, 10_000),
        ("block", "int8-power-of-two", "", 20, 10_000),
    ],
)
def test_codes_are_those_of_the_simulator(name, recipe, until, tensors, elements):
    model = float_model(name)
    feeds = samples(name)
    quantize(model, feeds, recipe=recipe, until=until)
    compared, count = compare(model, stacked(feeds))
    assert count >= tensors and compared >= elements


def test_large_weights_and_biases_are_summed_exactly():
    proto = tiny_proto()
    model = ir.from_proto(proto)
    bias = model.graph.initializers["b"]
    bias.const_value = ir.tensor(np.array([2**24 + 1, -(2**24) - 3, 7], np.int32), name="b")
    rng = np.random.default_rng(0)
    compared, _ = compare(model, {"x": rng.normal(0, 1, (16, 2, 5, 5)).astype(np.float32)})
    assert compared > 1000


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["resnet20-cifar10", "mobilenet-v1-075", "kws-dscnn", "vww-96"])
def test_codes_of_the_zoo(name):
    path = ZOO / name / "model.onnx"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    model = load_model(path).model
    (value,) = model.graph.inputs
    shape = [1 if not isinstance(d, int) else d for d in value.shape or ()]
    rng = np.random.default_rng(1)
    feeds = [{value.name: rng.normal(0, 1, shape).astype(np.float32)} for _ in range(2)]
    quantize(model, feeds)
    compared, _ = compare(model, feeds[0])
    assert compared > 50_000


def test_float_graphs_run():
    for name in ("network", "block"):
        model, feeds = float_model(name), stacked(samples(name))
        names = [str(v.name) for node in model.graph for v in node.outputs]
        wanted = Simulator(model).run(feeds, names)
        got = Executor(model).run(tensors(feeds), names)
        for key in names:
            np.testing.assert_allclose(got[key].numpy(), wanted[key], rtol=1e-4, atol=1e-5)


LINEAR = """<ir_version: 10, opset_import: ["" : 21]>
linear (float[N,2] x) => (float[N,1] y)
<float sx = {0.5}, uint8 zx = {3}, int8[1,2] w = {2, -3}, float[1] sw = {0.25}, int8[1] zw = {0},
 int32[1] b = {10}, float[1] sb = {0.125}, int32[1] zb = {0}, float sy = {0.75}, uint8 zy = {100}> {
  xq = QuantizeLinear (x, sx, zx)  xd = DequantizeLinear (xq, sx, zx)
  wd = DequantizeLinear <axis = 0> (w, sw, zw)  bd = DequantizeLinear <axis = 0> (b, sb, zb)
  p = Gemm <transB = 1> (xd, wd, bd)
  yq = QuantizeLinear (p, sy, zy)  y = DequantizeLinear (yq, sy, zy)
}"""


def linear():
    model = ir.from_onnx_text(LINEAR)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def test_the_gradient_is_the_straight_through_one():
    parameters = {
        name: torch.tensor(value, requires_grad=True)
        for name, value in {
            "w": [[2.0, -3.0]], "sw": [0.25], "sx": 0.5, "sy": 0.75, "b": [10.0],
        }.items()
    }  # fmt: skip
    x = torch.tensor([[1.6, -0.4]], requires_grad=True)
    found = Executor(linear()).run({"x": x}, ["y", "xq"], parameters)
    # x: 1.6 / 0.5 = 3.2 and -0.8 are 3 and -1 steps; acc = 2 * 3 + 3 * 1 + 10 = 19;
    # M = 0.5 * 0.25 / 0.75, 19 * M = 3.1667 is 3 steps of 0.75.
    assert found["xq"].tolist() == [[6.0, 2.0]] and found["y"].tolist() == [[2.25]]
    found["y"].sum().backward()
    # y = sy * round(acc * M): through the rounding sy * M = sx * sw = 0.125 for each unit of acc.
    step = 0.5 * 0.25
    assert torch.allclose(x.grad, torch.tensor([[2 * step / 0.5, -3 * step / 0.5]]))
    assert torch.allclose(parameters["w"].grad, torch.tensor([[3 * step, -1 * step]]))
    assert torch.allclose(parameters["b"].grad, torch.tensor([step]))
    assert torch.allclose(parameters["sw"].grad, torch.tensor([19 * 0.5]))
    # LSQ: round(v) - v, v = acc * M.
    assert torch.allclose(parameters["sy"].grad, torch.tensor(3 - 19 * step / 0.75))
    # sx: the codes move by -x / sx^2 each, and all of acc scales with it.
    codes = 2 * -1.6 / 0.5**2 + -3 * 0.4 / 0.5**2
    assert torch.allclose(parameters["sx"].grad, torch.tensor(19 * 0.25 + codes * step))


def test_saturated_codes_pass_no_gradient():
    x = torch.tensor([[500.0, 0.0], [0.0, 0.0]], requires_grad=True)
    found = Executor(linear()).run({"x": x}, ["y"])
    found["y"].sum().backward()
    assert x.grad[0, 0] == 0 and x.grad[1, 0] != 0
    w = torch.tensor([[2.0, -3.0]], requires_grad=True)
    saturated = Executor(linear()).run({"x": x}, ["y"], {"sy": torch.tensor(0.01), "w": w})["y"]
    assert saturated[0] == (255 - 100) * torch.tensor(0.01)
    saturated[0].backward()
    assert not w.grad.any()


def test_a_table_has_the_slope_between_its_neighbours():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> t (float[N] x) => (uint8[N] y)'
        " <float s = {1}, uint8 z = {0}, uint8[4] table = {0, 1, 4, 9}> {"
        " q = QuantizeLinear (x, s, z)  i = Cast <to = 6> (q)"
        " y = GatherElements <axis = 0> (table, i) }"
    )
    x = torch.tensor([0.2, 1.1, 2.0, 3.0], requires_grad=True)
    (y,) = Executor(model).run({"x": x}, ["y"]).values()
    assert y.tolist() == [0, 1, 4, 9]
    y.sum().backward()
    assert x.grad.tolist() == [1, 2, 4, 5]


def test_any_value_can_be_fed_and_only_what_is_between_runs():
    model = float_model("network")
    quantize(model, samples("network"), until="quantize-weights")
    executor = Executor(model)
    feeds = tensors(stacked(samples("network")))
    everything = executor.run(feeds, ["p_q", "r_q", "u_q", "y"])
    cut = {name: everything[name].to(torch.uint8) for name in ("p_q", "r_q")}
    assert torch.equal(executor.run(cut, ["y"])["y"], everything["y"])
    with pytest.raises(DataError, match="no feed for input 'x'"):
        executor.run({}, ["y"])
    with pytest.raises(DataError, match="no value 'nothing'"):
        executor.run(feeds, ["nothing"])
