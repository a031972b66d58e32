"""Which masks are known to be causal for every size, and that they are."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.attention import find_attentions
from edgeq.causal_masks import is_causal
from edgeq.onnx_api import infer_shapes
from edgeq.runtime import make_session, run

CONSTANTS = (
    "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64[1] v0 = {0}, int64[1] v1 = {1},"
    " int64[2] v01 = {0, 1}, int64[3] v012 = {0, 1, 2}, int64[3] v013 = {0, 1, 3},"
    " float zero = {0}, float half = {0.5}, float one = {1}, float low = {-1e9},"
    " float infinity = {-inf},"
    " bool yes = {1}, bool no = {0}"
)
LENGTH = "l1 = Shape<start = 2, end = 3>(q) length = Squeeze(l1)"
SQUARE = f"{LENGTH} square = Concat<axis = 0>(l1, l1)"
RANGES = f"{LENGTH} keys = Range(i0, length, i1) rows = Unsqueeze(keys, v1)"
TRUTH = {
    "key <= row": f"{RANGES} m = LessOrEqual(keys, rows)",
    "row >= key": f"{RANGES} m = GreaterOrEqual(rows, keys)",
    "not key > row": f"{RANGES} f = Greater(keys, rows) m = Not(f)",
    "not row < key": f"{RANGES} f = Less(rows, keys) m = Not(f)",
    "four axes": (
        f"{LENGTH} r = Range(i0, length, i1) keys = Unsqueeze(r, v012) rows = Unsqueeze(r, v013)"
        " m = LessOrEqual(keys, rows)"
    ),
    "lower triangle of ones": f"{SQUARE} o = Expand(one, square) t = Trilu<upper = 0>(o, i0)"
    " m = Cast<to = 9>(t)",
    "upper triangle of ones is not": f"{SQUARE} o = Expand(one, square) t = Trilu(o, i1)"
    " m = Equal(t, zero)",
    "made larger in front": (
        f"{RANGES} f = LessOrEqual(keys, rows) l4 = Concat<axis = 0>(v1, v1, l1, l1)"
        " m = Expand(f, l4)"
    ),
    "as integers": f"{RANGES} f = LessOrEqual(keys, rows) c = Cast<to = 7>(f) m = Cast<to = 9>(c)",
    "through a choice": (
        f"{RANGES} f = LessOrEqual(keys, rows) b = Where(f, zero, low) m = Equal(zero, b)"
    ),
}
MASKS = {
    "chosen": f"{TRUTH['key <= row']} x = Where(m, s, low)",
    "chosen where not": f"{RANGES} f = Greater(keys, rows) x = Where(f, infinity, s)",
    "added": f"{TRUTH['key <= row']} b = Where(m, zero, infinity) x = Add(s, b)",
    "upper triangle added": f"{SQUARE} o = Expand(low, square) b = Trilu(o, i1) x = Add(s, b)",
    "upper triangle of infinity": (
        f"{SQUARE} o = Expand(infinity, square) b = Trilu<upper = 1>(o, i1) x = Add(b, s)"
    ),
}
OTHERS = {
    "sees the next": f"{RANGES} less = Sub(keys, i1) m = LessOrEqual(less, rows)"
    " x = Where(m, s, low)",
    "does not see itself": f"{RANGES} m = Less(keys, rows) x = Where(m, s, low)",
    "backwards": f"{RANGES} m = GreaterOrEqual(keys, rows) x = Where(m, s, low)",
    "the other way around": f"{TRUTH['key <= row']} x = Where(m, low, s)",
    "every second": (
        f"{LENGTH} keys = Range(i0, length, i1) k2 = Mul(keys, i2) rows = Unsqueeze(k2, v1)"
        " m = LessOrEqual(keys, rows) x = Where(m, s, low)"
    ),
    "triangle with the next": (
        f"{SQUARE} o = Expand(one, square) t = Trilu<upper = 0>(o, i1) m = Cast<to = 9>(t)"
        " x = Where(m, s, low)"
    ),
    "triangle with the diagonal": (
        f"{SQUARE} o = Expand(low, square) b = Trilu(o, i0) x = Add(s, b)"
    ),
    "triangle by an input": (
        f"{SQUARE} o = Expand(one, square) t = Trilu<upper = 0>(o, offset) m = Cast<to = 9>(t)"
        " x = Where(m, s, low)"
    ),
    "of an input": "x = Where(given, s, low)",
    "and padding": f"{TRUTH['key <= row']} n = And(m, given) x = Where(n, s, low)",
    "cut off": f"{TRUTH['key <= row']} h = Where(m, half, zero) c = Cast<to = 7>(h)"
    " n = Cast<to = 9>(c) x = Where(n, s, low)",
    "a bias": f"{TRUTH['key <= row']} b = Where(m, one, low) x = Add(s, b)",
    "one row for all": f"{LENGTH} keys = Range(i0, length, i1) m = LessOrEqual(keys, i0)"
    " x = Where(m, s, low)",
}


def model(nodes: str, length: str = "L", keys: str = "L", constants: str = "") -> ir.Model:
    text = (
        f'<ir_version: 10, opset_import: ["": 21]> g (float[B,2,{length},4] q,'
        f" float[B,2,4,{keys}] k, bool[1,1,{length},{keys}] given, int64 offset)"
        f" => (float[B,2,{length},{keys}] p) <{CONSTANTS}{constants}>"
        f" {{ s = MatMul(q, k) {nodes} p = Softmax(x) }}"
    )
    found = ir.from_onnx_text(text)
    infer_shapes(found)
    return found


def causal(found: ir.Model) -> list[bool]:
    (attention,) = find_attentions(found)
    return [is_causal(term, attention.scores.outputs[0]) for term in attention.terms]


def kept(found: ir.Model, length: int) -> Any:
    """Return which probabilities of equal scores are not 0."""
    feeds = {
        "q": np.zeros((1, 2, length, 4), np.float32),
        "k": np.zeros((1, 2, 4, length), np.float32),
        "given": np.ones((1, 1, length, length), bool),
        "offset": np.array(0),
    }
    (p,) = run(make_session(found, level="none"), feeds).values()
    return p > 1e-6


ALL = {**{name: f"{nodes} x = Where(m, s, low)" for name, nodes in TRUTH.items()}, **MASKS}


@pytest.mark.parametrize("name", ALL)
def test_a_causal_mask_keeps_the_lower_triangle(name: str) -> None:
    found = model(ALL[name])
    assert causal(found) == [True]
    for length in (1, 2, 5):
        assert np.array_equal(kept(found, length)[0, 0], np.tril(np.ones((length, length), bool)))


@pytest.mark.parametrize("name", OTHERS)
def test_other_masks(name: str) -> None:
    found = model(OTHERS[name])
    assert causal(found) == [False]


@pytest.mark.parametrize(
    ("rows", "shape", "expected"),
    [
        ("1, 0, 0, 1, 1, 0, 1, 1, 1", "[3,3]", True),
        ("1, 0, 0, 1, 1, 1, 1, 1, 1", "[3,3]", False),
        ("1, 0, 0", "[1,3]", False),
        ("1", "[1,1]", False),  # one for all
    ],
)
def test_a_constant_mask_is_looked_at(rows: str, shape: str, expected: bool) -> None:
    constants = f", bool{shape} m = {{{rows}}}"
    found = model("x = Where(m, s, low)", "3", "3", constants)
    assert causal(found) == [expected]


def test_there_must_be_as_many_rows_as_keys() -> None:
    assert causal(model(MASKS["chosen"], "L", "S")) == [False]
    assert causal(model("x = Where(m, s, low)", "2", "3", ", bool[2,3] m = {1,0,0,1,1,0}")) == [
        False
    ]
