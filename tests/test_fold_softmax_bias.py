"""fold-softmax-bias: what it writes, that bits are equal everywhere, and that nothing leaks."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from edgeq.buckets import Buckets
from edgeq.calibrate import Calibration
from edgeq.certify import certify
from edgeq.cli import app
from edgeq.errors import RecipeError
from edgeq.graph import clone, constant, to_bytes, to_text
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import QTYPES
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import REAL_NAME
from edgeq.recipe import load_recipe
from edgeq.simulate import Simulator
from edgeq.softmax_bias import softmax
from tests.test_exact_softmax import TARGET, everywhere

PASS = "fold-softmax-bias"
Array = NDArray[Any]
Feeds = dict[str, Array]
D, WIDTH = 6, 5
# Few steps for a row of probabilities: most of them round to 0 or 1.
SCALES = {"q": (0.02, 121), "k": (0.02, 130), "v": (0.02, 90), "p": (1 / 25, 0), "y": (0.012, 90)}


@dataclass(frozen=True)
class Case:
    """A float attention between `q`, `k`, `v` of two heads.

    Attributes:
        nodes: From the scores `s` to the Softmax's input `x`.
        inputs: Further inputs.
        guard: Behind the softmax `r`, which then is not `p`.
        scales: In place of those above.
        lead: The axes in front of rows and keys.
    """

    nodes: str = "x = Mul(s, c)"
    inputs: str = ""
    guard: str = ""
    scales: dict[str, tuple[float, int]] = field(default_factory=dict)
    lead: str = "B,2,"


COUNT = "n = Shape<start = -2, end = -1>(q) l = Squeeze(n) keys = Range(i0, l, i1)"
CAUSAL = f"{COUNT} rows = Unsqueeze(keys, v1) m = LessOrEqual(keys, rows)"
PADDED = "bool[B,1,1,L] pad"
CASES = {
    "none": Case(),
    "one head": Case(lead="B,1,"),
    "no heads": Case(lead="B,"),
    "causal": Case(f"{CAUSAL} x = Where(m, s, low)"),
    "causal, added": Case(f"{CAUSAL} b = Where(m, zero, low) x = Add(s, b)"),
    "chosen": Case("x = Where(keep, s, low)", "bool[1,1,L,L] keep"),
    "chosen where not": Case("x = Where(hide, low, s)", "bool[1,1,L,L] hide"),
    "padded": Case("x = Where(pad, s, low)", PADDED),
    "causal and padded": Case(f"{CAUSAL} t = Where(m, s, low) x = Where(pad, t, low)", PADDED),
    "an added input": Case("x = Add(s, bias)", "float[1,1,L,L] bias"),
    "guarded": Case(
        "x = Where(keep, s, infinity)",
        "bool[1,1,L,L] keep",
        "nan = IsNaN(r) p = Where(nan, zero, r)",
    ),
}


def reference(case: Case) -> ir.Model:
    softmax_nodes = f"r = Softmax(x) {case.guard}" if case.guard else "p = Softmax(x)"
    more = f", {case.inputs}" if case.inputs else ""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[{case.lead}L,{D}] q, float[{case.lead}{D},L] k,
           float[{case.lead}L,{WIDTH}] v{more}) => (float[{case.lead}L,{WIDTH}] y)
        <float c = {{0.7}}, float low = {{-1e9}}, float infinity = {{-inf}}, float zero = {{0}},
         int64 i0 = {{0}}, int64 i1 = {{1}}, int64[1] v1 = {{1}}>
        {{ s = MatMul(q, k) {case.nodes} {softmax_nodes} y = MatMul(p, v) }}"""
    )
    infer_shapes(model)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def samples(
    case: Case, length: int = 37, count: int = 6, batch: int = 2, spread: float = 1.2
) -> list[Feeds]:
    """Return feeds whose scores are nearly flat, and values with a mean."""
    random = np.random.default_rng(5)
    sizes = {"B": batch, "L": length}
    shape = [int(s) if s.isdecimal() else sizes[s] for s in case.lead.split(",") if s]
    found = []
    for _ in range(count):
        feeds: Feeds = {
            "q": random.normal(size=(*shape, length, D)) * spread,
            "k": random.normal(size=(*shape, D, length)) * spread,
            "v": random.normal(size=(*shape, length, WIDTH)) * 0.4 + random.uniform(-0.5, 1, WIDTH),
        }
        keep = np.asarray(random.random((1, 1, length, length)) < 0.7)
        keep[..., 0] = True
        keep[..., 4:5, :] = False  # a row that is hidden whole
        pad = np.arange(length) < random.integers(length // 2, length, (batch, 1, 1, 1))
        bias = np.where(keep, random.normal(size=keep.shape) * 0.1, -1e9)
        masks = {"keep": keep, "hide": ~keep, "pad": pad, "bias": bias}
        names = [text.split()[-1] for text in case.inputs.split(", ") if text]
        feeds |= {name: masks[name] for name in names}
        found.append({n: a if a.dtype == bool else a.astype(np.float32) for n, a in feeds.items()})
    return found


def prepared(
    case: Case, feeds: Sequence[Feeds], *, buckets: Buckets | None = None
) -> tuple[ir.Model, Context]:
    """Return the quantized model in front of the pass."""
    given = reference(case)
    return quantized(given, feeds, {**SCALES, **case.scales}, buckets)


def quantized(
    given: ir.Model,
    feeds: Sequence[Feeds],
    scales: dict[str, tuple[float, int]],
    buckets: Buckets | None = None,
    passes: str = "insert-qdq, exact-softmax",
) -> tuple[ir.Model, Context]:
    model: Any = clone(given)
    samples: Any = feeds
    qparams = {name: u8(*numbers) for name, numbers in scales.items()}
    context = Context(
        load_recipe("int8", {}),
        TARGET.capabilities,
        samples,
        calibration=Calibration({}, len(feeds), "", buckets=buckets),
        reference=given,
        qparams=qparams,
        max_dim=256,
    )
    run_pipeline(passes, model, context)
    infer_shapes(model)
    return model, context


def corrected(case: Case, feeds: Sequence[Feeds], options: str = "") -> tuple[ir.Model, Context]:
    model, context = prepared(case, feeds)
    run_pipeline(f"{PASS}{{{options}}}" if options else PASS, model, context)
    infer_shapes(model)
    return model, context


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def u8(scale: float, zero_point: int) -> QParams:
    return QParams(QTYPES["uint8"], np.array(scale, np.float32), np.array(zero_point, np.int32))


def as_codes(feeds: Feeds, names: str) -> list[Array]:
    """Return what the codes of some inputs stand for, float64."""
    return [u8(*SCALES[n]).fake_quantize(feeds[n]).astype(np.float64) for n in names]


def ideal(case: Case, feeds: Feeds) -> tuple[Array, Array]:
    """Return the result for the codes of q, k and v in float64, and which rows see something."""
    q, k, v = as_codes(feeds, "qkv")
    scores = q @ k * (0.7 if "Mul(s" in case.nodes else 1)
    kept: Array = np.ones(scores.shape, bool)
    if "keys" in case.nodes:
        kept &= np.tril(np.ones(scores.shape[-2:], bool))
    for name, flip in (("keep", False), ("hide", True), ("pad", False)):
        if name in feeds:
            kept &= feeds[name] ^ flip
    if "bias" in feeds:
        kept &= feeds["bias"] > -1e4
        scores = scores + np.where(feeds["bias"] > -1e4, feeds["bias"], 0)
    return softmax(scores, kept) @ v, np.any(kept, -1)


def sqnr(case: Case, model: ir.Model, feeds: Sequence[Feeds]) -> float:
    """Return the SQNR of the result over rows that see something."""
    simulator, signal, noise = Simulator(model), 0.0, 0.0
    for feed in feeds:
        wanted, seen = ideal(case, feed)
        (found,) = simulator.run(feed).values()
        error = (found - wanted)[seen]
        signal, noise = signal + float((wanted[seen] ** 2).sum()), noise + float((error**2).sum())
    return 10 * float(np.log10(signal / noise))


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_bits_are_equal_everywhere_and_nearer_to_float(name: str) -> None:
    case = CASES[name]
    feeds = samples(case)
    before, _ = prepared(case, feeds)
    model, context = corrected(case, feeds, "form=beta")
    assert certify(model, TARGET.capabilities, 256).unproven == ()
    for length in (1, 2, 37, 61):
        everywhere(model, samples(case, length, 1)[0])
    (row,) = context.softmax_rows
    assert row.attention == "y" and row.form.startswith("beta")
    assert abs(row.row_sum_before - 1) > 0.02 > abs(row.row_sum_after - 1)
    fresh = samples(case, 41, 3)
    gained = sqnr(case, model, fresh) - sqnr(case, before, fresh)
    assert gained > 1.5
    assert row.sqnr_after_db is not None and row.sqnr_before_db is not None
    assert row.sqnr_after_db - row.sqnr_before_db == pytest.approx(gained, abs=0.8)


@pytest.mark.parametrize(
    ("name", "made", "products"),
    [
        ("none", "ReduceSum", 2),
        ("no heads", "ReduceSum", 2),
        ("causal", "CumSum", 2),
        ("causal, added", "CumSum", 2),
        ("chosen", "MatMulInteger", 3),
        ("causal and padded", "MatMulInteger", 3),
        ("an added input", "MatMulInteger", 3),
    ],
)
def test_what_a_query_sees_is_summed_the_cheapest_way(name: str, made: str, products: int) -> None:
    case = CASES[name]
    feeds = samples(case)
    before, _ = prepared(case, feeds)
    model, _ = corrected(case, feeds, "form=beta")
    assert kinds(model).count(made) > kinds(before).count(made)
    assert kinds(model).count("MatMulInteger") == products
    assert "MatMul" in kinds(before) and "MatMul" not in kinds(model)
    assert kinds(model).count("CumSum") == (made == "CumSum")


@pytest.mark.parametrize("form", ["beta, granularity=head", "row", "row+beta"])
@pytest.mark.parametrize("name", ["causal", "chosen", "causal and padded"])
def test_no_hidden_token_reaches_a_result(name: str, form: str) -> None:
    """Values of keys that a mask hides may be anything."""
    case = CASES[name]
    feeds = samples(case)
    model, _ = corrected(case, feeds, f"form={form}")
    feed, simulator = feeds[0], Simulator(model)
    (first,) = simulator.run(feed).values()
    v = feed["v"].copy()
    v[:, :, 20:] = -1.5
    (second,) = simulator.run({**feed, "v": v}).values()
    if name == "chosen":
        seen: Array = np.array(feed["keep"][0, 0, :, 20:].any(-1))
        seen[4] = True  # hidden whole: uniform
        assert np.array_equal(first[:, :, ~seen], second[:, :, ~seen])
    else:
        assert np.array_equal(first[:, :, :20], second[:, :, :20])
    assert not np.array_equal(first, second)


def test_a_row_that_is_hidden_whole_is_left_as_it_is() -> None:
    for name in ("chosen", "guarded"):
        case = CASES[name]
        feeds = samples(case)
        before, _ = prepared(case, feeds)
        model, _ = corrected(case, feeds, "form=beta")
        (plain,), (found,) = (Simulator(m).run(feeds[0]).values() for m in (before, model))
        assert np.array_equal(plain[:, :, 4], found[:, :, 4])
        assert not np.array_equal(plain, found)


# -- a scale for each row --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["row", "row+beta"])
@pytest.mark.parametrize("name", CASES)
def test_rows_have_equal_bits_everywhere_and_are_nearer_to_float(name: str, form: str) -> None:
    case = CASES[name]
    feeds = samples(case)
    before, _ = prepared(case, feeds)
    model, context = corrected(case, feeds, f"form={form}")
    assert certify(model, TARGET.capabilities, 256).unproven == ()
    for length in (1, 2, 37, 61):
        everywhere(model, samples(case, length, 1)[0])
    (row,) = context.softmax_rows
    assert row.form == form and abs(row.row_sum_before - 1) > 0.02 > abs(row.row_sum_after - 1)
    assert row.row_sum_after == 1 or form == "row"
    fresh = samples(case, 41, 3)
    gained = sqnr(case, model, fresh) - sqnr(case, before, fresh)
    assert gained > 10
    assert row.sqnr_after_db is not None and row.sqnr_before_db is not None
    if "LessOrEqual" not in case.nodes:  # first rows of causal ones leave the range of the result
        assert row.sqnr_after_db - row.sqnr_before_db == pytest.approx(gained, abs=1.5)


def behind_terms(model: ir.Model) -> list[str]:
    """Return the nodes behind the sum of the terms, one in a line."""
    lines = to_text(model).splitlines()
    first = next(number for number, line in enumerate(lines) if "= ReduceSum" in line)
    nodes = [line.partition("] ")[2] for line in lines[first:] if "= " in line]
    return [line.replace("y_replaced_", "") for line in nodes]


BEFORE = """\
p_sum = ReduceSum <keepdims: int = 1> (p_terms, p_integers)
p_scales = Mul (p_sum, p_scale_1)
p_row_scales = Reshape (p_scales, p_integers)
p_shape = Shape (p_terms)
p_length = Slice (p_shape, p_integers, p_integers_1)
p_matrix = Concat <axis: int = 0> (p_integers, p_length)
p_rows = Reshape (p_terms, p_matrix)
p_row_codes = QuantizeLinear <axis: int = 0, output_dtype: int = 2> (p_rows, p_row_scales)
p_q = Reshape (p_row_codes, p_shape)
v_dq = DequantizeLinear (v_q, v_scale, v_zero_point)
p_dq = DequantizeLinear (p_q, p_scale, p_zero_point)
y_replaced = MatMul (p_dq, v_dq)
y_q = QuantizeLinear (y_replaced, y_scale, y_zero_point)
y = DequantizeLinear (y_q, y_scale, y_zero_point)"""
ROW = """\
p_sum = ReduceSum <keepdims: int = 1> (p_terms, p_integers)
quantizelinear = QuantizeLinear (p_terms, constant_1, constant)
matmulinteger = MatMulInteger (quantizelinear, v_q, constant, constant_2)
cast = Cast <to: int = 1> (matmulinteger)
div = Div (cast, p_sum)
y_q = QuantizeLinear (div, constant_3, constant_2)
y = DequantizeLinear (y_q, y_scale, y_zero_point)"""
CAUSAL_ROW_AND_BETA = """\
p_sum = ReduceSum <keepdims: int = 1> (p_terms, p_integers)
quantizelinear = QuantizeLinear (p_terms, constant_1, constant)
matmulinteger = MatMulInteger (quantizelinear, v_q, constant, constant_2)
cast = Cast <to: int = 1> (matmulinteger)
cast_1 = Cast <to: int = 1> (quantizelinear)
reducesum = ReduceSum <keepdims: int = 1> (cast_1, constant_3)
div = Div (p_sum, constant_1)
sub = Sub (div, reducesum)
cast_2 = Cast <to: int = 2> (m)
cast_3 = Cast <to: int = 1> (cast_2)
reducesum_1 = ReduceSum <keepdims: int = 1> (cast_3, constant_3)
max = Max (reducesum_1, constant_4)
div_1 = Div (sub, max)
cast_4 = Cast <to: int = 6> (v_q)
sub_1 = Sub (cast_4, constant_5)
cumsum = CumSum (sub_1, constant_6)
cast_5 = Cast <to: int = 1> (cumsum)
mul = Mul (cast_5, div_1)
add = Add (cast, mul)
div_2 = Div (add, p_sum)
y_q = QuantizeLinear (div_2, constant_7, constant_2)
y = DequantizeLinear (y_q, y_scale, y_zero_point)"""
PADDED_ROW_AND_BETA = (
    CAUSAL_ROW_AND_BETA.replace("(m)", "(pad)")
    .replace(
        """\
cast_4 = Cast <to: int = 6> (v_q)
sub_1 = Sub (cast_4, constant_5)
cumsum = CumSum (sub_1, constant_6)
cast_5 = Cast <to: int = 1> (cumsum)
mul = Mul (cast_5, div_1)""",
        """\
matmulinteger_1 = MatMulInteger (cast_2, v_q, constant, constant_2)
cast_4 = Cast <to: int = 1> (matmulinteger_1)
mul = Mul (cast_4, div_1)""",
    )
    .replace("constant_7", "constant_5")
)


@pytest.mark.parametrize(
    ("name", "form", "after"),
    [
        ("none", "row", ROW),
        ("causal", "row", ROW),
        ("padded", "row", ROW),
        ("causal", "row+beta", CAUSAL_ROW_AND_BETA),
        ("padded", "row+beta", PADDED_ROW_AND_BETA),
    ],
)
def test_what_is_written_behind_the_terms(name: str, form: str, after: str) -> None:
    case = CASES[name]
    feeds = samples(case)
    before, _ = prepared(case, feeds)
    model, _ = corrected(case, feeds, f"form={form}")
    assert behind_terms(before) == BEFORE.splitlines()
    assert behind_terms(model) == after.splitlines()


def test_an_open_length_is_counted_without_the_codes_that_are_gone() -> None:
    case = CASES["none"]
    model, _ = corrected(case, samples(case), "form=row+beta")
    assert kinds(model).count("Shape") == 1 and "Concat" not in kinds(model)


def test_rows_take_the_place_of_codes_with_one_scale() -> None:
    """The report shows no figures in steps of a scale that is gone."""
    case = CASES["none"]
    feeds = samples(case)
    model, context = corrected(case, feeds, "gain=2")
    assert context.softmax_rows[0].form == "row"
    assert kinds(model).count("MatMulInteger") == 2 and "MatMul" not in kinds(model)
    codes = {v.metadata_props.get(REAL_NAME) for node in model.graph for v in node.outputs}
    assert "p" in codes and "p" not in context.qparams


@pytest.mark.parametrize("name", ["chosen", "guarded"])
@pytest.mark.parametrize("form", ["row", "row+beta"])
def test_a_row_that_sees_nothing_is_uniform_or_zero(name: str, form: str) -> None:
    case = CASES[name]
    feeds = samples(case)
    model, _ = corrected(case, feeds, f"form={form}")
    (found,) = Simulator(model).run(feeds[0]).values()
    (v,) = as_codes(feeds[0], "v")
    wanted = v.mean(-2) if name == "chosen" else np.zeros_like(v[..., 0, :])
    assert np.abs(found[:, :, 4] - wanted).max() <= SCALES["y"][0] / 2 + 1e-6


def test_what_costs_more_than_rows_must_win_more() -> None:
    case = CASES["none"]
    for gain, form in (("0.25", "row+beta"), ("2", "row"), ("99", "row")):
        _, context = corrected(case, samples(case), f"gain={gain}")
        assert context.softmax_rows[0].form == form


# -- memory and time -------------------------------------------------------------------------------


def in_a_row(count: int) -> ir.Model:
    """Return attentions, one behind the other, of 300 keys."""
    nodes = " ".join(
        f"s{n} = MatMul(a{n}, k) p{n} = Softmax(s{n}) a{n + 1} = MatMul(p{n}, v)"
        for n in range(count)
    )
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[1,2,300,{D}] a0, float[1,2,{D},300] k, float[1,2,300,{D}] v)
          => (float[1,2,300,{D}] a{count}) {{ {nodes} }}"""
    )
    infer_shapes(model)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def test_many_attentions_need_one_run_for_a_sample_and_no_more_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(1)
    shapes = {"a0": (1, 2, 300, D), "k": (1, 2, D, 300), "v": (1, 2, 300, D)}
    feeds = [
        {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    ]
    runs, observe = [0], Simulator.observe

    def counted(*args: Any) -> Any:
        runs[0] += 1
        return observe(*args)

    monkeypatch.setattr(Simulator, "observe", counted)
    peaks = []
    for count in (1, 8):
        scales = {name: SCALES["v"] for name in ("a0", "k", "v")}
        scales |= {f"p{n}": (1 / 25, 0) for n in range(count)}
        scales |= {f"a{n + 1}": SCALES["y"] for n in range(count)}
        model, context = quantized(in_a_row(count), feeds, scales)
        tracemalloc.start()
        run_pipeline(PASS, model, context)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(context.softmax_rows) == count
    assert runs == [4]
    assert peaks[0] > 2**20 and peaks[1] < 1.2 * peaks[0]


# -- forms -----------------------------------------------------------------------------------------


def uneven(batch: int = 2) -> list[Feeds]:
    """Return feeds of two heads: one nearly flat, one that looks at few keys."""
    feeds = samples(CASES["none"], batch=batch)
    for feed in feeds:
        feed["q"][:, 1] *= 4
    return feeds


def test_a_head_has_a_beta_of_its_own_where_that_wins() -> None:
    model, context = corrected(CASES["none"], uneven(), "form=beta")
    assert context.softmax_rows[0].form == "beta by head"
    shares = [c for node in model.graph if node.op_type == "Mul" for v in node.inputs
              if (c := constant(v)) is not None and c.shape == (2, 1, 1)]  # fmt: skip
    assert len(shares) == 1 and shares[0][0] > 2 * shares[0][1] > 0
    everywhere(model, uneven(3)[0])
    _, context = corrected(CASES["none"], uneven(), "form=beta, granularity=tensor")
    assert context.softmax_rows[0].form == "beta by tensor"
    _, context = corrected(CASES["none"], samples(CASES["none"]), "form=beta")
    assert context.softmax_rows[0].form == "beta by tensor"  # heads alike: no more is won


def test_the_scale_form_costs_no_node() -> None:
    case = CASES["none"]
    feeds = samples(case, spread=1.5)
    before, _ = prepared(case, feeds)
    model, context = corrected(case, feeds, "form=scale")
    assert context.softmax_rows[0].form == "scale by tensor"
    assert kinds(model) == kinds(before)
    everywhere(model, feeds[0], ("extended", "all"))
    assert TARGET.kernels(model)["QLinearMatMul"] == 1
    assert sqnr(case, model, feeds) > sqnr(case, before, feeds) + 0.25


def test_a_power_of_two_stays_one() -> None:
    case = Case(scales={"p": (2.0**-6, 0)})
    feeds = samples(case, spread=1.5)
    _, context = corrected(case, feeds, "form=scale")
    assert context.softmax_rows[0].form == "none"


@pytest.mark.parametrize("options", ["form=none", "form=beta, gain=99", "form=scale, gain=99"])
def test_nothing_is_changed_where_nothing_is_won(options: str) -> None:
    case = CASES["none"]
    feeds = samples(case)
    before, _ = prepared(case, feeds)
    model, context = corrected(case, feeds, options)
    assert to_bytes(model) == to_bytes(before)
    rows = context.softmax_rows
    assert [row.form for row in rows] == ([] if options == "form=none" else ["none"])
    assert all(row.row_sum_before == row.row_sum_after != 1 for row in rows)


def test_fine_codes_need_no_correction() -> None:
    case = Case(scales={"p": (1 / 255 / 4, 0)})
    feeds = samples(case, spread=0.8)
    before, _ = prepared(case, feeds)
    model, context = corrected(case, feeds, "form=beta")
    assert to_bytes(model) == to_bytes(before) and context.softmax_rows[0].form == "none"


@pytest.mark.parametrize("options", ["form=zero_point", "form=zero_point, granularity=head"])
def test_a_zero_point_cannot_hold_the_correction(options: str) -> None:
    case = CASES["none"]
    with pytest.raises(RecipeError, match=r"at most half a step, so the zero point .* round back"):
        corrected(case, samples(case), options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("form=gamma", "form = 'gamma'; one of auto, none, row, scale, beta, row.beta"),
        ("samples=0", "samples is at least 1"),
        ("granularity=key", "granularity = 'key'; one of auto, tensor, head, timestep"),
        ("granularity=timestep", "--input-range timestep=0:999"),
    ],
)
def test_other_options_are_refused(options: str, says: str) -> None:
    case = CASES["none"]
    with pytest.raises(RecipeError, match=says):
        corrected(case, samples(case), options)


def test_the_command_says_what_to_change(folder: Path) -> None:
    text = resources.files("edgeq.recipes").joinpath("int8.toml").read_text("utf-8")
    (folder / "r.toml").write_text(text.replace(PASS, f"{PASS}{{form=zero_point}}"))
    arguments = ["compile", "model.onnx", "--target", "ort-cpu", "--recipe", "r.toml"]
    found = CliRunner().invoke(app, [*arguments, "--calibration", "calibration.npz", "-o", "out"])
    assert found.exit_code == 2 and not (folder / "out").exists()
    assert "round back" in " ".join(found.stderr.split())


def test_the_same_bytes_twice() -> None:
    case = CASES["causal and padded"]
    first, second = (corrected(case, samples(case))[0] for _ in range(2))
    assert to_bytes(first) == to_bytes(second)


# -- timesteps -------------------------------------------------------------------------------------


def stepped(lead: str = "B", batch: int = 2) -> tuple[ir.Model, list[Feeds]]:
    """Return an attention with a timestep: flat at first, the later, the sharper it looks."""
    model = reference(CASES["none"])
    shape = ir.Shape([ir.SymbolicDim(lead)] if lead else [])
    step = ir.Value(name="t", shape=shape, type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(step)
    feeds = samples(CASES["none"], count=24, batch=batch)
    random = np.random.default_rng(8)
    for feed in feeds:
        feed["t"] = random.integers(5, 45, (batch,) if lead else ())
        far = np.reshape(feed["t"], (-1, 1, 1, 1))
        feed["q"] = (feed["q"] * (far - 5) / 25).astype(np.float32)
    return model, feeds


@pytest.mark.parametrize("lead", ["B", ""])
def test_a_beta_for_each_part_of_the_timesteps(lead: str) -> None:
    given, feeds = stepped(lead, 2 if lead else 1)
    buckets = Buckets("t", 5, 44, 4)
    before, _ = quantized(given, feeds, SCALES, buckets)
    model, context = quantized(given, feeds, SCALES, buckets)
    run_pipeline(f"{PASS}{{form=beta}}", model, context)
    infer_shapes(model)
    assert context.softmax_rows[0].form == "beta by timestep"
    assert certify(model, TARGET.capabilities, 256).unproven == ()
    (table,) = [constant(n.inputs[0]) for n in model.graph if n.op_type == "Gather"]
    assert table is not None and table.shape == (4, 2)
    assert np.all(table[0] < 0) and np.all(table[2] > 0.05)  # 1 / 37 is rounded to 1 / 25
    for feed in feeds[:4]:
        everywhere(model, feed, ("none", "all"))
    for t in (5, 14, 15, 24, 25, 44):
        feed = {**feeds[0], "t": np.full_like(feeds[0]["t"], t)}
        everywhere(model, feed, ("all",))
        simulated = Simulator(model)
        (gathered,) = [n.outputs[0].name for n in model.graph if n.op_type == "Gather"]
        shares = simulated.run(feed, [str(gathered)])[str(gathered)]
        assert np.array_equal(shares.reshape(-1, 2)[0], table[(t - 5) // 10])
    assert sqnr(CASES["none"], model, feeds) > sqnr(CASES["none"], before, feeds) + 1


def test_a_finer_beta_must_win_more() -> None:
    given, feeds = stepped()
    for feed in feeds:
        feed["q"] = samples(CASES["none"], count=1)[0]["q"]
    model, context = quantized(given, feeds, SCALES, Buckets("t", 5, 44, 4))
    run_pipeline(f"{PASS}{{form=beta}}", model, context)
    assert context.softmax_rows[0].form == "beta by tensor" and "Gather" not in kinds(model)


# -- constant values -------------------------------------------------------------------------------


def of_memory(bias: bool, output: str = "y", flat: bool = True) -> ir.Model:
    """Return an attention to 45 constant values, the product written as a Gemm."""
    random = np.random.default_rng(2)
    numbers = ", ".join(f"{x:.5f}" for x in random.normal(0.4, 0.5, 45 * WIDTH))
    bias_text = f", float[{WIDTH}] b = {{0.1, -0.2, 0.3, 0, 1}}" if bias else ""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[B,2,L,{D}] q, float[B,2,{D},45] k) => (float[N,{WIDTH}] {output})
        <float[45,{WIDTH}] w = {{{numbers}}}, int64[2] rows = {{-1, 45}}{bias_text}>
        {{ s = MatMul(q, k) p = Softmax(s) r = Reshape(p, rows)
           y = Gemm(r, w{", b" if bias else ""}) }}"""
    )
    infer_shapes(model)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("coded", [True, False])
def test_constant_values_take_the_correction_into_a_bias(bias: bool, coded: bool) -> None:
    given = of_memory(bias)
    random = np.random.default_rng(3)
    feeds = [
        {
            "q": random.normal(size=(2, 2, 7, D)).astype(np.float32),
            "k": random.normal(size=(2, 2, D, 45)).astype(np.float32) * np.float32(0.5),
        }
        for _ in range(5)
    ]
    scales = {n: SCALES[n] for n in ("q", "k", "p")} | {"r": SCALES["p"]}
    if coded:
        scales["y"] = (0.012, 90)
    passes = "insert-qdq, quantize-weights, exact-softmax"
    before, _ = quantized(given, feeds, scales, passes=passes)
    model, context = quantized(given, feeds, scales, passes=passes)
    run_pipeline(PASS, model, context)
    infer_shapes(model)
    (row,) = context.softmax_rows
    assert row.form == "beta by tensor" and row.row_sum_before < 0.97
    more = [] if bias else ["DequantizeLinear"]  # of a constant
    assert sorted(kinds(model)) == sorted([*kinds(before), *more])
    assert certify(model, TARGET.capabilities, 256).unproven == ()
    everywhere(model, feeds[0], ("extended", "all") if coded else ("all",))
    assert TARGET.kernels(model)["QGemm"] == 1
    noise = []
    for m in (before, model):
        errors = []
        for feed in feeds:
            (found,) = Simulator(m).run(feed).values()
            q, k = as_codes(feed, "qk")
            w = constant(given.graph.initializers["w"])
            b = constant(given.graph.initializers["b"]) if bias else 0
            assert w is not None and b is not None
            wanted = softmax(q @ k).reshape(-1, 45) @ w + b
            errors.append(np.square(found - wanted).sum())
        noise.append(sum(errors))
    assert noise[1] < noise[0] / 2
