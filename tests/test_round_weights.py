"""round-weights: moments are exact, and no method is worse than it must be."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.calibrate import calibrate
from edgeq.checkpoint import Checkpoint
from edgeq.errors import RecipeError
from edgeq.float_weight import FloatWeight
from edgeq.graph import clone, remove_dead, to_bytes
from edgeq.layer_rounding import LayerRounding
from edgeq.linear_rows import LinearRows
from edgeq.numerics.qtype import FORMATS
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import linear_group
from edgeq.recipe import load_recipe
from edgeq.roles import is_activation
from edgeq.rounding_adaround import adaround
from edgeq.rounding_descent import descend
from edgeq.rounding_gptq import gptq
from edgeq.rounding_tasks import METHODS, gather, round_outputs, rounding_tasks
from edgeq.second_moments import float_results, second_moments
from edgeq.simulate import Simulator
from edgeq.targeting import find_target

QUANTIZE = "choose-qparams, insert-qdq, fold-clip, quantize-weights"
CONVS = {
    "plain": "p = Conv <pads: ints = [1, 1, 1, 1]> (x, w, b)",
    "strided": "p = Conv <strides: ints = [2, 1], pads: ints = [0, 1, 2, 0]> (x, w, b)",
    "dilated": "p = Conv <dilations: ints = [2, 1], pads: ints = [1, 0, 1, 0]> (x, w, b)",
    "grouped": "p = Conv <group: int = 2> (x, g, b)",
    "depthwise": "p = Conv <group: int = 4> (x, d, b)",
    "no bias": "p = Conv (x, w)",
}
SHAPES = {
    "w": (8, 4, 3, 2), "b": (8,), "g": (8, 2, 3, 2), "d": (8, 1, 3, 3), "u": (5, 8, 1, 1),
    "c": (5,), "v": (3, 8, 1, 1), "e": (6, 80), "f": (80, 6), "a": (6,),
}  # fmt: skip


def model_of(first: str = CONVS["plain"]) -> ir.Model:
    """Return a float model: a Conv, two of its result, and Gemms of one of these."""
    rng = np.random.default_rng(6)
    body = (
        f"{first}  r = Relu (p)  h = Conv (r, u, c)  k = Conv (r, v)"
        "  t = Slice (h, i, j, n)  l = Flatten (t)"
        "  y = Gemm <transB: int = 1> (l, e, a)  z = Gemm (l, f)"
    )
    weights = ["int64[2] i = {0, 0}", "int64[2] j = {4, 4}", "int64[2] n = {2, 3}"]
    for name, shape in SHAPES.items():
        numbers = ", ".join(f"{v:.6f}" for v in rng.normal(0.05, 0.3, shape).reshape(-1))
        weights.append(f"float[{','.join(map(str, shape))}] {name} = {{{numbers}}}")
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "g (float[N,4,7,6] x) => (float[N,6] y, float[N,6] z, float[N,3,A,B] k)"
        f" <{', '.join(weights)}> {{ {body} }}"
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    remove_dead(model.graph)
    infer_shapes(model)
    return model


def samples(count: int = 10) -> Any:
    rng = np.random.default_rng(7)
    return [{"x": rng.normal(0.5, 1, (1, 4, 7, 6)).astype(np.float32)} for _ in range(count)]


def quantized(reference: ir.Model, **settings: str) -> tuple[ir.Model, Context]:
    model = clone(reference)
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    context = Context(
        recipe=load_recipe("int8", {"weight.qtype": '"int4"', **settings}),
        capabilities=find_target("ort-cpu").capabilities,
        samples=samples(),
        calibration=calibrate(
            reference, samples(), [str(v.name) for v in values if is_activation(v)]
        ),
        reference=reference,
    )
    run_pipeline(QUANTIZE, model, context)
    return model, context


def layers(model: ir.Model) -> list[LinearRows]:
    found = [linear_group(node) for node in model.graph]
    return [rows for group in found if group is not None and (rows := LinearRows.of(group))]


def run(model: ir.Model, context: Context, options: str = "") -> int:
    """Run the pass; return how many layers it rounded."""
    (record,) = run_pipeline(f"round-weights{options}", model, context)
    return record.rewrites


def noise(model: ir.Model, reference: ir.Model) -> float:
    """Return the squared error of all outputs, in shares of their energy."""
    real, codes = Simulator(reference), Simulator(model)
    total = 0.0
    for feed in samples(16):
        wanted, found = real.run(feed), codes.run(feed)
        total += sum(
            float(((found[n] - wanted[n]) ** 2).sum() / (wanted[n] ** 2).sum()) for n in wanted
        )
    return total


@pytest.mark.parametrize("first", CONVS.values(), ids=CONVS)
def test_rows_times_weights_are_the_results(first):
    """The matrices are the op: products of them are the simulator's accumulators."""
    model, _ = quantized(model_of(first))
    simulator, feed = Simulator(model), {"x": np.concatenate([f["x"] for f in samples(3)])}
    found = layers(model)
    assert [rows.group.node.name for rows in found] == ["p", "h", "k", "y", "z"]
    for rows in found:
        group = rows.group
        name, result = str(group.x.codes.name), str(group.node.outputs[0].name)
        values = simulator.run(feed, [name, result])
        codes = group.w.array
        assert codes is not None
        weight = rows.rows(codes).reshape(rows.groups, -1, rows.depth)
        made = [
            np.moveaxis(x @ weight.swapaxes(1, 2), 0, 1).reshape(x.shape[1], -1)
            for _, x in rows.inputs(values[name])
        ]
        acc = np.concatenate(made)
        if group.bias is not None and group.bias.array is not None:
            acc += group.bias.array
        scale = np.asarray(group.x.qparams.scale * group.w.qparams.scale, np.float32)
        assert np.array_equal(acc.astype(np.float32) * scale, rows.results(values[result]))
        assert np.array_equal(rows.weight(rows.rows(codes)), codes)


@pytest.mark.parametrize("first", CONVS.values(), ids=CONVS)
def test_moments_are_exact_sums_over_all_samples(first):
    reference = model_of(first)
    model, _ = quantized(reference)
    simulator, found = Simulator(model), layers(model)
    names = float_results(found, reference)
    assert sorted(names.values()) == ["h", "k", "p", "y", "z"]
    names.pop("h")
    moments = second_moments(model, simulator, found, samples(), reference, names)
    for rows, moment in zip(found, moments, strict=True):
        name = str(rows.group.x.codes.name)
        xs, ys = [], []
        for feed in samples():
            codes = simulator.run(feed, [name])[name]
            xs.append(np.concatenate([x for _, x in rows.inputs(codes)], 1).astype(np.float64))
            if rows.group.node.name != "h":
                real = names[str(rows.group.node.outputs[0].name)]
                ys.append(rows.results(Simulator(reference).run(feed, [real])[real]))
        x = np.concatenate(xs, 1)
        assert moment.count == x.shape[1]
        assert np.array_equal(moment.inputs, x.swapaxes(1, 2) @ x)
        assert np.array_equal(moment.input_sums, x.sum(1))
        if rows.group.node.name == "h":
            assert moment.targets is None and moment.target_sums is None
            continue
        y = np.concatenate(ys).astype(np.float64) / rows.group.x.qparams.scale
        grouped = y.reshape(len(y), rows.groups, -1).transpose(1, 2, 0)
        assert moment.targets is not None and moment.target_sums is not None
        expected = (grouped @ x).reshape(moment.targets.shape)
        assert np.allclose(moment.targets, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())
        assert np.allclose(moment.target_sums, y.sum(0), rtol=1e-4, atol=1e-3)


def problem(seed: int, qtype: str, *, groups=1, outputs=3, depth=4, shift=False) -> LayerRounding:
    """A layer of correlated inputs, whose targets are those of other weights than its own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, 20, depth)) + rng.normal(size=(groups, 20, 1))
    h = x.swapaxes(1, 2) @ x
    scale = rng.uniform(0.2, 0.5, groups * outputs).astype(np.float32)
    weight = rng.normal(0, 0.6, (groups * outputs, depth)).astype(np.float32)
    shifts = rng.integers(0, 3, (1, depth)).astype(np.int32) if shift else None
    targets = (weight.reshape(groups, outputs, depth) + rng.normal(0, 0.1, depth)) @ h
    flat = FloatWeight(weight, FORMATS[qtype], 127, shifts, 0)
    return LayerRounding(flat, scale, h, targets)


@pytest.mark.parametrize("qtype", ["int2", "float4e2m1"])
def test_against_every_choice_of_codes(qtype):
    """On layers that are small enough to try everything, descent comes near to the best."""
    kind = FORMATS[qtype]
    codes = kind.values or tuple(range(kind.qmin, kind.qmax + 1))
    grid = np.array(list(product(codes, repeat=4 if kind.values is None else 3)), np.float64)
    gaps = dict.fromkeys(METHODS, 0.0)
    for seed in range(8):
        layer = problem(seed, qtype, depth=grid.shape[1])
        off = grid[:, None] * layer.step[0] - layer.wanted[0]  # (choices, outputs, depth)
        least = ((off @ layer.inputs[0]) * off).sum(-1).min(0)
        for method, rounded in METHODS.items():
            base = rounded(layer, 200)
            gap = layer.error(base)[0] - least
            assert np.isin(base, codes).all() and (gap >= -1e-9).all()
            gaps[method] += gap.sum()
    assert gaps["descent"] <= gaps["gptq"] < 0.6 * gaps["nearest"]
    assert gaps["adaround"] < 0.8 * gaps["nearest"]
    assert gaps["descent"] < 0.3 * gaps["nearest"]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    qtype=st.sampled_from(["int4", "float4e2m1", "int8"]),
    groups=st.integers(1, 3),
    shift=st.booleans(),
    depth=st.sampled_from([1, 5, 66]),
)
def test_descent_ends_where_no_single_code_is_better(seed, qtype, groups, shift, depth):
    layer = problem(seed, qtype, groups=groups, shift=shift, depth=depth)
    nearest = layer.nearest(layer.real, layer.step)
    base = descend(layer, nearest)
    error = layer.error(base)
    assert (error <= layer.error(nearest) * (1 + 1e-9)).all()
    slope = 2 * (base * layer.step - layer.wanted) @ layer.inputs
    curve = np.diagonal(layer.inputs, axis1=1, axis2=2)[:, None, :]
    for neighbour in (layer.weight.above(base), layer.weight.below(base - 0.5)):
        delta = (neighbour - base) * layer.step
        assert (delta * (slope + delta * curve) >= -1e-9 * (1 + error[..., None])).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_refit_never_makes_the_error_larger(seed):
    layer = problem(seed, "int4", groups=2, shift=seed == 1, depth=9)
    base = gptq(layer)
    fitted = layer.refitted(base)
    assert (fitted.error(base) <= layer.error(base) * (1 + 1e-6)).all()
    assert (fitted.error(base).sum() < layer.error(base).sum() * 0.99).all()
    zero = layer.refitted(np.zeros_like(base))
    assert np.array_equal(zero.scale, layer.scale)


def test_uncorrelated_inputs_are_rounded_to_nearest():
    """With H a multiple of the identity and targets of its own, nothing is better than nearest."""
    layer = problem(0, "int4", depth=6)
    plain = LayerRounding(layer.weight, layer.scale, 3.0 * np.eye(6)[None], 3.0 * layer.real)
    nearest = plain.nearest(plain.real, plain.step)
    assert np.array_equal(gptq(plain), nearest)
    assert np.array_equal(descend(plain, nearest), nearest)
    assert np.array_equal(adaround(plain, 400), np.clip(nearest, -8, 7))


@pytest.mark.parametrize("method", METHODS)
def test_tasks_cut_and_put_together(method, monkeypatch):
    """A layer in one task or in several: the same, up to the last bits of products."""
    layers_ = [problem(1, "int4", groups=2, outputs=7, shift=True), problem(2, "int4", outputs=5)]
    fixed = [np.arange(14) % 3 == 0, np.zeros(5, bool)]
    options = {"method": method, "refit": True, "iterations": 50}
    found = {}
    for size in (2, 128):
        monkeypatch.setattr("edgeq.rounding_tasks.OUTPUTS", size)
        tasks = rounding_tasks(layers_, fixed, **options)
        assert len(tasks) == (2 if size == 128 else 4 + 3)
        found[size] = gather(layers_, [round_outputs(task) for task in tasks])
    for few, one, layer, kept in zip(found[2], found[128], layers_, fixed, strict=True):
        assert np.array_equal(few["base"], one["base"])
        assert few["base"].shape == layer.targets.shape and few["error"].shape[0] == 2
        assert np.allclose(few["scale"], one["scale"]) and np.allclose(few["error"], one["error"])
        assert np.array_equal(one["scale"][kept], layer.scale[kept])
        assert not np.array_equal(one["scale"][~kept], layer.scale[~kept])


@pytest.mark.parametrize("first", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("method", ["gptq", "adaround", "descent"])
def test_the_results_come_nearer_to_those_of_the_float_model(method, first):
    reference = model_of(first)
    model, context = quantized(reference)
    before = noise(model, reference)
    assert run(model, context, f"{{method={method}, iterations=200}}") == 5
    assert noise(model, reference) < 0.7 * before
    for rows in layers(model):  # still integer ops, with the scale that a bias must have
        assert rows.group.w.array is not None and rows.group.w.array.dtype == np.int8
    assert len(layers(model)) == 5
    ((_, note),) = context.notes
    assert note.startswith(f"5 layers by {method}: 0.")


def test_scales_that_are_powers_of_two_stay():
    model, context = quantized(model_of(), **{"weight.scale": '"power_of_two"'})
    before = [rows.group.w.qparams.scale for rows in layers(model)]
    run(model, context)
    after = [rows.group.w.qparams.scale for rows in layers(model)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_one_scale_per_tensor():
    model, context = quantized(model_of(), **{"weight.granularity": '"per_tensor"'})
    before = noise(model, model_of())
    assert run(model, context) == 5
    assert noise(model, model_of()) < before


def test_a_layer_too_large_is_left_with_a_note(monkeypatch):
    model, context = quantized(model_of())
    before = to_bytes(model)
    assert run(model, context, "{megabytes=0}") == 0
    assert to_bytes(model) == before
    assert [text.split(":")[0] for _, text in context.notes] == ["p", "h", "k", "y", "z"]


def test_little_memory_takes_more_sweeps(monkeypatch):
    """Layers of one level, together or one by one: the same codes."""
    found = []
    for room in (2**30, 1):
        model, context = quantized(model_of())
        monkeypatch.setattr(
            "edgeq.passes.round_weights.moment_bytes", lambda rows, n=room: 2**31 // n
        )
        assert run(model, context, "{megabytes=4096}") == 5
        found.append(to_bytes(model))
    assert found[0] == found[1]


def test_spread_and_kept_work_gives_the_same_bytes(tmp_path):
    model, context = quantized(model_of())
    run(model, context)
    expected = to_bytes(model)
    checkpoint = Checkpoint(tmp_path / "c")
    for attempt in range(2):  # the second finds everything that the first kept
        model, context = quantized(model_of())
        context.checkpoint = checkpoint
        with ThreadPoolExecutor(2) as context.executor:
            run(model, context)
        assert to_bytes(model) == expected, attempt
        assert len(list(checkpoint.path.glob("*.npz"))) == 5


def test_an_unknown_method():
    model, context = quantized(model_of())
    with pytest.raises(RecipeError, match="choose nearest, gptq, adaround, descent"):
        run(model, context, "{method=best}")
