"""Recipes: what the user asks for, as TOML read into frozen values.

schema_version = 1
summary = "..."
[activation]                  # the default for activations
qtype = "uint8"
scale = "float"               # or "power_of_two"
observer = "mse"              # minmax, moving_average, percentile, clip_ratio, entropy, mse
[weight]
qtype = "int8"
granularity = "per_channel"
symmetric = true
[residual]                    # what normalisations read, and the sums that feed them: as
qtype = "uint16"              # [activation], with these fields changed
[[rule]]                      # in order; the last match wins, field by field
op_type = "Softmax"
name = "head/*"
place = "last"                # or "first": those linear ops, and what they read; or "depthwise"
keep_float = true
[rule.activation]
observer = "minmax"
[pipeline]
prepare = "cleanup, fold-batchnorm, ..."      # float to float, before calibration
quantize = "choose-qparams, insert-qdq, correct-bias{samples=32}, ..."

Keys that are not known are refused, with the closest known one as a suggestion.
"""

import dataclasses
import importlib.resources
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from edgeq.errors import RecipeError, UnknownNameError, suggest
from edgeq.numerics.qtype import FLOAT4, FLOAT8, FORMATS
from edgeq.steps import format_steps, parse_steps

SCHEMA_VERSION = 1
OBSERVERS = ("minmax", "moving_average", "percentile", "clip_ratio", "entropy", "mse")
GRANULARITIES = ("per_tensor", "per_channel")
SCALE_KINDS = ("float", "power_of_two")
PLACES = ("first", "last", "depthwise")
FLOAT4_NAMES = ("float4", *FLOAT4)
FLOAT8_PASS = "quantize-float8"


@dataclass(frozen=True)
class QuantSpec:
    """How values of one role are quantized.

    Attributes:
        qtype: Format, by name; `float8`, and `float4` for weights, is the float of so many bits
            that fits each one best.
        granularity: `per_tensor` or `per_channel`.
        symmetric: Whether real 0 sits in the middle of the codes.
        scale: `float`, or `power_of_two`.
        observer: What chooses the clipping range.
        percentile: Share of values inside the range, in percent, for the percentile observer.
        clip_alpha: The clip_ratio observer clips the share `clip_alpha / (2**bits - 1)`.
        limit: Largest magnitude of a weight code; 127, or 64 where no session option can be set.
    """

    qtype: str
    granularity: str = "per_tensor"
    symmetric: bool = False
    scale: str = "float"
    observer: str = "minmax"
    percentile: float = 99.99
    clip_alpha: float = 0.01
    limit: int = 127

    def clip_ratio(self, bits: int) -> float:
        """Return the share of values that codes of so many bits may clip."""
        return self.clip_alpha / ((1 << bits) - 1)


CHOICES = {
    "qtype": (*FORMATS, "float4", "float8", *FLOAT8),
    "granularity": GRANULARITIES,
    "scale": SCALE_KINDS,
    "observer": OBSERVERS,
}


@dataclass(frozen=True)
class Rule:
    """An exception to the defaults for the nodes that it matches.

    Attributes:
        op_type: Glob over op types.
        name: Glob over node names and over the names of their outputs.
        place: `first` or `last`: those linear ops, and what they read; `depthwise`: such Convs;
            empty for any.
        keep_float: Leave the node in float32.
        activation: Fields of the activation spec to change, as (name, value) pairs.
        weight: Fields of the weight spec to change.
    """

    op_type: str = "*"
    name: str = "*"
    place: str = ""
    keep_float: bool | None = None
    activation: tuple[tuple[str, Any], ...] = ()
    weight: tuple[tuple[str, Any], ...] = ()

    def matches(self, op_type: str, names: Sequence[str], places: Collection[str] = ()) -> bool:
        """Whether the rule applies to a node of `op_type` known by any of `names`, at `places`."""
        if self.place and self.place not in places:
            return False
        return fnmatchcase(op_type, self.op_type) and any(
            fnmatchcase(name, self.name) for name in names
        )


@dataclass(frozen=True)
class Recipe:
    """Everything the user asked for.

    Attributes:
        name: The built-in name, or the file's stem.
        summary: One line for `edgeq recipes`.
        activation: Default for activations.
        weight: Default for weights.
        residual: Default for what normalisations read, and for the sums that feed them.
        rules: Exceptions, in order.
        prepare: Pipeline text, float to float, run before calibration.
        quantize: Pipeline text, run after it.
    """

    name: str
    summary: str
    activation: QuantSpec
    weight: QuantSpec
    residual: QuantSpec
    prepare: str
    quantize: str
    rules: tuple[Rule, ...] = field(default=())

    def keep_float(self, op_type: str, names: Sequence[str], places: Collection[str] = ()) -> bool:
        """Whether a node stays in float32: the last matching rule that says so wins."""
        keep = False
        for rule in self.rules:
            if rule.keep_float is not None and rule.matches(op_type, names, places):
                keep = rule.keep_float
        return keep

    def spec(
        self, role: str, op_type: str, names: Sequence[str], places: Collection[str] = ()
    ) -> QuantSpec:
        """Return the spec of a node's `activation`, `residual` or `weight`, rules applied.

        The rules for activations hold for residuals too, but for their format.
        """
        spec: QuantSpec = getattr(self, role)
        for rule in self.rules:
            if rule.matches(op_type, names, places):
                changes = dict(rule.weight if role == "weight" else rule.activation)
                if role == "residual":
                    changes.pop("qtype", None)
                spec = dataclasses.replace(spec, **changes)
        return spec

    def clip_ratios(self) -> tuple[float, ...]:
        """Return every share that a clip_ratio observer of this recipe may ask calibration for."""
        specs = [self.activation, self.residual]
        specs += [dataclasses.replace(s, **dict(r.activation)) for s in specs for r in self.rules]
        alphas = {s.clip_alpha: s for s in specs if s.observer == "clip_ratio"}
        bits = {qtype.bits for qtype in FORMATS.values() if qtype.bits <= 16}
        return tuple(s.clip_ratio(b) for s in alphas.values() for b in sorted(bits))

    def with_rules(self, rules: Sequence[Rule]) -> "Recipe":
        """Return the recipe with further rules behind its own."""
        return dataclasses.replace(self, rules=(*self.rules, *rules))


def recipe_names() -> list[str]:
    """Return the names of the built-in recipes."""
    folder = importlib.resources.files("edgeq") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def load_recipe(name: str | Path, settings: Mapping[str, str] | None = None) -> Recipe:
    """Return a built-in recipe, or the one in a TOML file, with `settings` applied.

    Args:
        name: A built-in recipe's name, or the path of a `.toml` file.
        settings: Dotted keys to TOML values: `{"activation.observer": "minmax"}`.

    Raises:
        UnknownNameError: No such recipe.
        RecipeError: The file is not valid; the message names the key.
    """
    text, title = _read(name)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {title}: not valid TOML: {error}") from error
    for key, value in (settings or {}).items():
        _set(table, key, value)
    return _recipe(table, title)


def _read(name: str | Path) -> tuple[str, str]:
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except OSError as error:
            raise RecipeError(f"recipe {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe {path}: not UTF-8 text") from error
    names = recipe_names()
    if str(name) not in names:
        raise UnknownNameError(
            f"no recipe {str(name)!r}{suggest(str(name), names)}; built in: {', '.join(names)};"
            " or give the path of a .toml file"
        )
    file = importlib.resources.files("edgeq") / "recipes" / f"{name}.toml"
    return file.read_text(encoding="utf-8"), str(name)


def _set(table: dict[str, Any], key: str, value: str) -> None:
    *path, last = key.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {key}: {part!r} is a value, not a table")
    try:
        table[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = value


def _recipe(table: dict[str, Any], title: str) -> Recipe:
    known = [
        "schema_version",
        "summary",
        "activation",
        "weight",
        "residual",
        "rule",
        "pipeline",
        "passes",
    ]
    _refuse_unknown(table, known, title, "")
    activation = _spec(_table(table, "activation", title), title, "activation.")
    residual = _spec(_table(table, "residual", title), title, "residual.")
    version = table.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecipeError(
            f"recipe {title}: schema_version is {version!r}; this edgeq reads {SCHEMA_VERSION}"
        )
    pipeline = _table(table, "pipeline", title)
    _refuse_unknown(pipeline, ["prepare", "quantize"], title, "pipeline.")
    for key in ("prepare", "quantize"):
        if not isinstance(pipeline.get(key), str):
            raise RecipeError(f"recipe {title}: pipeline.{key} must be a text of pass names")
    rules = table.get("rule", [])
    if not isinstance(rules, list):
        raise RecipeError(f"recipe {title}: write rules as [[rule]] tables")
    options = _table(table, "passes", title)
    steps = [*parse_steps(pipeline["prepare"]), *parse_steps(pipeline["quantize"])]
    _refuse_unknown(options, [step.name for step in steps], title, "passes.")
    options = {name: _table(options, name, title) for name in options}
    if str(activation["qtype"]).startswith("float8") and FLOAT8_PASS not in [s.name for s in steps]:
        raise RecipeError(
            f"recipe {title}: activation.qtype = {activation['qtype']!r} needs the pass"
            f" {FLOAT8_PASS}, which recipe fp8 has; other passes work on integers"
        )
    return Recipe(
        name=Path(title).stem,
        summary=str(table.get("summary", "")),
        activation=QuantSpec(**activation),
        weight=QuantSpec(**_spec(_table(table, "weight", title), title, "weight.")),
        residual=QuantSpec(**{**activation, **residual}),
        rules=tuple(_rule(rule, title) for rule in rules),
        prepare=_with_options(pipeline["prepare"], options),
        quantize=_with_options(pipeline["quantize"], options),
    )


def _table(table: dict[str, Any], key: str, title: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise RecipeError(f"recipe {title}: {key} must be a table")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: list[str], title: str, where: str) -> None:
    for key in table:
        if key not in known:
            raise RecipeError(
                f"recipe {title}: unknown key {where + key!r}{suggest(key, known)};"
                f" known: {', '.join(known)}"
            )


def _spec(table: dict[str, Any], title: str, where: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(QuantSpec)}
    _refuse_unknown(table, list(fields), title, where)
    if where in ("activation.", "weight.") and "qtype" not in table:
        raise RecipeError(f"recipe {title}: {where}qtype is missing")
    for key, value in table.items():
        kind = fields[key].type
        expected = (int, float) if kind is float else get_args(kind) or (kind,)
        if not isinstance(value, expected) or (kind is not bool and isinstance(value, bool)):
            raise RecipeError(f"recipe {title}: {where}{key} = {value!r} has the wrong type")
        if key in CHOICES and value not in CHOICES[key]:
            raise RecipeError(
                f"recipe {title}: {where}{key} = {value!r}{suggest(value, list(CHOICES[key]))};"
                f" one of {', '.join(CHOICES[key])}"
            )
    if "weight" not in where and table.get("qtype") in FLOAT4_NAMES:
        raise RecipeError(f"recipe {title}: {where}qtype: only weights can be 4-bit floats")
    if not 50 < table.get("percentile", 100) <= 100:
        raise RecipeError(f"recipe {title}: {where}percentile must be above 50 and at most 100")
    if not 0 < table.get("clip_alpha", 1) <= 1:
        raise RecipeError(f"recipe {title}: {where}clip_alpha must be above 0 and at most 1")
    if not 1 <= table.get("limit", 127) <= 127:
        raise RecipeError(f"recipe {title}: {where}limit must be from 1 to 127")
    return table


def _rule(table: object, title: str) -> Rule:
    if not isinstance(table, dict):
        raise RecipeError(f"recipe {title}: write rules as [[rule]] tables")
    kinds = {
        "op_type": str,
        "name": str,
        "place": str,
        "keep_float": bool,
        "activation": dict,
        "weight": dict,
    }
    _refuse_unknown(table, list(kinds), title, "rule.")
    for key, value in table.items():
        if not isinstance(value, kinds[key]):
            raise RecipeError(f"recipe {title}: rule.{key} = {value!r} has the wrong type")
    if table.get("place", "first") not in PLACES:
        raise RecipeError(
            f"recipe {title}: rule.place = {table['place']!r}; one of {', '.join(PLACES)}"
        )
    roles = {
        role: tuple(sorted(_spec(dict(table.get(role, {})), title, f"rule.{role}.").items()))
        for role in ("activation", "weight")
    }
    rest = {k: v for k, v in table.items() if k not in roles}
    return Rule(**rest, activation=roles["activation"], weight=roles["weight"])


def _with_options(pipeline: str, options: Mapping[str, Any]) -> str:
    """Write `[passes.NAME]` options into the pipeline text, where the pass stands in it."""
    steps = parse_steps(pipeline)
    merged = [
        dataclasses.replace(s, options={**s.options, **_texts(options.get(s.name, {}))})
        for s in steps
    ]
    return format_steps(merged)


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in options.items()}


def _text(value: object) -> str:
    """Return an option as a pipeline has it: `true`, `int4|int8`, `32`."""
    if isinstance(value, list):
        return "|".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
