"""choose-ranges: what the outputs make of an error decides what is clipped."""

from dataclasses import replace

import numpy as np
import pytest

from edgeq.calibrate import calibrate
from edgeq.code_plan import plan_codes
from edgeq.compile import activations
from edgeq.errors import RecipeError
from edgeq.graph import clone, to_bytes
from edgeq.group_ranges import group_range, group_spec, roots
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import UINT8
from edgeq.passes.choose_ranges import ChooseRanges
from edgeq.passing import Context, make_pass, parse_steps, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.targeting import find_target
from tests.quantizing import float_model, parse, samples

CHANNELS = 4096
OUTLIER = 8.0
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def context_of(model, feeds, prepare=""):
    """Return the model, and its context behind calibration."""
    capabilities = find_target("ort-cpu").capabilities
    context = Context(recipe=load_recipe("int8"), capabilities=capabilities, samples=feeds)
    run_pipeline(prepare, model, context)
    context.reference = clone(model)
    context.calibration = calibrate(context.reference, feeds, activations(model))
    return model, context


def with_an_outlier(read):
    """Return a Gemm whose input has one large value, of weight `read`, beside 98,303 small ones."""
    rng = np.random.default_rng(3)
    feeds = [{"x": rng.uniform(-1, 1, (1, CHANNELS)).astype(np.float32)} for _ in range(24)]
    feeds[5]["x"][0, 0] = OUTLIER
    weight = rng.normal(0, 0.02, (CHANNELS, 3)).astype(np.float32)
    weight[0] = read
    text = f"{HEAD}g (float[N,{CHANNELS}] x) => (float[N,3] y) {{\n y = Gemm (x, w)\n}}"
    return context_of(parse(text, {"w": weight}), feeds)


def reach(qparams):
    """Return the largest real that codes stand for."""
    return float(qparams.scale * (255 - qparams.zero_point))


def chosen(context, model, **options):
    number = ChooseRanges(**options).run(model, context)
    return number, context.qparams


def test_what_the_output_depends_on_is_not_clipped():
    model, context = with_an_outlier(read=10.0)
    (group,) = plan_codes(model, context)
    _, high = group_range(group, group_spec(group, "activation", context), context)
    assert high < 0.95 * OUTLIER, "the least error of x alone clips the outlier"
    before = to_bytes(model)
    number, qparams = chosen(context, model)
    assert number == 1 and reach(qparams["x"]) == pytest.approx(OUTLIER, rel=0.01)
    assert to_bytes(model) == before
    (note,) = context.notes
    assert note[0] == "choose-ranges" and note[1].startswith("1 of 1 tensors")


def test_what_no_output_depends_on_stays_clipped():
    model, context = with_an_outlier(read=0.0)
    (group,) = plan_codes(model, context)
    _, high = group_range(group, group_spec(group, "activation", context), context)
    number, qparams = chosen(context, model)
    assert number == 0 and reach(qparams["x"]) == pytest.approx(high, rel=0.01)


def test_choose_qparams_follows():
    model, context = with_an_outlier(read=10.0)
    run_pipeline("choose-ranges, choose-qparams", model, context)
    assert reach(context.qparams["x"]) == pytest.approx(OUTLIER, rel=0.01)


def test_parameters_that_are_decided_stay():
    model, context = with_an_outlier(read=10.0)
    given = QParams(UINT8, np.array(0.5, np.float32), np.array(3, np.int32))
    context.qparams["x"] = given
    assert chosen(context, model) == (0, {"x": given})
    assert context.notes == []


@pytest.mark.parametrize("name", ["network", "block"])
def test_every_tensor_of_8_bits_gets_a_range_that_is_no_worse(name):
    prepare = load_recipe("int8").prepare
    model, context = context_of(float_model(name), samples(name, count=8), prepare)
    groups = [g for g in plan_codes(model, context) if not g.residual]
    open_ = [str(v.name) for group in groups for v in group.values]
    _, qparams = chosen(context, model)
    assert set(qparams) <= set(open_) and len(qparams) >= 3
    for group in groups:
        found = [qparams[str(v.name)] for v in group.values if v.name in qparams]
        assert all(found[0].same_as(other) for other in found)
        if found:
            spec = group_spec(group, "activation", context)
            _, low = group_range(group, spec, context)
            _, high = group_range(group, spec, context, "minmax")
            assert 0.98 * low <= reach(found[0]) <= 1.02 * high


def test_values_that_are_moved_are_rounded_where_they_are_made():
    text = """g (float[N,2,1,1] x) => (float[N,2,1,1] y) {
        c = Conv (x, w)  r = Relu (c)  t = Transpose <perm = [0,1,3,2]> (r)  y = Conv (t, w)
    }"""
    weight = np.array([1, 2, 3, -4], np.float32).reshape(2, 2, 1, 1)
    feeds = [{"x": np.full((1, 2, 1, 1), k, np.float32)} for k in (1, 2, 3)]
    model, context = context_of(parse(HEAD + text, {"w": weight}), feeds)
    found = {tuple(str(v.name) for v in roots(group)) for group in plan_codes(model, context)}
    assert ("r",) in found and not any("t" in names for names in found)


def test_samples_are_the_first_ones():
    """The outlier is in the sixth sample: with five there is nothing to keep."""
    model, context = with_an_outlier(read=10.0)
    assert chosen(context, model, samples=5)[0] == 0


def test_outputs_of_many_elements_take_fewer_samples():
    """Three scores for each: with 16 samples, the least number, the last one is not looked at."""
    model, context = with_an_outlier(read=10.0)
    context.samples.append(context.samples.pop(5))
    few, many = (chosen(replace(context, qparams={}), model, elements=n)[0] for n in (48, 72))
    assert (few, many) == (0, 1)


@pytest.mark.parametrize("option", ["steps", "samples", "elements"])
def test_options_that_mean_nothing_are_refused(option):
    (step,) = parse_steps(f"choose-ranges{{{option}=0}}")
    with pytest.raises(RecipeError, match=f"{option} is 0; give at least 1"):
        make_pass(step)
