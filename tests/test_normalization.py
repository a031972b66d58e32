"""Which nodes normalise, what belongs to them, and what of it gets codes."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.normalization import (
    affine_tail,
    inner_values,
    is_normalization,
    normalization,
    tail_nodes,
)
from edgeq.onnx_api import infer_shapes

CONSTANTS = (
    "float[4] gamma = {1, 2, 3, -4}, float[4] beta = {0, 1, 2, 3}, float[4] ones = {1, 1, 1, 1},"
    " float[4] zeros = {0, 0, 0, 0}, float half = {0.5}, float epsilon = {0.001},"
    " int64[1] last = {-1}, int64[2] both = {1, 2}, int64[2] flat = {0, -1},"
    " float[4,1] column = {1, 2, 3, 4}"
)
LAYER = "y = LayerNormalization(x, gamma, beta)"
RMS = (
    "s = Mul(x, x) m = ReduceMean<keepdims=1>(s, last) a = Add(m, epsilon) r = Sqrt(a)"
    " y = Div(x, r)"
)


def graph(nodes: str, outputs: str = "float[N,4,4] y") -> ir.Graph:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[N,4,4] x, float[4] z) => ({outputs})'
        f" <{CONSTANTS}> {{ {nodes} }}"
    )
    infer_shapes(model)
    return model.graph


def node_that_makes(found: ir.Graph, name: str) -> ir.Node:
    return next(node for node in found if node.outputs[0].name == name)


# rule, nodes, axes, groups, centered, gamma, beta
RECOGNISED = [
    ("LayerNormalization", LAYER, (2,), 0, True, True, True),
    ("one of a matrix", "y = LayerNormalization<axis=-2>(x, half)", (1, 2), 0, True, True, False),
    ("idle parameters", "y = LayerNormalization(x, ones, zeros)", (2,), 0, True, False, False),
    ("InstanceNormalization", "y = InstanceNormalization(x, gamma, zeros)", (2,), 4, True, True,
     False),
    ("GroupNormalization", "y = GroupNormalization<num_groups=2>(x, ones, beta)", (2,), 2, True,
     False, True),
    ("RMS", RMS, (2,), 0, False, False, False),
    ("RMS of a matrix", RMS.replace("last", "both"), (1, 2), 0, False, False, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "nodes", "axes", "groups", "centered", "gamma", "beta"),
    RECOGNISED,
    ids=[row[0] for row in RECOGNISED],
)
def test_normalisations_are_recognised(rule, nodes, axes, groups, centered, gamma, beta):
    found = graph(nodes)
    assert [is_normalization(node) for node in found] == [False] * (len(found) - 1) + [True]
    result = normalization(node_that_makes(found, "y"))
    assert result is not None and result.x is found.inputs[0]
    assert (result.axes, result.groups, result.centered) == (axes, groups, centered)
    assert (result.gamma is not None, result.beta is not None) == (gamma, beta)
    assert np.float32(result.epsilon) == np.float32(0.001 if not centered else 1e-5)


def test_parameters_have_the_shape_of_the_result():
    result = normalization(node_that_makes(graph(RECOGNISED[3][1]), "y"))
    assert result is not None and result.gamma is not None and result.gamma.shape == (4, 1)


NOT_RECOGNISED = {
    "gamma at run time": ("y = LayerNormalization(x, z)", "float[N,4,4] y"),
    "the mean is read": ("y, m = LayerNormalization(x, gamma)", "float[N,4,4] y, float[N,4,1] m"),
    "another source": (
        RMS.replace("Div(x, r)", "Div(w, r)").replace("s = ", "w = Abs(x) s = "),
        "float[N,4,4] y",
    ),
    "a product, no square": (RMS.replace("Mul(x, x)", "Mul(x, z)"), "float[N,4,4] y"),
    "epsilon at run time": (RMS.replace("epsilon", "z"), "float[N,4,4] y"),
    "the root is an output": (RMS, "float[N,4,4] y, float[N,4,1] r"),
    "the mean is read behind": (RMS + " w = Neg(m)", "float[N,4,4] y, float[N,4,1] w"),
}


@pytest.mark.parametrize("name", NOT_RECOGNISED)
def test_what_is_not_recognised(name):
    assert not any(map(is_normalization, graph(*NOT_RECOGNISED[name])))


# rule, nodes behind `n`, what the tail ends with
TAILS = [
    ("nothing", "y = Relu(n)", "n"),
    ("Mul and Add", "a = Mul(n, gamma) b = Add(half, a) y = Relu(b)", "b"),
    ("through a Reshape", "a = Reshape(n, flat) y = Mul(a, half)", "y"),
    ("a Reshape alone", "a = Reshape(n, flat) y = Relu(a)", "n"),
    ("a Reshape behind", "a = Mul(n, half) y = Reshape(a, flat)", "a"),
    ("by what is computed", "y = Mul(n, z)", "n"),
    ("its own square", "y = Mul(n, n)", "n"),
    ("two readers", "a = Mul(n, half) b = Neg(n) y = Add(a, b)", "n"),
]


@pytest.mark.parametrize(("rule", "nodes", "end"), TAILS, ids=[row[0] for row in TAILS])
def test_tails(rule, nodes, end):
    shape = "N,16" if "Reshape" in nodes else "N,4,4"
    found = graph(f"n = LayerNormalization(x, gamma) {nodes}", f"float[{shape}] y")
    norm = node_that_makes(found, "n")
    assert affine_tail(norm).name == end
    inner = [value.name for value in inner_values(norm)]
    assert end not in inner
    assert inner == [norm.outputs[0].name, *(n.outputs[0].name for n in tail_nodes(norm))][:-1]


def test_the_spelling_of_rms_has_inner_values():
    found = graph(RMS.replace("y = Div", "n = Div") + " y = Mul(n, gamma)")
    (norm,) = filter(is_normalization, found)
    assert [value.name for value in inner_values(norm)] == ["s", "m", "a", "r", "n"]
    assert affine_tail(norm).name == "y"


@pytest.mark.parametrize(("scale", "recognised"), [("s1", True), ("s2", False)])
def test_readers_of_the_same_codes_are_one_source(scale, recognised):
    readers = f"x = DequantizeLinear(q, s1, zp) x2 = DequantizeLinear(q, {scale}, zp)"
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]> g (uint8[N,4] q) => (float[N,4] y)'
        f" <{CONSTANTS}, float s1 = {{0.1}}, float s2 = {{0.2}}, uint8 zp = {{7}}>"
        f" {{ {readers} {RMS.replace('Div(x,', 'Div(x2,')} }}"
    )
    infer_shapes(model)
    assert any(map(is_normalization, model.graph)) == recognised
