"""Spellings of normalisations: what clean-up makes of them, and that it computes the same."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgeq.graph import to_bytes
from edgeq.normalization import normalization
from edgeq.onnx_api import infer_shapes
from edgeq.simplify import simplify_nodes
from tests.fused_operators.row import run

CENTERED = """m = ReduceMean (x, axes)
  c = Sub (x, m)
  q = Mul (c, c)
  v = ReduceMean (q, axes)
  e = Add (v, epsilon)
  """
UNCENTERED = """q = Mul (x, x)
  v = ReduceMean (q, axes)
  e = Add (v, epsilon)
  """
AFFINE = "s = Mul (u, gamma)  y = Add (s, beta)"
FACTOR = """r = Sqrt (e)  i = Reciprocal (r)  f = Mul (i, gamma)
  a = Mul (x, f)  t = Mul (m, f)  d = Sub (beta, t)  y = Add (a, d)"""
LAYER, RMS = "LayerNormalization", "Mul ReduceMean Add Sqrt Div"
ROWS = [
    # spelling                what it is          and what it becomes
    ("divided", f"{CENTERED} r = Sqrt (e)  u = Div (c, r)  {AFFINE}", LAYER),
    ("inverted", f"{CENTERED} r = Sqrt (e)  i = Reciprocal (r)  u = Mul (c, i)  {AFFINE}", LAYER),
    ("one divided", f"{CENTERED} r = Sqrt (e)  i = Div (one, r)  u = Mul (i, c)  {AFFINE}", LAYER),
    ("root of the inverse", f"{CENTERED} i = Reciprocal (e)  r = Sqrt (i)  u = Mul (c, r)"
     f"  {AFFINE}", LAYER),
    ("factors first", f"{CENTERED} r = Sqrt (e)  u = Div (c, r)  s = Mul (gamma, u)"
     "  y = Add (beta, s)", LAYER),
    ("without beta", f"{CENTERED} r = Sqrt (e)  u = Div (c, r)  y = Mul (u, gamma)", LAYER),
    ("without gamma", f"{CENTERED} r = Sqrt (e)  u = Div (c, r)  y = Add (u, beta)", LAYER),
    ("plain", f"{CENTERED} r = Sqrt (e)  y = Div (c, r)", LAYER),
    ("difference twice", f"{CENTERED.replace('Mul (c, c)', 'Mul (b, b)')} b = Sub (x, m)"
     f"  r = Sqrt (e)  u = Div (c, r)  {AFFINE}", LAYER),
    ("square by Pow", f"{CENTERED.replace('Mul (c, c)', 'Pow (c, two)')} r = Sqrt (e)"
     f"  u = Div (c, r)  {AFFINE}", LAYER),
    ("root by Pow", f"{CENTERED} r = Pow (e, half)  u = Div (c, r)  {AFFINE}", LAYER),
    ("inverse root by Pow", f"{CENTERED} r = Pow (e, minus)  u = Mul (c, r)  {AFFINE}", LAYER),
    ("epsilon first", f"{CENTERED.replace('v, epsilon', 'epsilon, v')} r = Sqrt (e)"
     f"  u = Div (c, r)  {AFFINE}", LAYER),
    ("gamma in the factor", f"{CENTERED} {FACTOR}", LAYER),
    ("no gamma in the factor", f"{CENTERED} {FACTOR.replace('f = Mul (i, gamma)', '')}".replace(
        " f)", " i)"), LAYER),
    ("RMS", f"{UNCENTERED} r = Sqrt (e)  y = Div (x, r)", RMS),
    ("RMS with weight", f"{UNCENTERED} r = Sqrt (e)  u = Div (x, r)  y = Mul (u, gamma)",
     f"{RMS} Mul"),
    ("RMS inverted", f"{UNCENTERED} r = Sqrt (e)  i = Reciprocal (r)  u = Mul (x, i)"
     "  y = Mul (gamma, u)", f"{RMS} Mul"),
    ("RMS, one divided", f"{UNCENTERED} r = Sqrt (e)  i = Div (one, r)  y = Mul (x, i)", RMS),
    ("RMS by Pow", f"{UNCENTERED.replace('Mul (x, x)', 'Pow (x, two)')} r = Pow (e, minus)"
     "  y = Mul (x, r)", RMS),
    ("RMS, epsilon first", f"{UNCENTERED.replace('v, epsilon', 'epsilon, v')} r = Sqrt (e)"
     "  y = Div (x, r)", RMS),
]  # fmt: skip
NOT = [
    ("another mean", f"{CENTERED.replace('Sub (x, m)', 'Sub (x, z)')} z = ReduceMean (x, last)"
     "  r = Sqrt (e)  y = Div (c, r)", "Div"),
    ("another value", f"{UNCENTERED} r = Sqrt (e)  i = Reciprocal (r)  k = Relu (x)"
     "  y = Mul (k, i)", "Reciprocal"),
    ("no square", f"{UNCENTERED.replace('Mul (x, x)', 'Mul (x, k)')} k = Relu (x)  r = Sqrt (e)"
     "  i = Reciprocal (r)  y = Mul (x, i)", "Reciprocal"),
    ("dimensions dropped", f"{UNCENTERED.replace('(q', '<keepdims = 0> (q')} r = Sqrt (e)"
     "  i = Reciprocal (r)  k = Reshape (i, back)  y = Mul (x, k)", "Reciprocal"),
    ("negative epsilon", f"{UNCENTERED.replace('epsilon', 'minus')} r = Sqrt (e)"
     "  i = Reciprocal (r)  y = Mul (x, i)", "Reciprocal"),
]  # fmt: skip
OTHER_AXES = [
    # axes       gamma and beta        operators
    ("{-1}", "float[4]", "LayerNormalization"),
    ("{2}", "float[1,1,4]", "LayerNormalization"),
    ("{1, 2}", "float[3,4]", "LayerNormalization"),
    ("{-1, -2}", "float[4]", "LayerNormalization"),
    ("{1}", "float[3,1]", "Transpose LayerNormalization Transpose"),
    ("{-1}", "float[3,1]", "LayerNormalization Mul Add"),
    ("{-1}", "float", "LayerNormalization"),
    ("{0}", "float", "Transpose LayerNormalization Transpose"),
]


def cleaned(body: str, axes: str = "{-1}", kind: str = "float[4]") -> tuple[bytes, ir.Model]:
    size = int(np.prod([int(d) for d in kind.partition("[")[2].rstrip("]").split(",") if d]))
    numbers = [", ".join(str(start + n / 4) for n in range(size)) for start in (0.5, -1)]
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[2,3,4] x) => (float[2,3,4] y) <int64[{axes.count(",") + 1}] axes = {axes},
          int64[1] last = {{1}}, int64[3] back = {{2, 3, 1}}, float epsilon = {{0.125}},
          float one = {{1}}, float two = {{2}}, float half = {{0.5}}, float minus = {{-0.5}},
          {kind} gamma = {{{numbers[0]}}}, {kind} beta = {{{numbers[1]}}}> {{
          {body}
        }}"""
    )
    nodes = list(proto.graph.node)  # a row may write them in another order
    del proto.graph.node[:]
    made = {"x", *(tensor.name for tensor in proto.graph.initializer)}
    while nodes:
        ready = next(node for node in nodes if made.issuperset(node.input))
        made.update(ready.output)
        nodes.remove(ready)
        proto.graph.node.append(ready)
    model = ir.from_proto(proto)
    for _ in range(9):
        infer_shapes(model)
        if not simplify_nodes(model.graph):
            break
        for node in reversed(list(model.graph)):
            if not any(out.uses() or out.is_graph_output() for out in node.outputs):
                model.graph.remove(node, safe=True)
    return proto.SerializeToString(), model


def check(before: bytes, model: ir.Model) -> None:
    x = np.random.default_rng(4).normal(size=(2, 3, 4)).astype(np.float32)
    (expected,), (found,) = run(before, {"x": x}), run(to_bytes(model), {"x": x})
    assert np.nanmax(np.abs(found - expected)) <= 2.0**-18 * np.nanmax(np.abs(expected))


@pytest.mark.parametrize(("rule", "body", "operators"), ROWS, ids=[row[0] for row in ROWS])
def test_has_one_spelling(rule, body, operators):
    before, model = cleaned(body)
    assert [node.op_type for node in model.graph] == operators.split()
    assert sum(normalization(node) is not None for node in model.graph) == 1
    check(before, model)


@pytest.mark.parametrize(("rule", "body", "kept"), NOT, ids=[row[0] for row in NOT])
def test_something_else_stays(rule, body, kept):
    before, model = cleaned(body)
    assert kept in [node.op_type for node in model.graph]
    assert LAYER not in [node.op_type for node in model.graph]
    check(before, model)


@pytest.mark.parametrize(("axes", "kind", "operators"), OTHER_AXES)
def test_other_axes(axes, kind, operators):
    before, model = cleaned(f"{CENTERED} r = Sqrt (e)  u = Div (c, r)  {AFFINE}", axes, kind)
    assert [node.op_type for node in model.graph] == operators.split()
    check(before, model)
