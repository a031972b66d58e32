"""Models as kernels: every row of every table, bit by bit as the simulator defines it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="needs TVM: pip install edgeq[tvm]")

from tvm import tirx

from edgeq.errors import UnsupportedOperatorError
from edgeq.qdq import quantized_tensors
from edgeq.simulate import Simulator
from edgeq.tvm import arithmetic, codegen, heavy, lower, scalars
from edgeq.tvm.static_model import StaticModel
from tests import tvm_lower_cases as cases
from tests.conformance.runtime import one_node
from tests.conformance.test_operators import EXACT, name_of
from tests.tvm_lower_cases import constant, feeds_for, model_of
from tests.tvm_lowering import (
    TARGETS,
    Compiled,
    Feeds,
    check,
    differing,
    hold,
    load,
    lowered,
    runs_here,
)

pytestmark = pytest.mark.tvm


class Held(NamedTuple):
    compiled: Compiled
    static: StaticModel
    feeds: Feeds


Everything = dict[str, Held | UnsupportedOperatorError]


def conformance() -> dict[str, tuple[ir.Model, Feeds]]:
    """Return models of one node."""
    found: dict[str, tuple[ir.Model, Feeds]] = {}
    for number, case in enumerate(EXACT):
        model, feeds = one_node(*case)
        found[f"{number} {name_of(case)}"] = ir.from_proto(model), feeds
    return found


@pytest.fixture(scope="module", params=["avx2", "c"])
def everything(request, tmp_path_factory) -> Everything:
    """Every case, compiled together."""
    target = request.param
    if not runs_here(target):
        pytest.skip(f"this CPU does not run {target}")
    given = {name: (model, feeds_for(model)) for name, model in cases.models().items()}
    found: dict[str, Any] = {}
    programs = []
    for name, (model, feeds) in (given | conformance()).items():
        try:
            static, program = lowered(model, feeds, TARGETS[target][0])
        except UnsupportedOperatorError as error:
            found[name] = error
        else:
            found[name] = static, feeds
            programs.append(program)
    loaded = iter(load(programs, target, tmp_path_factory.mktemp("everything")))
    return {
        name: held if isinstance(held, UnsupportedOperatorError) else Held(next(loaded), *held)
        for name, held in found.items()
    }


# What one node alone is refused for: sums of floats, functions of floats, values that give sizes.
REFUSED = {
    "ArgMax", "BatchNormalization", "CastLike", "Ceil", "Conv", "ConvTranspose", "CumSum", "Floor",
    "GatherND", "Gemm", "HardSigmoid", "HardSwish", "IsNaN", "MatMulInteger", "Mod", "Pad", "Pow",
    "ReduceProd", "ReduceSumSquare", "Reshape", "Resize", "Sign", "ThresholdedRelu", "Trilu",
}  # fmt: skip


def test_every_bit_is_that_of_the_simulator(everything):
    count = 0
    for name, held in everything.items():
        if isinstance(held, Held):
            try:
                count += hold(held.compiled, held.static, held.feeds)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
    assert count > 150_000


@pytest.mark.parametrize("target", ["vnni512", "vector"])
def test_products_of_codes_on_other_cpus(target, tmp_path):
    if not runs_here(target):
        pytest.skip(f"this CPU does not run {target}")
    models = {name: m for name, m in cases.models().items() if "product" in name}
    made = [lowered(model, feeds_for(model), TARGETS[target][0]) for model in models.values()]
    loaded = load([program for _, program in made], target, tmp_path)
    for model, compiled, (static, _) in zip(models.values(), loaded, made, strict=True):
        hold(compiled, static, feeds_for(model))


@pytest.mark.parametrize("target", ["vnni512", "avx2", "vector", "c"])
def test_the_largest_products_of_codes(target, tmp_path):
    """Every code and zero point at its limit; 8001 products are too many for one tile."""
    if not runs_here(target):
        pytest.skip(f"this CPU does not run {target}")
    limits = [(x, y) for x in (0, 255) for y in (0, 255)]
    shapes = [("[3, 4608]", "[4608, 17]"), ("[3, 8001]", "[8001, 5]")]
    models = [cases.dynamic("uint8", a, b, zeros) for a, b in shapes for zeros in limits]
    made = [lowered(model, feeds_for(model), TARGETS[target][0]) for model in models]
    loaded = load([program for _, program in made], target, tmp_path)
    for compiled, (static, program) in zip(loaded, made, strict=True):
        for codes in limits:
            tensors = zip(program.inputs, codes, strict=True)
            hold(compiled, static, {t.name: np.full(t.layout.shape, c, "u1") for t, c in tensors})


def test_what_is_refused_is_named(everything):
    refused = {name: e for name, e in everything.items() if not isinstance(e, Held)}
    assert not set(refused) & set(cases.models())
    for name, error in refused.items():
        op_type = name.split()[1].split("-")[0]
        assert str(error).startswith(f"{op_type} node 'the_node' (output y0): ")
    assert {name.split()[1].split("-")[0] for name in refused} == REFUSED


def test_every_row_is_compared(everything):
    compared: set[str] = set()
    for held in everything.values():
        if isinstance(held, Held):
            compared |= {node.op_type for node in held.static.model.graph}
    rows = set(scalars.SCALARS) | set(heavy.RULES) | set(lower.MOVES)
    assert rows - compared == {"ArgMax"}


@pytest.mark.parametrize("op_type", cases.REFUSED)
def test_refusals_name_the_node(op_type):
    model = cases.REFUSED[op_type]
    with pytest.raises(
        UnsupportedOperatorError, match=f"^{op_type} node .*|^output 2 of {op_type}"
    ):
        lowered(model, feeds_for(model))


def test_codes_are_stored_or_only_moved(everything):
    """Every quantized tensor is a tap, except what moves elements of one, or is constant."""
    moves = lower.MOVES | {"GatherElements"}
    for name, held in everything.items():
        if not isinstance(held, Held) or name not in cases.models():
            continue
        taps = {tensor.name for tensor in held.compiled.program.taps}
        codes = set(quantized_tensors(held.static.model)) - taps
        for node in held.static.model.graph:
            assert node.op_type in moves or not {v.name for v in node.outputs} & codes, name


# -- Faults that must be found ---------------------------------------------------------------------

ORDINARY = model_of(
    "(float[64] a, float[64] b, float[64] c) => (float[64] y)", [], "p = Mul(a, b)  y = Sum(p, c)"
)
CANCELLING = model_of(
    "(float[64] a, float[64] b) => (float[64] y)", [], "s = Add(a, b)  y = Sub(s, b)"
)
TIMES_ZERO = model_of("(float[64] a) => (float[64] y)", ["float k = {0.0}"], "y = Mul(a, k)")
PLUS_ZERO = model_of(
    "(float[64] a) => (float[64] y)", ["float k = {0.0}", "float u = {1.0}"],
    "n = Mul(a, k)  p = Add(n, k)  q = Div(u, p)  y = Identity(q)",
)  # fmt: skip
ITSELF = model_of("(float[64] a) => (bool[64] y)", [], "n = Sqrt(a)  y = Equal(n, n)")
FUSED = pytest.mark.skipif(not runs_here("avx2"), reason="this CPU has no fused multiply-add")


def wrong(model: ir.Model, target: str, folder: Path) -> int:
    """Return how many elements differ."""
    feeds = feeds_for(model)
    static, program = lowered(model, feeds, TARGETS[target][0])
    (compiled,) = load([program], target, folder)
    expected = Simulator(static.model).run(feeds)
    return sum(differing(v, expected[n]) for n, v in compiled.run(feeds).items())


@pytest.mark.parametrize("target", ["avx2", "c"])
@pytest.mark.parametrize("model", [ORDINARY, CANCELLING, TIMES_ZERO, PLUS_ZERO, ITSELF])
@FUSED
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value)")
def test_floats_are_no_reals(model, target, tmp_path):
    assert wrong(model, target, tmp_path) == 0


def unchanged(body: Any) -> Any:
    return body


@FUSED
def test_without_the_fence_products_are_contracted(monkeypatch, tmp_path):
    monkeypatch.setattr(codegen, "_fenced", unchanged)
    assert wrong(ORDINARY, "avx2", tmp_path) > 0


@pytest.mark.parametrize("target", ["avx2", "c"])
@FUSED
def test_if_tvm_saw_floats_it_would_cancel_them(monkeypatch, target, tmp_path):
    monkeypatch.setattr(codegen, "_hidden", unchanged)
    assert wrong(CANCELLING, target, tmp_path) > 0


def half_up(x: Any) -> Any:
    """Round to the nearest integer, ties up."""
    return tirx.floor(x + arithmetic.const(0.5, "float32")).astype("int32")


def test_rounding_half_up_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(arithmetic, "round_to_int", half_up)
    with pytest.raises(AssertionError, match=r"^y: "):
        model = cases.quantize("uint8", 117, 0.5)
        check(model, feeds_for(model), "c", tmp_path)


# -- Order of operations, and memory ---------------------------------------------------------------


def test_a_constant_output_and_one_that_is_only_moved(tmp_path):
    model = model_of(
        "(uint8[2, 3] x) => (float[2] k, uint8[3, 2] y, uint8[2, 3] z)",
        [constant("c", [1.5, -0.0])],
        "k = Identity(c)  y = Transpose(x)  z = Identity(x)",
    )
    check(model, feeds_for(model), "c", tmp_path)


def test_an_output_that_is_another_one_moved_has_memory_of_its_own(tmp_path):
    model = model_of(
        "(float[2, 9] x) => (uint8[2, 9] y, uint8[1, 18] z, float[a, b] t)",
        [*cases.Q8, *cases.SW, cases.weights("u", 18, 5), constant("n", [1, 18], np.int64)],
        """y = QuantizeLinear(x, sy, zy)  z = Reshape(y, n)  d = DequantizeLinear(z, sy, zy)
           v = DequantizeLinear(u, sw, zw)  t = Gemm(d, v)""",
    )
    program = check(model, feeds_for(model), "c", tmp_path)
    assert len({tensor.buffer for tensor in program.outputs}) == 3


def test_an_output_given_twice_has_memory_twice(tmp_path):
    model = cases.quantize("uint8", 117, 0.5, "[7]")
    model.graph.outputs.append(model.graph.outputs[0])
    program = check(model, feeds_for(model), "c", tmp_path)
    assert len({tensor.buffer for tensor in program.outputs}) == 2


@pytest.mark.parametrize("target", ["avx2", "c"])
def test_zeros_keep_the_sign_that_limits_give_them(target, tmp_path):
    if not runs_here(target):
        pytest.skip(f"this CPU does not run {target}")
    model = model_of(
        "(float[40] x) => (float[40] y, float[40] z, float[40] t)",
        ["float zero = {0.0}", "float six = {6.0}", "float low = {-6.0}"],
        "y = Relu(x)  z = Clip(x, zero, six)  t = Clip(x, low, zero)",
    )
    x = np.resize(np.array([0.0, -0.0, -7.0, 7.0, np.nan, 3.0, -3.0], np.float32), 40)
    check(model, {"x": x}, target, tmp_path)


INFINITE = [
    ("ReduceMax <keepdims=0> (x)", "float", -np.inf),
    ("ReduceMin <keepdims=0> (x)", "float", np.inf),
    ("GlobalMaxPool(x)", "float[1, 1, 1, 1]", -np.inf),
    ("MaxPool <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (x)", "float[1, 1, 4, 5]", -np.inf),
]


@pytest.mark.parametrize(("made", "kind", "value"), INFINITE)
def test_extremes_of_infinities(made, kind, value, tmp_path):
    model = model_of(f"(float[1, 1, 4, 5] x) => ({kind} y)", [], f"y = {made}")
    check(model, {"x": np.full((1, 1, 4, 5), value, np.float32)}, "c", tmp_path)


@pytest.mark.parametrize("kind", ["uint8", "int64"])
def test_an_index_that_a_table_has_not_reads_no_other_memory(kind, tmp_path):
    table = np.arange(5) + 1
    model = model_of(
        f"({kind}[3] x) => (float[3] y)", [constant("t", table)],
        "i = Cast <to=7> (x)  y = GatherElements(t, i)",
    )  # fmt: skip
    _, program = lowered(model, {"x": np.zeros(3, kind)})
    (compiled,) = load([program], "c", tmp_path)
    wild = [200, 250, 255] if kind == "uint8" else [-(2**30), 7, 2**30]
    assert set(compiled.run({"x": np.array(wild, kind)})["y"]) <= {1.0, 5.0}


def test_constants_are_stored_once():
    model = model_of(
        "(uint8[2, 300] x) => (float[2, 300] y, float[2, 300] z)",
        [constant("c", np.arange(300)), constant("d", np.arange(300)), *cases.Q8],
        f"{cases.X}  y = Add(r, c)  z = Sub(r, d)",
    )
    _, program = lowered(model, feeds_for(model))
    assert [array.size for array in program.constants.values()] == [300]
