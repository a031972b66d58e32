"""Accumulators of a chosen width: the bound holds for every input, and costs little."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeq.accumulators import accumulator_bound
from edgeq.certify import certify
from edgeq.errors import ModelError, RecipeError
from edgeq.float_weight import FloatWeight
from edgeq.graph import clone, constant
from edgeq.numerics.l1_ball import project
from edgeq.numerics.qtype import FORMATS, INT8
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import linear_group
from edgeq.recipe import load_recipe
from edgeq.simulate import Simulator
from edgeq.targeting import Capabilities

NO_SAMPLES: Any = ()
UNITS = arrays(np.float32, st.integers(1, 6), elements=st.integers(-40, 40).map(lambda n: n / 8))


def context(**float_weights) -> Context:
    found = Context(load_recipe("int8"), Capabilities(), NO_SAMPLES)
    found.float_weights |= float_weights
    return found


def conv(seed=0, *, zero=3, clip=None, outputs=6, inputs=8, power=False, bias=True, per="channel"):
    """Return a quantized Conv with random weights, and the weights in float."""
    random = np.random.default_rng(seed)
    weight = random.standard_t(3, (outputs, inputs, 3, 3)).astype(np.float32)
    scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
    scale = np.exp2(np.ceil(np.log2(scale))) if power else scale
    scale = np.full_like(scale, scale.max()) if per == "tensor" else scale
    codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    count = outputs if per == "channel" else 1
    zeros = ", ".join(["0"] * count)
    shape = f"[{outputs}]" if per == "channel" else ""

    def numbers(array):
        return ", ".join(f"{v:.9g}" for v in np.ravel(array))

    scale = scale.astype(np.float32)[:count]
    sx = np.float32(0.0625)
    biases = random.integers(-9000, 9000, outputs)
    third = (
        "b = DequantizeLinear <axis: int = 0> (bq, bs, bz) y = Conv (x, w, b)"
        if bias
        else "y = Conv (x, w)"
    )
    # A QuantizeLinear with fewer codes: the Clip that fold-clip leaves behind it.
    codes_of = "q" if clip is None else "k"
    limit = "" if clip is None else "k = Clip (q, least, most)"
    axis = "<axis: int = 0>" if per == "channel" else ""
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 21]> g (uint8[N,{inputs},5,5] q)'
        f" => (uint8[N,{outputs},3,3] c) <float sx = {{{sx:.9g}}}, uint8 zx = {{{zero}}},"
        f" uint8 least = {{0}}, uint8 most = {{{clip or 0}}},"
        f" int8[{outputs},{inputs},3,3] wq = {{{numbers(codes)}}},"
        f" float{shape} ws = {{{numbers(scale)}}}, int8{shape} wz = {{{zeros}}},"
        f" int32[{outputs}] bq = {{{numbers(biases)}}}, int32{shape} bz = {{{zeros}}},"
        f" float{shape} bs = {{{numbers(sx * scale)}}}, float sy = {{0.25}}, uint8 zy = {{7}}>"
        f" {{ {limit} x = DequantizeLinear ({codes_of}, sx, zx)"
        f" w = DequantizeLinear {axis} (wq, ws, wz) {third.replace('<axis: int = 0>', axis)}"
        " c = QuantizeLinear (y, sy, zy) }"
    )
    infer_shapes(model)
    return model, weight


def group_of(model):
    (group,) = [g for node in model.graph if (g := linear_group(node)) is not None]
    return group


def largest_sum(group, low, high):
    """Return the largest partial sum of any channel, over inputs at their ends."""
    weight = group.w.array.astype(np.int64).reshape(len(group.w.array), -1)
    bias = np.zeros(len(weight)) if group.bias is None else group.bias.array.astype(np.int64)
    ends = np.array([low, high]) - int(group.x.qparams.zero_point)
    products = [np.where(weight > 0, first, last) * weight for first in ends for last in ends]
    starts = (bias[:, None], 0)
    return max(int(np.abs(s + np.cumsum(p, axis=1)).max()) for p in products for s in starts)


@pytest.mark.parametrize("bits", [16, 18, 20, 24])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("a zero point", {}),
        ("no zero point", {"zero": 0}),
        ("in the middle", {"zero": 128}),
        ("no bias", {"bias": False}),
        ("powers of two", {"power": True}),
        ("one scale", {"per": "tensor"}),
        ("codes of 4 bits", {"clip": 15}),
    ],
)
def test_every_input_fits(rule, options, bits):
    model, weight = conv(**options)
    before = accumulator_bound(group_of(model), 1)
    run_pipeline(f"bound-accumulators{{bits={bits}}}", model, context(wq=source(model, weight)))
    group, limit = group_of(model), 2 ** (bits - 1) - 1
    bound = accumulator_bound(group, 1)
    assert before is not None and bound is not None and bound <= limit
    assert largest_sum(group, 0, options.get("clip", 255)) <= bound
    # No channel gives up more than it has to: where one was cut, the bound is nearly used.
    if before > limit:
        assert bound > 0.7 * limit
    (proof,) = [p for p in certify(model, Capabilities()).proofs if p.op_type == "Conv"]
    assert proof.kind == "integer" and proof.detail.endswith(f"accumulator fits int{bits}")
    if options.get("power"):
        assert np.all(np.frexp(group.w.qparams.scale)[0] == 0.5)


def source(model, weight):
    return FloatWeight(weight, INT8, 127, axis=group_of(model).w.qparams.axis)


def test_an_overflow_that_is_planted_is_seen():
    model, weight = conv()
    run_pipeline("bound-accumulators", model, context(wq=source(model, weight)))
    assert not certify(model, Capabilities()).unproven
    value = group_of(model).bias.codes
    value.const_value = ir.tensor(value.const_value.numpy() * 100, name=value.name)
    (proof,) = certify(model, Capabilities()).unproven
    assert "beyond int16, which was asked for" in proof.detail


def test_it_is_better_than_larger_scales_alone():
    model, weight = conv(inputs=16, bias=False)
    run_pipeline("bound-accumulators", model, context(wq=source(model, weight)))
    group, budget = group_of(model), (2**15 - 1) // 252
    found = np.square(group.w.qparams.dequantize(group.w.array) - weight).sum(axis=(1, 2, 3))
    for error, row in zip(found, weight, strict=True):
        scales = np.exp2(np.arange(-6, 4, 0.05))[:, None, None, None]
        codes = np.rint(row / scales)
        fits = np.abs(codes).sum(axis=(1, 2, 3)) <= budget
        errors = np.square(codes * scales - row).sum(axis=(1, 2, 3))
        assert fits.any() and error < errors[fits].min()


def test_channels_that_fit_keep_their_bits():
    model, weight = conv()
    group = group_of(model)
    tame = group.w.array.copy()
    tame[0] = np.clip(tame[0], -1, 1)
    group.w.codes.const_value = ir.tensor(tame, name="wq")
    biases = group.bias.array.copy()
    run_pipeline("bound-accumulators", model, context(wq=source(model, weight)))
    after = group_of(model)
    assert after.w.array[0].tobytes() == tame[0].tobytes()
    assert after.bias.array[0] == biases[0]
    assert after.w.array[1].tobytes() != tame[1].tobytes()


@pytest.mark.parametrize("name", ["int4", "float4e2m1", "float4e3m0"])
@pytest.mark.parametrize("shifted", [False, True])
def test_codes_stay_on_their_grid(name, shifted):
    model, weight = conv(1)
    qtype = FORMATS[name]
    shift = np.arange(8, dtype=np.int32).reshape(1, 8, 1, 1) % 2 if shifted else None
    top = max(abs(qtype.qmin), qtype.qmax)
    limit = 32 if shifted and top == 64 else top
    made = FloatWeight(weight, qtype, limit, shift, axis=0)
    run_pipeline("bound-accumulators", model, context(wq=made))
    base = group_of(model).w.array.astype(np.int32)
    base = base >> (0 if shift is None else shift)
    allowed = set(qtype.values or range(qtype.qmin, qtype.qmax + 1))
    assert set(np.unique(base).tolist()) <= allowed
    assert len(np.unique(base)) > 2


def test_twice_is_once():
    model, weight = conv()
    run_pipeline("bound-accumulators", model, context(wq=source(model, weight)))
    again = clone(model)
    run_pipeline("bound-accumulators", again, context(wq=source(model, weight)))
    for name, value in model.graph.initializers.items():
        first, second = constant(value), constant(again.graph.initializers[name])
        assert first is not None and second is not None and first.tobytes() == second.tobytes()


def test_the_simulator_computes_with_it():
    model, weight = conv()
    run_pipeline("bound-accumulators", model, context(wq=source(model, weight)))
    q = np.random.default_rng(0).integers(0, 256, (2, 8, 5, 5)).astype(np.uint8)
    assert len(np.unique(Simulator(model).run({"q": q})["c"])) > 3


def test_two_values_of_run_time_are_refused():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]> g (uint8[1,4,64] p, uint8[1,64,4] q)'
        " => (uint8[1,4,4] c) <float s = {1}, uint8 z = {0}> {"
        " a = DequantizeLinear (p, s, z) b = DequantizeLinear (q, s, z) y = MatMul (a, b)"
        " c = QuantizeLinear (y, s, z) }"
    )
    infer_shapes(model)
    with pytest.raises(ModelError, match=r"sums of MatMul 'y' can pass 32767.*--keep-float"):
        run_pipeline("bound-accumulators", model, context())
    run_pipeline("bound-accumulators{bits=24}", model, context())
    assert any("fits int24" in p.detail for p in certify(model, Capabilities()).proofs)


@pytest.mark.parametrize("bits", [7, 33])
def test_widths_that_are_none(bits):
    with pytest.raises(RecipeError, match="from 8 to 32"):
        run_pipeline(f"bound-accumulators{{bits={bits}}}", conv()[0], context())


# --- the projection


@given(UNITS, st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_no_integers_in_the_ball_are_nearer(units, budget):
    (found,) = project(units[None], np.array([budget]), np.rint)
    assert np.abs(found).sum() <= budget
    # Exactly, by the least cost of taking one off, as often as needed: costs grow, so it is best.
    size, best = np.abs(units.astype(np.float64)), np.rint(np.abs(units)).astype(np.float64)
    while best.sum() > budget:
        costs = np.where(best > 0, np.square(size - best + 1) - np.square(size - best), np.inf)
        best[np.argmin(costs)] -= 1
    wrong, least = np.square(np.abs(found) - size).sum(), np.square(best - size).sum()
    # Elements on one tie are rounded down together: a budget may be left over.
    assert wrong >= least - 1e-6
    if np.abs(found).sum() == min(budget, np.rint(np.abs(units)).sum()):
        assert wrong <= least + 1e-4
