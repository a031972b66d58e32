"""Which choices always fall the same way, and which only look so."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.idle_choice import chosen_operand
from edgeq.onnx_api import infer_shapes

GUARD = "p = Softmax (t)  n = IsNaN (p)  y = Where (n, zero, p)"
ROWS = [
    # rule                         nodes                                             chosen
    ("scores", f"t = MatMul (a, b)  {GUARD}", "p"),
    ("scaled scores", f"s = MatMul (a, b)  t = Div (s, two)  {GUARD}", "p"),
    ("lowest number", f"s = MatMul (a, b)  w = Where (c, zero, low)  t = Add (s, w)  {GUARD}", "p"),
    ("masked by Where", f"s = MatMul (a, b)  t = Where (c, s, low)  {GUARD}", "p"),
    ("capped", f"s = MatMul (a, b)  h = Tanh (s)  t = Mul (h, two)  {GUARD}", "p"),
    ("all true", "y = Where (yes, a, b)", "a"),
    ("all false", "y = Where (no, a, b)", "b"),
]
NOT = [
    ("infinite", f"s = MatMul (a, b)  w = Where (c, zero, inf)  t = Add (s, w)  {GUARD}"),
    ("mask given", f"s = MatMul (a, b)  t = Add (s, m)  {GUARD}"),
    ("logarithm", f"s = MatMul (a, b)  w = Log (m)  t = Add (s, w)  {GUARD}"),
    ("filled at run time", "e = Shape (m)  f = ConstantOfShape <value = float[1] {-1}> (e)"
     f"  s = MatMul (a, b)  t = Add (s, f)  {GUARD}"),
    ("divided by zero", f"s = MatMul (a, b)  t = Div (s, zero)  {GUARD}"),
    ("no Softmax", "p = MatMul (a, b)  n = IsNaN (p)  y = Where (n, zero, p)"),
    ("another test", "p = Softmax (a)  n = IsInf (p)  y = Where (n, zero, p)"),
    ("mixed", "y = Where (mixed, a, b)"),
    ("computed", "y = Where (c, a, b)"),
    ("broadcast", "y = Where (yes, zero, b)"),
]  # fmt: skip


def choice(nodes: str) -> ir.Node:
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[2,2] a, float[2,2] b, float[2,2] m, bool[2,2] c) => (float[2,2] y) <
          float zero = {{0}}, float two = {{2}}, float low = {{-3e38}}, float inf = {{-1}},
          bool[2] yes = {{1, 1}}, bool[2] no = {{0, 0}}, bool[2] mixed = {{1, 0}}> {{ {nodes} }}"""
    )
    if "inf" in model.graph.initializers:  # the text has no word for it
        model.graph.initializers["inf"].const_value = ir.tensor(np.float32(-np.inf))
    infer_shapes(model)
    return list(model.graph)[-1]


@pytest.mark.parametrize(("rule", "nodes", "chosen"), ROWS, ids=[row[0] for row in ROWS])
def test_falls_the_same_way(rule, nodes, chosen):
    found = chosen_operand(choice(nodes))
    assert found is not None and found.name == chosen


@pytest.mark.parametrize(("rule", "nodes"), NOT, ids=[row[0] for row in NOT])
def test_is_open(rule, nodes):
    assert chosen_operand(choice(nodes)) is None
