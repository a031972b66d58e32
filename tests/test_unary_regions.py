"""Which nodes are a function of one value, and what that function is."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.export import export
from edgeq.onnx_api import infer_shapes
from edgeq.unary_regions import UnaryRegion, unary_regions
from tests.unary_spellings import SPELLINGS, model

X = np.linspace(-6, 6, 97)


def regions(nodes: str, *args: str) -> list[UnaryRegion]:
    return unary_regions(model(nodes, *args).graph)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_one_region(name):
    nodes, function = SPELLINGS[name]
    graph = model(nodes).graph
    (region,) = unary_regions(graph)
    assert region.source is graph.inputs[0] and region.output is graph.outputs[0]
    assert region.nodes == tuple(graph)
    found = region.evaluate(X)
    assert found.dtype == np.float64 and found.shape == X.shape
    # The constants of the graph are float32.
    np.testing.assert_allclose(found, function(X), rtol=1e-6, atol=1e-7)


def test_quantized_readers_of_the_same_codes_are_one_source():
    quantized = """
        a = DequantizeLinear(q, s, z)
        b = DequantizeLinear(q, s, z)
        t = Sigmoid(a)
        r = Mul(b, t)
        y = QuantizeLinear(r, s, z)"""
    head = '<ir_version: 10, opset_import: ["": 21]> g (uint8[N,4] q) => (uint8[N,4] y)'
    head += " <float s = {0.1}, uint8 z = {128}, float s2 = {0.2}>"
    same = ir.from_onnx_text(f"{head} {{ {quantized} }}")
    infer_shapes(same)
    (region,) = unary_regions(same.graph)
    assert region.source.name == "a" and [n.op_type for n in region.nodes] == ["Sigmoid", "Mul"]
    changed = quantized.replace("b = DequantizeLinear(q, s,", "b = DequantizeLinear(q, s2,")
    other = ir.from_onnx_text(f"{head} {{ {changed} }}")
    infer_shapes(other)
    assert [n.op_type for r in unary_regions(other.graph) for n in r.nodes] == ["Sigmoid"]


def sequence(found: list[UnaryRegion]) -> list[list[str]]:
    return [[node.op_type for node in region.nodes] for region in found]


CUTS = {
    "inner value is read outside": (
        "s = Sigmoid(x) t = Tanh(s) y = Mul(x, t) z = Identity(s)",
        "float[N,4] y, float[N,4] z",
        [["Sigmoid"], ["Tanh"]],
    ),
    "inner value is an output": (
        "s = Sigmoid(x) y = Exp(s)",
        "float[N,4] y, float[N,4] s",
        [["Sigmoid"], ["Exp"]],
    ),
    "two sources": ("a = Exp(x) b = Softmax(x) y = Mul(a, b)", "float[N,4] y", [["Exp"]]),
    "a vector": ("a = Exp(x) b = Mul(a, vector) y = Tanh(b)", "float[N,4] y", [["Exp"], ["Tanh"]]),
    "a constant of more axes": (
        "a = Exp(x) y = Mul(a, deep)",
        "float[1,N,4] y",
        [["Exp"]],
    ),
    "one IEEE operation": ("y = Mul(x, half)", "float[N,4] y", []),
    "a limit in front": ("a = Relu(x) y = Sqrt(a)", "float[N,4] y", []),
    "limits in front of a function": (
        "a = Relu(x) b = Clip(a, zero, six) y = Exp(b)",
        "float[N,4] y",
        [["Exp"]],
    ),
    "a limit behind": ("a = Exp(x) y = Min(a, six)", "float[N,4] y", [["Exp", "Min"]]),
    "one reads the limited value, one the other": (
        "a = Relu(x) y = Mul(x, a)",
        "float[N,4] y",
        [["Relu", "Mul"]],
    ),
    "moves in front of a function": (
        "a = Unsqueeze(x, axis) y = Exp(a)",
        "float[1,N,4] y",
        [["Exp"]],
    ),
    "an outer product of two views": (
        "a = Exp(x) b = Unsqueeze(a, axis) c = Unsqueeze(a, ahead) d = Mul(b, c) y = Tanh(d)",
        "float[N,N,4] y",
        [["Exp"], ["Tanh"]],
    ),
    "a maximum over elements": (
        "a = Exp(x) b = ReduceMax(a, axis) y = Log(b)",
        "float[1,4] y",
        [["Exp"], ["Log"]],
    ),
    "a shape made of an inner value": (
        "a = Exp(x) s = Shape(a) b = Reshape(a, s) y = Log(b)",
        "float[N,4] y",
        [["Exp"], ["Log"]],
    ),
    "truth is no source": (
        "c = Greater(x, x2) n = Not(c) y = Where(n, one, two)",
        "float[N,4] y",
        [],
    ),
    "a sum of two functions": (
        "a = Exp(x) b = Neg(x) c = Exp(b) y = Add(a, c)",
        "float[N,4] y",
        [["Exp", "Neg", "Exp", "Add"]],
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_where_regions_end(name):
    nodes, outputs, expected = CUTS[name]
    found = regions(nodes, outputs, "float[N,4] x, float[N,4] x2")
    assert sequence(found) == expected


def test_regions_may_share_their_nodes():
    nodes = "s = Sigmoid(x) t = Tanh(s) u = Mul(s, t) y = Exp(u) z = Neg(s)"
    graph = model(nodes, "float[N,4] y, float[N,4] z, float[N,4] s").graph
    assert sequence(unary_regions(graph)) == [["Sigmoid"], ["Tanh", "Mul", "Exp"]]
    shared = unary_regions(graph, shared=True)
    assert sequence(shared) == [
        ["Sigmoid"],
        ["Sigmoid", "Tanh", "Mul", "Exp"],
        ["Sigmoid", "Neg"],
    ]
    assert all(region.source is graph.inputs[0] for region in shared)


def test_what_moves_elements_is_listed_in_order():
    (region,) = regions(SPELLINGS["a vector that is moved"][0])
    assert [node.op_type for node in region.moves] == ["Unsqueeze", "Transpose", "Flatten"]


def test_nodes_that_are_to_be_left_are_left():
    graph = model("s = Sigmoid(x) t = Mul(x, s) y = Exp(t)").graph
    found = unary_regions(graph, lambda node: node.op_type == "Mul")
    assert sequence(found) == [["Sigmoid"], ["Exp"]]


def test_where_a_function_is_not_defined_ieee_decides():
    (region,) = regions("a = Log(x) y = Mul(a, two)")
    found = region.evaluate(np.array([1.0, 0.0, -1.0]))
    assert found[0] == 0 and found[1] == -np.inf and np.isnan(found[2])


@pytest.mark.torch
def test_what_torch_exports_is_one_region_each():
    pytest.importorskip("torch", reason="pip install edgeq[torch]")
    pytest.importorskip("onnxscript", reason="pip install edgeq[torch]")
    import torch
    from torch import nn

    functions = [
        nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(),
        nn.Softplus(), nn.Softplus(beta=2, threshold=5), nn.ELU(), nn.SELU(), nn.CELU(0.7),
        nn.Softsign(), nn.Tanh(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Hardshrink(),
        nn.Softshrink(), nn.Threshold(0.1, 0.5), torch.expm1, torch.rsqrt, torch.exp2, torch.sinh,
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: torch.log(x.abs() + 1),
    ]  # fmt: skip

    def forward(self, x):
        return tuple(f(x[i]) for i, f in enumerate(functions))

    net = type("Net", (nn.Module,), {"forward": forward})()
    graph = export(net, (torch.rand(len(functions), 8),)).graph
    found = unary_regions(graph)
    assert {region.output for region in found} == set(graph.outputs)
    assert len({region.source for region in found}) == len(functions)
