"""Recipes: what a user's file may say, and what is refused, with a message that says where."""

import pytest

from edgeq.errors import RecipeError
from edgeq.recipe import load_recipe, recipe_names
from edgeq.steps import parse_steps

RECIPE = """
schema_version = 1
[activation]
qtype = "uint8"
[weight]
qtype = "int8"
[[rule]]
op_type = "Conv"
keep_float = true
[rule.activation]
observer = "mse"
[passes.equalize]
gain_db = 0.5
[pipeline]
prepare = "cleanup, equalize{floor=2}"
quantize = "choose-qparams"
"""


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path), {"weight.limit": "64"})
    assert (recipe.name, recipe.weight.limit, recipe.activation.observer) == ("mine", 64, "minmax")
    (rule,) = recipe.rules
    assert rule.matches("Conv", ["a"]) and not rule.matches("Gemm", ["a"]) and rule.keep_float
    assert rule.activation == (("observer", "mse"),)
    cleanup, equalize = parse_steps(recipe.prepare)
    assert (cleanup.options, equalize.options) == ({}, {"floor": "2", "gain_db": "0.5"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("activaton", "1", "unknown key 'activaton' .did you mean 'activation'"),
        ("activation", "3", "activation must be a table"),
        ("activation.observer", "mean", "activation.observer = 'mean'; one of minmax"),
        ("activation.symmetric", "1", "activation.symmetric = 1 has the wrong type"),
        ("weight.limit", "128", "weight.limit must be from 1 to 127"),
        ("rule", "3", r"write rules as \[\[rule\]\] tables"),
        ("rule", "[3]", r"write rules as \[\[rule\]\] tables"),
        ("rule", "[{op_tipe = 'Conv'}]", "unknown key 'rule.op_tipe' .did you mean 'op_type'"),
        ("rule", "[{op_type = 3}]", "rule.op_type = 3 has the wrong type"),
        ("rule", "[{keep_float = 'yes'}]", "rule.keep_float = 'yes' has the wrong type"),
        ("rule", "[{place = 'middle'}]", "rule.place = 'middle'; one of first, last"),
        ("rule", "[{weight = 3}]", "rule.weight = 3 has the wrong type"),
        ("passes", "3", "passes must be a table"),
        ("passes.cleanup", "3", "cleanup must be a table"),
        ("passes.cleanap.floor", "3", "unknown key 'passes.cleanap' .did you mean 'cleanup'"),
        ("pipeline.prepare", "3", "pipeline.prepare must be a text"),
        ("pipeline.prepare", '"cleanup{"', "cannot read 'cleanup{'"),
        ("schema_version", "2", "schema_version is 2; this edgeq reads 1"),
    ],
)
@pytest.mark.parametrize("name", recipe_names())
def test_what_is_refused(name, key, value, message):
    load_recipe(name, {})
    with pytest.raises(RecipeError, match=f"{name}: {message}|pipeline: {message}"):
        load_recipe(name, {key: value})


@pytest.mark.parametrize("role", ["activation", "residual"])
def test_only_weights_are_4_bit_floats(role):
    assert load_recipe("int8", {"weight.qtype": "float4"}).weight.qtype == "float4"
    with pytest.raises(RecipeError, match=f"{role}.qtype: only weights can be 4-bit floats"):
        load_recipe("int8", {f"{role}.qtype": "float4e2m1"})
