"""What choose-qparams quantizes, and how relate-scales moves what it chose."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.calibrate import calibrate
from edgeq.graph import remove_dead, to_bytes
from edgeq.numerics.affine import QParams
from edgeq.numerics.odd_ratio import FRACTION_LIMIT
from edgeq.numerics.qtype import UINT8
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.proofs import prove_add, prove_average_pool, prove_mul
from edgeq.recipe import Rule, load_recipe
from edgeq.roles import is_activation
from edgeq.targeting import Capabilities

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
FUSED = frozenset({"Add", "Mul", "AveragePool"})
MINMAX = load_recipe("int8", {"activation.observer": '"minmax"'})


def parse(text: str) -> ir.Model:
    model = ir.from_onnx_text(HEAD + text)
    for node in model.graph:
        node.name = node.outputs[0].name
    infer_shapes(model)
    return model


def samples_of(model: ir.Model, count: int = 4) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    shapes = {
        str(v.name): [d if isinstance(d, int) else 1 for d in v.shape or ()]
        for v in model.graph.inputs
    }
    return [
        {name: np.asarray(rng.normal(0, 1, shape), np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def context_of(model: ir.Model, **fields: Any) -> Context:
    samples: Any = samples_of(model)
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    names = [str(v.name) for v in values if is_activation(v)]
    return Context(
        **{
            "recipe": MINMAX,
            "capabilities": Capabilities(fused=FUSED),
            "samples": samples,
            "calibration": calibrate(model, samples, names),
            **fields,
        }
    )


CONV = "<float[2,2,1,1] w = {1, 2, 3, -4}>"
GEMM = "<float[2,2] w = {1, 2, 3, -4}, float half = {0.5}, int64[2] flat = {-1, 1}>"

# what: the graph, and the values that get parameters
DECISIONS = {
    "nothing linear": (
        "g (float[N,2] x) => (float[N,2] y) { y = Abs (x) }",
        "",
    ),
    "the float tail of a Gemm": (
        f"g (float[N,2] x) => (float[N,2] y) {GEMM} {{ g = Gemm (x, w)  y = Abs (g) }}",
        "x",
    ),
    "a Conv has no float result": (
        f"g (float[N,2,3,3] x) => (float[N,2,3,3] y) {CONV} {{ c = Conv (x, w)  y = Abs (c) }}",
        "x c",
    ),
    "a Relu behind it is looked through": (
        f"g (float[N,2,3,3] x) => (float[N,2,3,3] y) {CONV}"
        " { c = Conv (x, w)  r = Relu (c)  y = Abs (r) }",
        "x r",
    ),
    "not where others read in front of it": (
        f"g (float[N,2,3,3] x) => (float[N,2,3,3] y, float[N,2,3,3] z) {CONV}"
        " { c = Conv (x, w)  r = Relu (c)  y = Abs (r)  z = Neg (c) }",
        "x c",
    ),
    "not where it is an output": (
        f"g (float[N,2,3,3] x) => (float[N,2,3,3] c, float[N,2,3,3] r) {CONV}"
        " { c = Conv (x, w)  r = Relu (c) }",
        "x c",
    ),
    "not where a limit is computed": (
        f"g (float[N,2,3,3] x, float t) => (float[N,2,3,3] y) {CONV}"
        " { c = Conv (x, w)  r = Clip (c, , t)  y = Abs (r) }",
        "x c",
    ),
    "all in front of a linear op": (
        f"g (float[N,2,3,3] x) => (float[N,2,3,3] y) {CONV}"
        " { a = Abs (x)  b = Add (a, x)  r = Relu (b)  y = Conv (r, w) }",
        "x a r y",
    ),
    "both sides of a MatMul": (
        "g (float[2,2] x, float[2,2] v) => (float[2,2] y) { y = MatMul (x, v) }",
        "x v y",
    ),
    "what is moved keeps its parameters": (
        f"g (float[1,2] x) => (float[1,2] y) {GEMM}"
        " { a = Abs (x)  m = Transpose (a)  n = Transpose (m)  y = Gemm (n, w) }",
        "x a=m=n",
    ),
    "one scale for all of a Concat": (
        "g (float[1,2] x) => (float[1,2] y) <float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}>"
        " { a = Abs (x)  c = Concat <axis: int = 1> (x, a)  y = Gemm (c, w) }",
        "x=a=c",
    ),
    "a constant in a Concat": (
        "g (float[1,2] x) => (float[1,2] y)"
        " <float[1,2] k = {1, 2}, float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}>"
        " { c = Concat <axis: int = 1> (x, k)  y = Gemm (c, w) }",
        "x c",
    ),
    "a function starts from codes": (
        f"g (float[N,2] x) => (float[N,2] y) {GEMM} {{ g = Gemm (x, w)  y = Exp (g) }}",
        "x g",
    ),
    "a table swallows arithmetic": (
        f"g (float[N,2] x) => (float[N,2] y) {GEMM}"
        " { g = Gemm (x, w)  a = Mul (g, half)  y = Exp (a) }",
        "x g",
    ),
    "movement in front of that": (
        f"g (float[N,2] x) => (float[M,1] y) {GEMM}"
        " { g = Gemm (x, w)  r = Reshape (g, flat)  a = Mul (r, half)  y = Exp (a) }",
        "x g=r",
    ),
    "movement behind it": (
        f"g (float[N,2] x) => (float[M,1] y) {GEMM}"
        " { g = Gemm (x, w)  a = Mul (g, half)  r = Reshape (a, flat)  y = Exp (r) }",
        "x g",
    ),
    "arithmetic that a table takes in": (
        f"g (float[N,2] x) => (float[N,2] y) {GEMM}"
        " { g = Gemm (x, w)  b = Neg (g)  y = Exp (b) }",
        "x g",
    ),
    "a function of several steps": (
        f"g (float[N,2] x) => (float[N,2] z) {GEMM}"
        " { g = Gemm (x, w)  s = Sigmoid (g)  y = Mul (g, s)  z = Gemm (y, w) }",
        "x g y",
    ),
    "arithmetic with a vector": (
        "g (float[N,2] x) => (float[N,2] y) <float[2] k = {1, 2}> { a = Mul (x, k)  y = Exp (a) }",
        "a",
    ),
    "Softmax starts from codes": (
        f"g (float[N,2] x) => (float[N,2] y) {GEMM} {{ g = Gemm (x, w)  y = Softmax (g) }}",
        "x g",
    ),
}


def groups(context: Context) -> set[frozenset[str]]:
    """Return the decided values, those together that share their parameters."""
    found: dict[int, set[str]] = {}
    for name, qparams in context.qparams.items():
        found.setdefault(id(qparams), set()).add(name)
    return {frozenset(names) for names in found.values()}


@pytest.mark.parametrize("what", DECISIONS)
def test_decisions(what):
    text, expected = DECISIONS[what]
    model = parse(text)
    context = context_of(model)
    remove_dead(model.graph)  # unused constants go with any pipeline
    before = to_bytes(model)
    (record,) = run_pipeline("choose-qparams", model, context)
    assert groups(context) == {frozenset(names.split("=")) for names in expected.split()}
    assert record.rewrites == len(context.qparams)
    assert to_bytes(model) == before


def chosen(what: str, **fields: Any) -> Context:
    model = parse(DECISIONS[what][0])
    context = context_of(model, **fields)
    run_pipeline("choose-qparams", model, context)
    return context


def test_parameters_cover_what_was_seen():
    context = chosen("a Conv has no float result")
    assert context.calibration is not None
    for name in ("x", "c"):
        seen = context.calibration.statistics[name]
        scale = np.float32((seen.high - seen.low) / 255)
        assert context.qparams[name].scale == scale
        assert context.qparams[name].zero_point == round(-seen.low / float(scale))


def test_a_group_covers_all_of_its_values():
    context = chosen("one scale for all of a Concat")
    assert context.calibration is not None
    seen = [context.calibration.statistics[name] for name in "xac"]
    low, high = min(s.low for s in seen), max(s.high for s in seen)
    assert context.qparams["a"].scale == np.float32((high - low) / 255)


def test_keep_float():
    recipe = MINMAX.with_rules([Rule(name="c", keep_float=True)])
    assert chosen("a Conv has no float result", recipe=recipe).qparams == {}
    recipe = MINMAX.with_rules([Rule(name="a", keep_float=True)])
    context = chosen("all in front of a linear op", recipe=recipe)
    assert set(context.qparams) == {"x", "a", "r", "y"}  # its readers still want codes


def test_a_rule_changes_the_spec_of_a_value():
    rule = Rule(name="b", activation=(("scale", "power_of_two"),))
    context = chosen("all in front of a linear op", recipe=MINMAX.with_rules([rule]))
    # Behind a Relu it is the op in front of the Relu that decides.
    exact = {name: math.frexp(p.scale)[0] == 0.5 for name, p in context.qparams.items()}
    assert exact == {"x": False, "a": False, "r": True, "y": False}


def test_an_output_as_codes():
    assert set(chosen("nothing linear", output_types={"y": "uint8"}).qparams) == {"y"}


def qparams(scale: float, zero_point: int = 128) -> QParams:
    return QParams(UINT8, np.array(scale, np.float32), np.array(zero_point, np.int32))


def test_an_input_as_codes_keeps_its_parameters():
    fixed = {"x": qparams(0.5, 3)}
    context = chosen("one scale for all of a Concat", qparams=dict(fixed))
    assert context.qparams["x"] is fixed["x"] and context.qparams["a"].same_as(fixed["x"])


def test_two_inputs_as_codes_keep_theirs():
    text = (
        "g (float[1,2] x, float[1,2] v) => (float[1,2] y)"
        " <float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}>"
        " { c = Concat <axis: int = 1> (x, v)  y = Gemm (c, w) }"
    )
    fixed = {"x": qparams(0.5, 3), "v": qparams(0.25, 3)}
    context = context_of(parse(text), qparams=dict(fixed))
    run_pipeline("choose-qparams", parse(text), context)
    assert context.qparams["x"] is fixed["x"] and context.qparams["v"] is fixed["v"]
    assert not any(context.qparams["c"].same_as(old) for old in fixed.values())


# -- relate-scales ---------------------------------------------------------------------------------

ADDS = (
    "g (float[N,2] x, float[N,2] v) => (float[N,2] z)"
    " { y = Add (x, v)  r = Relu (y)  s = Add (r, x)  z = Abs (s) }"
)
MUL = "g (float[N,2] x, float[N,2] v) => (float[N,2] z) { y = Mul (x, v)  z = Abs (y) }"
POOL = (
    "g (float[N,1,6,6] x) => (float[N,1,2,2] z)"
    " { y = AveragePool <kernel_shape: ints = [3, 3], strides: ints = [3, 3]> (x)  z = Abs (y) }"
)


def related(
    text: str, decided: dict[str, QParams], **fields: Any
) -> tuple[dict[str, QParams], int]:
    context = context_of(parse(text), qparams=dict(decided), **fields)
    (record,) = run_pipeline("relate-scales", parse(text), context)
    return context.qparams, record.rewrites


def test_adds_get_odd_multiples_of_one_base():
    asked = {"x": qparams(0.5, 7), "v": qparams(0.25, 9), "r": qparams(1, 3), "s": qparams(0.5, 5)}
    found, changed = related(ADDS, asked)
    assert changed == 4
    scales = {name: Fraction(float(p.scale)) for name, p in found.items()}
    base = Fraction(
        math.gcd(*(s.numerator * (2**80 // s.denominator) for s in scales.values())), 2**80
    )
    assert all((s / base).denominator == 1 and (s / base).numerator % 2 for s in scales.values())
    for name, p in found.items():
        assert abs(p.scale / asked[name].scale - 1) < 0.01
        assert p.zero_point == asked[name].zero_point
    assert prove_add(found["x"], found["v"], found["r"]).equal
    assert prove_add(found["r"], found["x"], found["s"]).equal
    assert not prove_add(asked["x"], asked["v"], asked["r"]).equal


def test_a_mul_gets_an_odd_denominator():
    asked = {"x": qparams(0.1, 7), "v": qparams(0.2, 9), "y": qparams(0.013, 3)}
    found, changed = related(MUL, asked)
    assert changed == 1 and found["x"] is asked["x"] and found["v"] is asked["v"]
    product = float(asked["x"].scale) * float(asked["v"].scale)
    multiplier = Fraction(product / float(found["y"].scale)).limit_denominator(FRACTION_LIMIT)
    assert multiplier.denominator % 2 == 1
    assert abs(float(multiplier) * float(found["y"].scale) / product - 1) < 2**-22
    assert abs(found["y"].scale / asked["y"].scale - 1) <= 1e-4
    assert not prove_mul(asked["x"], asked["v"], qparams(product * 64, 3)).equal
    assert prove_mul(found["x"], found["v"], found["y"]).equal


def test_a_pool_gets_an_odd_fraction():
    asked = {"x": qparams(0.1, 7), "y": qparams(0.2, 3)}
    found, changed = related(POOL, asked)
    assert changed == 1 and found["x"] is asked["x"]
    units = qparams(1.0, 7)
    ratio = qparams(float(found["y"].scale / found["x"].scale), 3)
    before = qparams(float(asked["y"].scale / asked["x"].scale), 3)
    assert prove_average_pool(units, ratio, (9,)).equal
    assert not prove_average_pool(units, before, (9,)).equal


def unrelated(*names: str) -> dict[str, QParams]:
    return {name: qparams(0.1 + 0.07 * i) for i, name in enumerate(names)}


@pytest.mark.parametrize(
    ("text", "decided", "fields"),
    [
        (ADDS, unrelated("x", "v", "r", "s"), {"capabilities": Capabilities()}),
        (ADDS, unrelated("x", "v", "r", "s"), {"input_types": {"x": "uint8"}}),
        (ADDS, unrelated("x", "r", "s") | {"s": qparams(500.0)}, {}),
        (ADDS, unrelated("x", "v"), {}),
        (MUL, unrelated("x", "v"), {}),
        (MUL, unrelated("x", "y"), {}),
        (MUL, unrelated("x", "v", "y"), {"input_types": {"y": "uint8"}}),
        (POOL, unrelated("y"), {}),
        (POOL, dict.fromkeys(("x", "y"), qparams(0.1)), {}),
    ],
    ids=["nothing fused", "codes from outside", "too wide a span", "a sum that stays float",
         "a product that stays float", "a float side", "a fixed result", "a float image",
         "one group"],
)  # fmt: skip
def test_scales_stay(text, decided, fields):
    found, changed = related(text, decided, **fields)
    assert changed == 0
    assert {name: p.scale.tobytes() for name, p in found.items()} == {
        name: p.scale.tobytes() for name, p in decided.items()
    }


def test_values_that_share_parameters_move_together():
    text = (
        "g (float[N,2] x, float[N,2] v) => (float[N,2] z)"
        " { m = Identity (x)  y = Add (m, v)  z = Abs (y) }"
    )
    shared = qparams(0.1, 7)
    found, changed = related(
        text, {"x": shared, "m": shared, "v": qparams(0.23), "y": qparams(0.3)}
    )
    assert changed == 3 and found["x"] is found["m"] and found["x"] is not shared
