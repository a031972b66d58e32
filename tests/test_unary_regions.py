"""Which nodes are a function of one value, and what that function is."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.onnx_api import infer_shapes
from edgeq.unary_regions import UnaryRegion, unary_regions

X = np.linspace(-6, 6, 97)
CONSTANTS = ", ".join(
    f"float {name} = {{{value!r}}}"
    for name, value in {
        "half": 0.5,
        "one": 1.0,
        "two": 2.0,
        "three": 3.0,
        "six": 6.0,
        "zero": 0.0,
        "sqrt2": math.sqrt(2),
        "cubic": 0.044715,
        "inner": math.sqrt(2 / math.pi),
        "quick": 1.702,
    }.items()
)


def model(nodes: str, outputs: str = "float[N,4] y", inputs: str = "float[N,4] x") -> ir.Model:
    result = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g ({inputs}) => ({outputs}) <{CONSTANTS}, float[4] vector = {{1, 2, 3, 4}},
          float[1,1,1] deep = {{2}}> {{ {nodes} }}"""
    )
    infer_shapes(result)
    return result


def regions(nodes: str, *args: str) -> list[UnaryRegion]:
    return unary_regions(model(nodes, *args).graph)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x):
    return 0.5 * x * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))


def hard_swish(x):
    return x * np.clip(x + 3, 0, 6) / 6


SPELLINGS = {
    "SiLU": ("s = Sigmoid(x) y = Mul(x, s)", lambda x: x * sigmoid(x)),
    "erf-Gelu of torch": (
        "a = Div(x, sqrt2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
        gelu,
    ),
    "erf-Gelu, halves first": (
        "h = Mul(x, half) a = Div(x, sqrt2) b = Erf(a) c = Add(b, one) y = Mul(h, c)",
        gelu,
    ),
    "tanh-Gelu with Pow": (
        "p = Pow(x, three) a = Mul(cubic, p) b = Add(x, a) c = Mul(b, inner) d = Tanh(c)"
        " e = Add(d, one) h = Mul(x, half) y = Mul(h, e)",
        gelu_tanh,
    ),
    "tanh-Gelu with products": (
        "q = Mul(x, x) p = Mul(q, x) a = Mul(cubic, p) b = Add(x, a) c = Mul(b, inner)"
        " d = Tanh(c) e = Add(one, d) h = Mul(x, half) y = Mul(h, e)",
        gelu_tanh,
    ),
    "QuickGelu": (
        "a = Mul(x, quick) s = Sigmoid(a) y = Mul(x, s)",
        lambda x: x * sigmoid(1.702 * x),
    ),
    "Mish": (
        "a = Softplus(x) t = Tanh(a) y = Mul(x, t)",
        lambda x: x * np.tanh(np.log1p(np.exp(x))),
    ),
    "Softplus in pieces": ("a = Exp(x) b = Add(a, one) y = Log(b)", lambda x: np.log1p(np.exp(x))),
    "hard-swish of HardSigmoid": (
        "s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, s)",
        hard_swish,
    ),
    "hard-swish of Clip": (
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
        hard_swish,
    ),
    "hard-swish of Relu and Min": (
        "a = Add(x, three) b = Relu(a) m = Min(b, six) d = Div(m, six) y = Mul(x, d)",
        hard_swish,
    ),
    "cube": ("a = Mul(x, x) y = Mul(a, x)", lambda x: x**3),
    "Pow alone": ("y = Pow(x, three)", lambda x: x**3),
    "constant base": ("y = Pow(two, x)", lambda x: 2**x),
    "where": (
        "c = Greater(x, one) n = Neg(x) a = Abs(n) y = Where(c, a, half)",
        lambda x: np.where(x > 1, np.abs(x), 0.5),
    ),
    "between limits": (
        "a = Less(x, zero) b = Greater(x, three) c = Or(a, b) y = Where(c, zero, x)",
        lambda x: np.where((x < 0) | (x > 3), 0, x),
    ),
    "leaky": (
        "a = LeakyRelu<alpha = 0.25>(x) y = Mul(a, two)",
        lambda x: np.where(x < 0, x / 2, 2 * x),
    ),
    "two inner values, each read twice": (
        "a = Exp(x) b = Neg(x) c = Add(a, b) d = Mul(a, b) y = Sub(c, d)",
        lambda x: np.exp(x) - x + np.exp(x) * x,
    ),
    "root": ("a = Mul(x, x) b = Add(a, one) y = Sqrt(b)", lambda x: np.sqrt(x * x + 1)),
}


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
    "a sum of two functions": (
        "a = Exp(x) b = Neg(x) c = Exp(b) y = Add(a, c)",
        "float[N,4] y",
        [["Exp", "Neg", "Exp", "Add"]],
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_where_regions_end(name):
    nodes, outputs, expected = CUTS[name]
    assert sequence(regions(nodes, outputs)) == expected


def test_nodes_that_are_to_be_left_are_left():
    graph = model("s = Sigmoid(x) t = Mul(x, s) y = Exp(t)").graph
    found = unary_regions(graph, lambda node: node.op_type == "Mul")
    assert sequence(found) == [["Sigmoid"], ["Exp"]]


def test_where_a_function_is_not_defined_ieee_decides():
    (region,) = regions("a = Log(x) y = Mul(a, two)")
    found = region.evaluate(np.array([1.0, 0.0, -1.0]))
    assert found[0] == 0 and found[1] == -np.inf and np.isnan(found[2])
