"""Symbolic dimensions: their arithmetic, and what is found behind operators that take shapes."""

import onnx_ir as ir
import pytest

from edgeq.counts import Count, count_of
from edgeq.dims import dim_product, dim_quotient
from edgeq.graph import to_bytes
from edgeq.onnx_api import infer_shapes
from edgeq.symbolic_shapes import name_dims


def dims(text):
    """Return `[2,N,?]` as dimensions; `?` has no name."""
    names = [name for name in text.strip("[]").split(",") if name]
    return [int(n) if n.isdecimal() else ir.SymbolicDim(None if n == "?" else n) for n in names]


@pytest.mark.parametrize(
    ("rule", "above", "below", "result"),
    [
        ("numbers", "[4,6]", "[8]", 3),
        ("no factor", "[]", "[]", 1),
        ("a name", "[N]", "[]", "N"),
        ("names in order", "[L,N,4]", "[2]", "2*L*N"),
        ("products are read again", "[2*L*N,8]", "[L,16]", "N"),
        ("a name twice", "[N,N]", "[N]", "N"),
        ("not whole", "[N,3]", "[2]", None),
        ("another name", "[N]", "[L]", None),
        ("a nameless one", "[N,?]", "[N]", None),
        ("nothing is divided by zero", "[N]", "[0]", None),
        ("zero elements", "[N,0]", "[2]", 0),
        ("an expression is a name", "[N + 1,2]", "[N + 1]", 2),
    ],
)
def test_quotients(rule, above, below, result):
    found = dim_quotient(dims(above), dims(below))
    assert (found.value if isinstance(found, ir.SymbolicDim) else found) == result


def test_products():
    assert dim_product(dims("[N,2,L]")) == ir.SymbolicDim("2*L*N")
    assert dim_product(dims("[N,?]")) is None
    assert dim_product(dims("[3,2]")) == 6


X = "float[N,L,12] x, float[P] p"
SHAPES = {
    "rows": ("m = Constant <value_ints = [-1, 12]> ()  y = Reshape (x, m)", "[L*N,12]"),
    "a kept dimension": ("m = Constant <value_ints = [0, -1]> ()  y = Reshape (x, m)", "[N,12*L]"),
    "rows back": (
        "m = Constant <value_ints = [-1, 12]> ()  r = Reshape (x, m)  s = Shape (x)"
        "  y = Reshape (r, s)",
        "[N,L,12]",
    ),
    "by a product": (
        "s = Shape <start = 0, end = 1> (x)  t = Shape <start = 1, end = 2> (x)  n = Mul (s, t)"
        "  f = Constant <value_ints = [3, 4]> ()  m = Concat <axis = 0> (n, f)  y = Reshape (x, m)",
        "[L*N,3,4]",
    ),
    "an unknown count": ("m = Constant <value_ints = [5, -1]> ()  y = Reshape (x, m)", "[5,?]"),
    "Expand": (
        "s = Shape <end = 2> (x)  f = Constant <value_ints = [7, 1]> ()"
        "  m = Concat <axis = 0> (s, f)  o = Constant <value_ints = [1, 1]> ()  r = Reshape (p, o)"
        "  y = Expand (p, m)",
        "[N,L,7,P]",
    ),
    "Range": (
        "s = Shape <start = 1, end = 2> (x)  a = Constant <value_ints = [0]> ()"
        "  n = Squeeze (s, a)  z = Constant <value_int = 0> ()  o = Constant <value_int = 1> ()"
        "  r = Range (z, n, o)  y = Cast <to = 1> (r)",
        "[L]",
    ),
    "ConstantOfShape": ("s = Shape <end = 2> (x)  y = ConstantOfShape (s)", "[N,L]"),
    "and on": (
        "m = Constant <value_ints = [0, 0, 3, 4]> ()  r = Reshape (x, m)"
        "  y = Transpose <perm = [0, 2, 1, 3]> (r)",
        "[N,3,L,4]",
    ),
    "of unknown rank": ("i = NonZero (x)  s = Shape (i)  y = Cast <to = 1> (s)", "[2]"),
}


@pytest.mark.parametrize("rule", SHAPES)
def test_shapes(rule):
    nodes, expected = SHAPES[rule]
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({X}) => (float y) {{ {nodes} }}'
    model = ir.from_onnx_text(text)
    model.graph.outputs[0].shape = None
    infer_shapes(model)
    assert model.graph.outputs[0].shape == ir.Shape(dims(expected))
    once = to_bytes(model)
    assert name_dims(model.graph) == 0
    assert to_bytes(model) == once


ONES = "s = Shape (ids)  o = Constant <value_float = 1.0> ()  ones = Expand (o, s)"
AXIS = "axis = Constant <value_int = 1> ()"
COUNTS = {
    "equal everywhere": (f"{ONES}  y = Identity (ones)", Count(1)),
    "running sum": (f"{ONES} {AXIS}  y = CumSum (ones, axis)", Count(1, 1, -1)),
    "from zero": (f"{ONES} {AXIS}  y = CumSum <exclusive = 1> (ones, axis)", Count(0, 1, -1)),
    "backwards": (f"{ONES} {AXIS}  y = CumSum <reverse = 1> (ones, axis)", None),
    "twice": (f"{ONES} {AXIS}  c = CumSum (ones, axis)  y = Add (c, c)", Count(2, 2, -1)),
    "square": (f"{ONES} {AXIS}  c = CumSum (ones, axis)  y = Mul (c, c)", None),
    "difference": (f"{ONES} {AXIS}  c = CumSum (ones, axis)  y = Sub (ones, c)", Count(0, -1, -1)),
    "along two axes": (
        f"{ONES} {AXIS}  z = Constant <value_int = 0> ()  c = CumSum (ones, axis)"
        "  d = CumSum (ones, z)  y = Add (c, d)",
        None,
    ),
    "a column": (
        f"{ONES} {AXIS}  c = CumSum (ones, axis)  a = Constant <value_ints = [2]> ()"
        "  y = Unsqueeze (c, a)",
        Count(1, 1, -2),
    ),
    "not whole": (
        f"{ONES}  h = Constant <value_float = 0.5> ()  y = Mul (ones, h)",
        None,
    ),
    "too large for float32": (
        f"{ONES}  h = Constant <value_float = 9e6> ()  y = Mul (ones, h)",
        None,
    ),
    "of the input": ("y = Cast <to = 1> (ids)", None),
}


@pytest.mark.parametrize("rule", COUNTS)
def test_counts(rule):
    nodes, expected = COUNTS[rule]
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (int64[N,L] ids) => (float y) {{ {nodes} }}'
    )
    model = ir.from_onnx_text(text)
    model.graph.outputs[0].shape = None
    infer_shapes(model)
    assert count_of(model.graph.outputs[0]) == expected
