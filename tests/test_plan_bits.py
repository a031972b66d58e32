"""plan-bits: measured noise, budgets that hold, and rules that other passes follow."""

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.bit_formats import formats
from edgeq.bit_layers import find_bit_layers
from edgeq.bit_measure import NoiseMeter, losses, option_trials
from edgeq.calibrate import calibrate
from edgeq.compile import activations
from edgeq.errors import RecipeError
from edgeq.graph import clone, weight_bytes
from edgeq.linear_weights import output_axis
from edgeq.numerics.qtype import FORMATS
from edgeq.passing import Context, make_pass, parse_steps, run_pipeline
from edgeq.qdq import linear_group
from edgeq.recipe import Rule, load_recipe
from edgeq.runtime import make_session, run
from edgeq.targeting import find_target
from tests.quantizing import float_model, samples

pytest.importorskip("scipy")

FEEDS = {name: samples(name, count=8) for name in ("network", "block")}


def calibrated(name, rules=()):
    """Return a float model and its context, in front of the quantizing passes."""
    model = float_model(name)
    recipe = load_recipe("int8").with_rules(rules)
    capabilities = find_target("ort-cpu").capabilities
    context = Context(recipe=recipe, capabilities=capabilities, samples=FEEDS[name])
    run_pipeline(recipe.prepare, model, context)
    context.reference = clone(model)
    context.calibration = calibrate(context.reference, FEEDS[name], activations(model))
    return model, context


def plan(name, options, rules=()):
    model, context = calibrated(name, rules)
    run_pipeline(f"plan-bits{{{options}}}", model, context)
    return model, context


def spent(context):
    return sum(row.weight_bytes for row in context.bit_choices)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let the few weights of these models count as packed."""
    monkeypatch.setattr("edgeq.bit_choice.SMALLEST_PACKED", 8)
    monkeypatch.setattr("edgeq.passes.pack_weights.SMALLEST_PACKED", 8)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("name", ["network", "block"])
def test_the_budget_of_bytes_is_kept_by_the_codes(name, share):
    model, context = plan(name, f"budget_bytes={share}")
    whole = sum(layer.weight.size for layer in find_bit_layers(model, context))
    assert spent(context) <= share * whole
    run_pipeline(context.recipe.quantize, model, context)
    bits = {w.qtype.bits for w in context.float_weights.values()}
    assert bits == {0.5: {4}, 1.0: {8}}.get(share, {4, 8})
    groups = [g for node in model.graph if (g := linear_group(node)) is not None]
    assert len(groups) >= len(context.bit_choices)


def test_the_budget_is_kept_in_real_bytes():
    sizes = {}
    for share in (0.5, 0.7, 1.0):
        model, context = plan("network", f"budget_bytes={share}")
        run_pipeline(f"{context.recipe.quantize}, pack-weights", model, context)
        sizes[share] = weight_bytes(model), spent(context)
    whole = sizes[1.0][1]
    for share, (stored, planned) in sizes.items():
        assert planned <= share * whole
        assert stored - sizes[1.0][0] == planned - whole


def test_more_budget_is_never_worse_and_the_widest_layers_are_those_that_suffer():
    noise = []
    for share in (0.5, 0.55, 0.6, 0.7, 0.85, 1.0):
        _, context = plan("network", f"budget_bytes={share}")
        noise.append(sum(row.noise for row in context.bit_choices))
    assert noise == sorted(noise, reverse=True) and noise[0] > 10 * noise[-1]


@pytest.mark.parametrize("corrected", [True, False])
def test_the_noise_is_that_of_the_model_with_one_layer_rounded(corrected):
    model, context = calibrated("network")
    if not corrected:
        steps = context.recipe.quantize.replace(", correct-bias", "")
        context.recipe = replace(context.recipe, quantize=steps)
    layers = find_bit_layers(model, context)
    found = formats(layers, ["int4"], ["uint8"], context)
    noise = losses(NoiseMeter(context, 3).measure(option_trials(found)), "mse")
    for layer, row, spec, x in zip(layers, noise, found.specs, found.inputs, strict=True):
        rounded = clone(model)
        node = next(n for n in rounded.graph if n.name == layer.name)
        made = layer.rounded_weight(spec[0], x[0], context)
        arrays = [made, layer.corrected_bias(made, context) if corrected else layer.bias]
        for value, array in zip(node.inputs[1:], arrays, strict=True):
            assert value is not None and array is not None
            value.const_value = ir.tensor(array)
        signal = error = 0.0
        for feed in FEEDS["network"][:3]:
            real = run(make_session(model), feed)["y"].astype(np.float64)
            other = run(make_session(rounded), feed)["y"].astype(np.float64)
            signal, error = signal + (real**2).sum(), error + ((other - real) ** 2).sum()
        np.testing.assert_allclose(row, error / signal, rtol=1e-4)


def test_what_is_measured_around_a_plan_is_its_own_noise():
    model, context = calibrated("network")
    found = formats(find_bit_layers(model, context), ["int4", "int8"], ["uint8"], context)
    meter, chosen = NoiseMeter(context, 3), (0, 1, 0, 1)
    planned = meter.rounded_model(found, chosen)
    around = losses(meter.measure(option_trials(found), planned), "mse")
    sessions = [make_session(one) for one in (model, planned)]
    runs = [[run(s, f)["y"].astype(np.float64) for s in sessions] for f in FEEDS["network"][:3]]
    noise = sum(((b - a) ** 2).sum() for a, b in runs) / sum((a**2).sum() for a, _ in runs)
    np.testing.assert_allclose(around[range(4), chosen], noise, rtol=1e-4)
    assert len(np.unique(around)) > 4


@pytest.mark.parametrize("name", ["network", "block"])
def test_measuring_around_plans_makes_none_worse(name):
    def together(rounds):
        _, context = plan(name, f"budget_bytes=0.65,rounds={rounds}")
        return float(context.notes[-1][1].rpartition(" ")[2])

    assert together(3) <= together(1)


def test_a_corrected_bias_keeps_the_mean_of_every_channel():
    model, context = calibrated("block")
    assert context.calibration is not None
    layer = next(found for found in find_bit_layers(model, context) if found.bias is not None)
    coarse = np.round(layer.weight)
    bias = layer.corrected_bias(coarse, context)
    assert layer.x is not None and layer.bias is not None and bias is not None
    mean = context.calibration.statistics[str(layer.x.name)].channel_mean
    flip = output_axis(layer.node, 2) == 0
    before, after = (w.T if flip else w for w in (layer.weight, coarse))
    np.testing.assert_allclose(mean @ before + layer.bias, mean @ after + bias, rtol=1e-5)


def test_widths_of_what_layers_read_are_chosen_once_for_all_readers():
    model, context = plan("block", "budget_bitops=0.6,weights=int4|int8,activations=uint6|uint8")
    layers = find_bit_layers(model, context)
    rows = {row.layer: row for row in context.bit_choices}
    assert {row.activation for row in rows.values()} == {"uint6", "uint8"}
    by_source: dict[ir.Value | None, set[str]] = {}
    for layer in layers:
        by_source.setdefault(layer.source, set()).add(rows[layer.name].activation)
    assert all(len(chosen) == 1 for chosen in by_source.values())
    macs = sum(layer.macs for layer in layers)
    assert sum(row.bit_operations for row in rows.values()) <= 0.6 * 64 * macs
    for layer in layers:
        row = rows[layer.name]
        assert row.bit_operations == layer.macs * (
            FORMATS[row.weight].bits * FORMATS[row.activation].bits
        )
    reads = {layer.name: str(layer.x.name) for layer in layers if layer.x is not None}
    run_pipeline(context.recipe.quantize, model, context)
    decided = context.qparams | context.copies
    for name, row in rows.items():
        assert decided[reads[name]].qtype.name == row.activation


def test_macs_are_those_of_a_sample():
    model, context = calibrated("network")
    macs = {layer.name: layer.macs for layer in find_bit_layers(model, context)}
    first = 64 * 6 * 3 * 9  # pad-channels may add a channel of zeros
    assert list(macs.values()) in (
        [first, 64 * 6 * 9, 64 * 6 * 6, 30],
        [first // 3 * 4, 64 * 6 * 9, 64 * 6 * 6, 30],
    )


def test_formats_that_the_recipe_names_stay():
    rules = [Rule(name="a", weight=(("qtype", "int8"),)), Rule(name="y", keep_float=True)]
    _, context = plan("network", "budget_bytes=0.9", rules)
    rows = {row.layer: row.weight for row in context.bit_choices}
    assert rows["a"] == "int8" and "y" not in rows and "int4" in rows.values()
    names = [rule.name for rule in context.recipe.rules]
    assert names.count("a") == 1


def test_same_inputs_same_plan():
    first, second = (plan("block", "budget_bytes=0.7")[1] for _ in range(2))
    assert first.bit_choices == second.bit_choices
    assert first.recipe == second.recipe


def test_losses_differ_and_both_plan():
    model, context = calibrated("network")
    found = formats(find_bit_layers(model, context), ["int4", "int8"], ["uint8"], context)
    results = NoiseMeter(context, 4).measure(option_trials(found))
    mse, kl = (losses(results, loss) for loss in ("mse", "kl"))
    assert mse.shape == kl.shape == (4, 2) and not np.allclose(mse, kl)
    assert (mse[:, 0] > mse[:, 1]).all() and (kl[:, 0] > kl[:, 1]).all()
    _, planned = plan("network", "budget_bytes=0.6,loss=kl")
    assert spent(planned) <= 0.6 * sum(layer.weight.size for layer in found.layers)


def written(path, times):
    path.write_text(json.dumps({"target": "board", "milliseconds": times}))
    return path


def test_milliseconds_of_a_file_are_a_budget(tmp_path):
    layers = ("a", "d", "p", "y")
    times = {name: {"int4 uint8": 1.0, "int8 uint8": 2.0 + (name == "a")} for name in layers}
    path = written(tmp_path / "board.json", times)
    _, context = plan("network", f"budget_ms=6,latencies={path}")
    chosen = {row.layer: row.weight for row in context.bit_choices}
    assert sum(times[name][f"{qtype} uint8"] for name, qtype in chosen.items()) <= 6
    assert list(chosen.values()).count("int8") in (1, 2)
    with pytest.raises(RecipeError, match=r"budget_ms = 3 is too small: .* take 4 \(4 of 1 ms\)"):
        plan("network", f"budget_ms=3,latencies={path}")


@pytest.mark.parametrize(
    ("times", "complaint"),
    [
        ({"a": {"int4 uint8": 1.0}}, "nothing is said of a with int8 uint8"),
        ({}, "nothing is said of a with int4 uint8"),
        ({"a": {"int4 uint8": -1.0}}, "a cannot take -1.0 ms"),
        ({"a": {"int4 uint8": "long"}}, "not a file that `edgeq sensitivity"),
        (3, "not a file that `edgeq sensitivity"),
    ],
)
def test_a_file_of_latencies_that_does_not_fit(tmp_path, times, complaint):
    path = written(tmp_path / "board.json", times)
    with pytest.raises(RecipeError, match=complaint):
        plan("network", f"budget_ms=6,latencies={path}")


def test_a_model_without_layers_gets_a_note():
    model, context = calibrated("network", [Rule(keep_float=True)])
    assert run_pipeline("plan-bits{budget_bytes=0.6}", model, context)[0].rewrites == 0
    assert "no layer" in context.notes[-1][1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "give a budget"),
        ("budget_bytes=-1", "above 0"),
        ("budget_bytes=0.3", "budget_bytes = 0.3 is too small: the narrowest widths take 0.5 ("),
        ("budget_ms=3", "latencies go together"),
        ("budget_bytes=0.6,latencies=t.json", "latencies go together"),
        ("budget_ms=3,latencies=nowhere.json", "latencies nowhere.json: No such file"),
        ("budget_bytes=0.6,weights=int5x", "'int5x' (did you mean 'int5')"),
        ("budget_bytes=0.6,weights=uint8", "names 'uint8'"),
        ("budget_bytes=0.6,weights=", "weights is empty"),
        ("budget_bytes=0.6,activations=int8", "activations names 'int8'"),
        ("budget_bytes=0.6,activations=uint16", "activations names 'uint16'"),
        ("budget_bytes=0.6,loss=top1", "one of mse, kl"),
        ("budget_bytes=0.6,samples=0", "samples is 0; give at least 1"),
        ("budget_bytes=0.6,rounds=-1", "rounds is -1; give at least 0"),
        ("budget_bytes=much", "not a valid float"),
        ("budget=0.6", "unknown option 'budget' (did you mean 'budget_"),
    ],
)
def test_bad_options_get_one_message(options, complaint):
    with pytest.raises(RecipeError) as caught:
        plan("network", options)
    assert complaint in str(caught.value).replace("?", "")


def test_options_may_be_lists_in_a_recipe(tmp_path):
    text = load_text("int8").replace('quantize = "', 'quantize = "plan-bits, ')
    path = tmp_path / "planned.toml"
    path.write_text(f'{text}\n[passes.plan-bits]\nbudget_bytes = 0.6\nweights = ["int4", "int6"]\n')
    step = parse_steps(load_recipe(str(path)).quantize)[0]
    made = make_pass(step)
    assert replace(made).weights == ("int4", "int6")  # type: ignore[attr-defined]


def load_text(name):
    import importlib.resources

    return (importlib.resources.files("edgeq") / "recipes" / f"{name}.toml").read_text()
