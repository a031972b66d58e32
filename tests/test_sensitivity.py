"""edgeq sensitivity: one layer at a time, ranked, and rules that spare the worst."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import edgeq
from edgeq.bit_sensitivity import LayerNoise, Sensitivity, decibels, sensitivity
from edgeq.cli import app
from edgeq.errors import ModelError
from edgeq.graph import to_bytes
from edgeq.recipe import load_recipe
from edgeq.request import CompileRequest
from tests.quantizing import float_model, samples

FEEDS = samples("network", count=6)


def ranked(settings=None, **changes):
    given = {"model": float_model("network"), "target": "ort-cpu", "calibration": FEEDS}
    return sensitivity(CompileRequest(**given, settings=settings or {}, dry_run=True, **changes))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(to_bytes(float_model("network")))
    np.savez(tmp_path / "calibration.npz", x=np.concatenate([feed["x"] for feed in FEEDS]))
    return tmp_path


def run(folder, *options, model="model.onnx", data="calibration.npz"):
    command = ["sensitivity", str(folder / model), "--calibration", str(folder / data), *options]
    return CliRunner().invoke(app, command)


def test_the_worst_comes_first_and_noise_adds_up():
    found = ranked()
    noise = [row.noise for row in found.layers]
    assert len(noise) == 4 and noise == sorted(noise, reverse=True) and noise[-1] > 0
    assert {row.layer for row in found.layers} == {"a", "d", "p", "y"}
    assert found.sqnr_db == pytest.approx(decibels(sum(noise)))
    for row in found.layers:
        parts = row.weight_noise + row.activation_noise
        assert parts / 2 < row.noise < 2 * parts and row.kl > 0
    assert found.samples == len(FEEDS)


def test_narrow_weights_lose_more():
    wide = {row.layer: row for row in ranked().layers}
    narrow = {row.layer: row for row in ranked({"weight.qtype": '"int4"'}).layers}
    for name, row in narrow.items():
        assert row.weight_noise > 20 * wide[name].weight_noise
        assert row.activation_noise == pytest.approx(wide[name].activation_noise, rel=1e-3)


@pytest.mark.parametrize(
    ("weight", "activation", "noise", "rule"),
    [
        ("int8", "uint8", (1.0, 2.0), 'name = "c[[]0]"\nkeep_float = true'),
        ("int4", "uint8", (1.0, 2.0), 'name = "c[[]0]"\nweight.qtype = "int8"'),
        ("int8", "uint6", (2.0, 1.0), 'name = "r"\nactivation.qtype = "uint8"'),
        ("int4", "uint6", (1.0, 2.0), 'name = "r"\nactivation.qtype = "uint8"'),
        ("int6", "uint6", (2.0, 1.0), 'name = "c[[]0]"\nweight.qtype = "int8"'),
        ("float4", "", (2.0, 0.0), 'name = "c[[]0]"\nweight.qtype = "int8"'),
    ],
)
def test_a_rule_widens_what_costs_most(weight, activation, noise, rule):
    row = LayerNoise("c[0]", "Conv", weight, activation, 3.0, noise[0], noise[1], 0.1, "r")
    assert row.remedy == f"[[rule]]\n{rule}\n"


def test_rules_can_be_pasted_into_a_recipe(tmp_path):
    text = ranked({"weight.qtype": '"int4"'}).rules(2)
    base = tmp_path / "spared.toml"
    own = Path(edgeq.__path__[0], "recipes", "int8.toml").read_text()
    base.write_text(own.replace('qtype = "int8"', 'qtype = "int4"') + "\n" + text)
    recipe = load_recipe(str(base), {})
    assert len(recipe.rules) == 2 and all(rule.weight for rule in recipe.rules)
    before = {row.layer: row for row in ranked({"weight.qtype": '"int4"'}).layers}
    after = {row.layer: row for row in ranked(recipe=str(base)).layers}
    spared = [name for name, row in after.items() if row.weight == "int8"]
    assert spared == sorted(spared, key=list(after).index) and len(spared) == 2
    assert set(spared) == set(list(before)[:2])
    assert all(after[name].noise < before[name].noise for name in spared)


def test_workers_find_the_same():
    assert ranked(workers=2) == ranked()


def test_nothing_to_quantize():
    with pytest.raises(ModelError, match="no layer of this model"):
        ranked(keep_float=("*",))


def test_the_command_prints_a_table_and_rules(folder):
    result = run(folder, "-q", "--worst", "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["layer", "op", "weights", "reads"]
    assert [line.split()[0] for line in lines[1:5]] == [row.layer for row in ranked().layers]
    assert lines[5].startswith("all of them, if their noise adds up:")
    assert lines[-3:] == ["[[rule]]", f'name = "{ranked().layers[0].layer}"', "keep_float = true"]


def test_json_is_one_object(folder):
    result = run(folder, "--json", "--samples", "3")
    entry = json.loads(result.stdout)
    assert list(entry) == ["model", "recipe", "samples", "sqnr_db", "layers", "rules"]
    assert entry["samples"] == 3 and entry["rules"].count("[[rule]]") == 3
    first = entry["layers"][0]
    assert first["sqnr_db"] == pytest.approx(decibels(first["noise"]))
    assert {"layer", "op_type", "weight", "activation", "weight_noise", "kl"} <= set(first)


def test_latencies_are_written_for_plan_bits(folder):
    path = folder / "here.json"
    options = ("-q", "--latencies", str(path), "--activations", "uint6|uint8")
    assert run(folder, *options).exit_code == 0
    entry = json.loads(path.read_text())
    assert entry["target"] == "ort-cpu" and set(entry["milliseconds"]) == {"a", "d", "p", "y"}
    for times in entry["milliseconds"].values():
        assert list(times) == ["int4 uint6", "int4 uint8", "int8 uint6", "int8 uint8"]
        assert all(0 < value < 1000 for value in times.values())
    again = run(folder, *options)
    assert again.exit_code == 2 and "--force" in again.stderr


@pytest.mark.parametrize(
    ("options", "changes", "says"),
    [
        (["--recipe", "int9"], {}, "no recipe 'int9'"),
        ([], {"model": "other.onnx"}, "other.onnx"),
        ([], {"data": "other.npz"}, "other.npz"),
        (["--keep-float", "nowhere*"], {}, "--keep-float nowhere*"),
        (["--set", "weight"], {}, "KEY=VALUE"),
        (["--target", "abacus"], {}, "abacus"),
        (["--latencies", "a.txt"], {}, "name a .json file"),
        (["--latencies", "a.json", "--weights", "int9"], {}, "--weights names 'int9'"),
    ],
)
def test_bad_input_is_one_message(folder, options, changes, says):
    result = run(folder, "-q", *options, **changes)
    assert result.exit_code == 2 and result.stdout == ""
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_in_python():
    found = edgeq.sensitivity(float_model("network"), calibration=FEEDS)
    assert isinstance(found, Sensitivity) and found == ranked()
