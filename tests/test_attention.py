"""What is recognised as attention, and which of its values stay without codes."""

import onnx_ir as ir
import pytest

from edgeq.attention import Attention, find_attentions, inner_values
from edgeq.onnx_api import infer_shapes
from edgeq.possible_values import possible_values

HEAD = "g (float[2,4,L,8] q, float[2,4,8,L] k, float[2,4,L,8] v, bool[L,L] keep"
CONSTANTS = (
    "float c = {0.25}, float root = {4}, float zero = {0}, float one = {1}, float low = {-1e9},"
    " float minus = {-2}, float[2] several = {1, 2}"
)


def model(nodes: str, inputs: str = "", constants: str = "", outputs: str = "y") -> ir.Model:
    """Return a graph of `nodes` from the inputs `q`, `k`, `v`, `keep` and others."""
    results = ", ".join(f"float[2,4,M,N] {name}" for name in outputs.split())
    more = f", {inputs}" if inputs else ""
    text = (
        f'<ir_version: 10, opset_import: ["": 21]> {HEAD}{more}) => ({results})'
        f" <{CONSTANTS}{', ' if constants else ''}{constants}> {{ {nodes} }}"
    )
    found = ir.from_onnx_text(text)
    infer_shapes(found)
    return found


def attention(nodes: str, **more: str) -> Attention:
    (found,) = find_attentions(model(nodes, **more))
    return found


MASK = "b = Where(keep, zero, low)"
SPELLINGS = {
    # nodes from the product `s` to the Softmax's input `x`: factor, kinds of terms
    "plain": ("x = Identity(s)", 1.0, ""),
    "scaled": ("x = Mul(s, c)", 0.25, ""),
    "scaled from the left": ("x = Mul(c, s)", 0.25, ""),
    "divided": ("x = Div(s, root)", 0.25, ""),
    "scaled twice": ("t = Mul(s, c) x = Div(t, root)", 0.0625, ""),
    "masked": (f"{MASK} x = Add(s, b)", 1.0, "mask"),
    "scaled and masked": (f"{MASK} t = Mul(s, c) x = Add(b, t)", 0.25, "mask"),
    "mask computed": (
        "f = Cast<to = 1>(keep) r = Sub(one, f) b = Mul(r, low) x = Add(s, b)",
        1.0,
        "mask",
    ),
    "two masks": (f"{MASK} t = Add(s, b) x = Add(t, b)", 1.0, "mask mask"),
    "filled": ("x = Where(keep, s, low)", 1.0, "choice"),
    "filled the other way": ("n = Not(keep) x = Where(n, low, s)", 1.0, "choice"),
    "small mask is a bias": ("b = Where(keep, zero, c) x = Add(s, b)", 1.0, "bias"),
    "moved": ("x = Transpose<perm = [0, 1, 3, 2]>(s)", 1.0, ""),
    "limited": (f"{MASK} t = Add(s, b) x = Max(t, low)", 1.0, "mask"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    nodes, factor, kinds = SPELLINGS[name]
    found = attention(f"s = MatMul(q, k) {nodes} p = Softmax(x) y = MatMul(p, v)")
    assert (found.q.name, found.k.name) == ("q", "k")
    assert found.v is not None and found.v.name == "v"
    assert found.factor == pytest.approx(factor)
    assert " ".join(term.kind for term in found.terms) == kinds
    assert found.axis == -1 and found.output.name == "p"
    inner = {str(value.name) for value in inner_values([found])}
    assert "s" in inner and "x" in inner and inner.isdisjoint("qkvpy")


NOT_ATTENTION = {
    "scores are an output": ("s = MatMul(q, k) y = Softmax(s)", {"outputs": "y s"}),
    "scores are read twice": ("s = MatMul(q, k) p = Softmax(s) y = Add(p, s)", {}),
    "squared scores": ("s = MatMul(q, k) x = Mul(s, s) y = Softmax(x)", {}),
    "doubled scores": ("s = MatMul(q, k) x = Add(s, s) y = Softmax(x)", {}),
    "negative factor": ("s = MatMul(q, k) x = Mul(s, minus) y = Softmax(x)", {}),
    "factor by column": ("s = MatMul(q, k) x = Mul(s, f) y = Softmax(x)", {"inputs": "float[L] f"}),
    "capped": ("s = MatMul(q, k) x = Tanh(s) y = Softmax(x)", {}),
    "filled with a score": ("s = MatMul(q, k) x = Where(keep, s, c) y = Softmax(x)", {}),
    "constant keys": (
        "s = MatMul(q, w) y = Softmax(s)", {"constants": "float[8,1] w = {1,2,3,4,5,6,7,8}"}
    ),
    "no product": ("y = Softmax(q)", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_ATTENTION)
def test_what_is_no_attention(name):
    nodes, more = NOT_ATTENTION[name]
    assert find_attentions(model(nodes, **more)) == []


def test_factors_scale_only_what_is_in_front_of_them():
    found = attention(
        "s = MatMul(q, k) t = Mul(s, c) u = Add(t, m) w = Div(u, root) x = Add(w, m)"
        " y = Softmax(x)",
        inputs="float[L,L] m",
    )
    assert [term.factor for term in found.terms] == pytest.approx([0.25, 0.0625])
    assert found.factor == pytest.approx(0.0625) and found.product is None


def test_a_guard_against_nan_belongs_to_it():
    found = attention("s = MatMul(q, k) r = Softmax(s) n = IsNaN(r) p = Where(n, zero, r)"
                      " y = MatMul(p, v)")  # fmt: skip
    assert found.guard is not None and found.output.name == "p" and found.product is not None
    assert {str(value.name) for value in inner_values([found])} == {"s", "r"}


def test_probabilities_may_move_on_their_way_to_the_values():
    found = attention("s = MatMul(q, k) p = Softmax(s) t = Identity(p) y = MatMul(t, v)")
    assert found.v is not None and found.v.name == "v"


def test_the_second_operand_of_an_addition_may_be_the_scores():
    """A bias computed by a MatMul of its own: the first operand that is attention counts."""
    found = attention("b = Mul(q, c) s = MatMul(q, k) x = Add(b, s) y = Softmax(x)")
    assert found.scores.outputs[0].name == "s"
    assert [(term.kind, term.value.name) for term in found.terms] == [("bias", "b")]
    # A product of its own makes it an activation; q is read by the scores as well.
    assert {str(v.name) for v in inner_values([found])} == {"s", "x", "b"}


def test_a_computed_bias_keeps_its_codes():
    found = attention("r = MatMul(q, k) e = Tanh(r) s = MatMul(q, k) x = Add(s, e) y = Softmax(x)")
    assert {str(value.name) for value in inner_values([found])} == {"s", "x"}


def test_masks_of_layers_stay_without_codes_unless_others_read_them():
    layer = "s{n} = MatMul(q, k) x{n} = Add(s{n}, b) p{n} = Softmax(x{n})"
    nodes = f"n = Sub(one, m) b = Mul(n, low) {layer.format(n=1)} {layer.format(n=2)}"
    shared = model(f"{nodes} y = Add(p1, p2)", inputs="float[L,L] m")
    names = {str(value.name) for value in inner_values(find_attentions(shared))}
    assert names == {"s1", "x1", "s2", "x2", "b", "n", "m"}
    read = model(f"{nodes} z = Add(p1, p2) y = Mul(z, n)", inputs="float[L,L] m")
    names = {str(value.name) for value in inner_values(find_attentions(read))}
    assert names == {"s1", "x1", "s2", "x2", "b"}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("z = Where(keep, zero, low)", {0.0, -1e9}),
        ("f = Cast<to = 1>(keep) z = Sub(one, f)", {0.0, 1.0}),
        ("f = Cast<to = 1>(keep) g = Mul(f, low) z = Neg(g)", {0.0, 1e9}),
        ("f = Where(keep, one, low) z = Max(f, zero)", {0.0, 1.0}),
        ("e = Expand(low, shape) z = Trilu(e)", {0.0, -1e9}),
        ("z = ConstantOfShape(shape)", {0.0}),
        ("z = Concat<axis = 0>(several, several)", {1.0, 2.0}),
        ("f = Cast<to = 1>(keep) z = Mul(f, infinity)", None),  # 0 * infinity
        ("z = Add(q, one)", None),
        ("z = Exp(several)", None),
    ],
)
def test_possible_values(nodes, expected):
    constants = "int64[2] shape = {3, 3}, float infinity = {-inf}"
    built = model(f"{nodes} y = Identity(q)", constants=constants)
    (value,) = (out for node in built.graph for out in node.outputs if out.name == "z")
    found = possible_values(value)
    assert found == (None if expected is None else {float(v) for v in expected})
