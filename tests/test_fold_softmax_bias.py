"""fold-softmax-bias: what it writes, that bits are equal everywhere, and that nothing leaks."""

import tracemalloc
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from edgeq.buckets import Buckets
from edgeq.certify import certify
from edgeq.cli import app
from edgeq.errors import RecipeError
from edgeq.graph import constant, to_bytes
from edgeq.onnx_api import infer_shapes
from edgeq.passing import run_pipeline
from edgeq.simulate import Simulator
from edgeq.softmax_bias import softmax
from tests.attended import (
    CASES,
    PASS,
    SCALES,
    WIDTH,
    Array,
    Case,
    D,
    Feeds,
    as_codes,
    corrected,
    kinds,
    prepared,
    quantized,
    reference,
    samples,
    sqnr,
)
from tests.test_exact_softmax import TARGET, everywhere

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
