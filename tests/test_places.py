"""First and last linear ops: which they are, and what a rule of a recipe makes of them."""

import onnx_ir as ir
import pytest

from edgeq.numerics.qtype import FORMATS
from edgeq.passing import run_pipeline
from edgeq.places import places_of_node, places_of_value
from edgeq.qdq import operand
from edgeq.recipe import Rule, load_recipe
from tests.test_decisions import context_of, parse

NET = """
g (float[N,2,4,4] x) => (float[N,3] y)
<float[2,2,1,1] w1 = {1, 2, 3, 4}, float[2,2,1,1] w2 = {1, -2, 3, -4},
 float[2,2,1,1] w3 = {1, 1, 2, 1}, float[2,3] w4 = {1, 2, 3, -1, -2, -3}, int64[2] s = {-1, 2}> {
  t = Transpose <perm = [0, 1, 3, 2]> (x)
  a = Conv (t, w1)
  b = Relu (a)
  c = Conv (b, w2)
  d = Conv (x, w3)
  e = Add (c, d)
  f = GlobalAveragePool (e)
  h = Reshape (f, s)
  y = Gemm (h, w4)
}
"""


def test_places():
    model = parse(NET)
    nodes = {node.outputs[0].name: places_of_node(node) for node in model.graph}
    ends = {"a": {"first"}, "d": {"first"}, "y": {"last"}}
    assert nodes == {name: ends.get(name, set()) for name in "tabcdefhy"}
    values = {v.name: places_of_value(v) for node in model.graph for v in node.outputs}
    last = {name: {"last"} for name in "cdefhy"}
    assert values == {"t": {"first"}, "a": set(), "b": set()} | last
    assert places_of_value(model.graph.inputs[0]) == {"first"}


@pytest.mark.parametrize(
    ("channels", "each", "group", "depthwise"),
    [(4, 1, 4, True), (8, 1, 4, True), (4, 2, 2, False), (4, 1, 1, False)],
    ids=["a channel each", "two outputs for each", "groups of two", "one channel in all"],
)
def test_a_depthwise_conv_reads_one_channel_for_each(channels, each, group, depthwise):
    kernel = f"float[{channels},{each},1,1] w = {{{', '.join(['1'] * channels * each)}}}"
    model = parse(
        f"g (float[N,{each * group},2,2] x) => (float[N,{channels},2,2] y) <{kernel}>"
        f" {{ y = Conv <group = {group}> (x, w) }}"
    )
    (node,) = model.graph
    assert ("depthwise" in places_of_node(node)) == depthwise


def test_a_padded_input_is_the_first_still_when_it_is_codes():
    model = parse(
        "g (float[N,2,2,2] x) => (float[N,1,4,4] y) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1},"
        " uint8 z = {7}, float s = {0.5}, float[1,2,1,1] w = {1, 2}> {"
        " q = QuantizeLinear (x, s, z)  a = Pad (q, p, z)  d = DequantizeLinear (a, s, z)"
        " y = Conv (d, w) }"
    )
    assert places_of_node(list(model.graph)[-1]) == {"first", "last"}


def test_one_layer_is_first_and_last():
    model = parse("g (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = Gemm (x, w) }")
    (node,) = model.graph
    assert places_of_node(node) == places_of_value(model.graph.inputs[0]) == {"first", "last"}


@pytest.mark.parametrize("weight", ["int4", "float4e2m1"])
def test_a_rule_of_a_place(weight):
    recipe = load_recipe("int8", {"weight.qtype": weight, "activation.qtype": "uint6"})
    activation, stored = (("qtype", "uint8"),), (("qtype", "int8"),)
    rules = [Rule(place=p, activation=activation, weight=stored) for p in ("first", "last")]
    recipe = recipe.with_rules(rules)
    model = parse(NET)
    context = context_of(model, recipe=recipe)
    run_pipeline("choose-qparams, insert-qdq, fold-clip, quantize-weights", model, context)
    formats = {name: qparams.qtype.name for name, qparams in context.qparams.items()}
    assert {name for name, qtype in formats.items() if qtype == "uint6"} == {"b"}
    linear = {n.outputs[0].name: n for n in model.graph if n.op_type in ("Conv", "Gemm")}
    made = {}
    for name, node in linear.items():
        found = operand(node.inputs[1])
        assert found is not None and found.codes.dtype == ir.DataType.INT8
        made[name] = context.float_weights[str(found.codes.name)].qtype
    assert made == {name: FORMATS[weight if name == "c" else "int8"] for name in "acdy"}
