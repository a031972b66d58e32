"""The JSON schema of `report.json`, made of the types that it is written from.

`python -m edgeq.report_schema` prints it: `docs/report.schema.json`.
"""

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from edgeq.report import SCHEMA_VERSION, Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_KINDS = {str: "string", int: "integer", bool: "boolean"}

Schema = dict[str, object]


def report_schema() -> Schema:
    """Return the schema; a type of its own is a definition of its own."""
    definitions: dict[str, Schema] = {}
    whole = _object(Report, definitions)
    properties = {"schema_version": {"const": SCHEMA_VERSION}, **_properties(whole)}
    return {
        "$schema": DIALECT,
        "title": "report.json of an edgeq bundle",
        **whole,
        "properties": properties,
        "required": list(properties),
        "$defs": dict(sorted(definitions.items())),
    }


def _properties(schema: Schema) -> dict[str, Schema]:
    return typing.cast(dict[str, Schema], schema["properties"])


def _object(kind: Any, definitions: dict[str, Schema]) -> Schema:  # noqa: ANN401  # a dataclass
    """Return the schema of a dataclass, described by its docstring."""
    text = inspect.getdoc(kind) or ""
    said, hints = _attributes(text), typing.get_type_hints(kind)
    properties: dict[str, Schema] = {}
    for item in dataclasses.fields(kind):
        found = _schema(hints[item.name], definitions)
        description = {"description": said[item.name]} if item.name in said else {}
        properties[item.name] = {**description, **found}
    return {
        "description": text.partition("\n\n")[0].replace("\n", " "),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _schema(kind: Any, definitions: dict[str, Schema]) -> Schema:  # noqa: ANN401  # any annotation
    """Return the schema of what `edgeq.report.render_json` makes of a value of this type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None
        return {"anyOf": [_schema(arguments[0], definitions), {"type": "null"}]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        items = [_schema(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in definitions:
            definitions[name] = {}  # the place is taken, should it hold itself
            definitions[name] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if kind is float:  # null: no number, or infinite
        return {"type": ["number", "null"]}
    return {"type": _KINDS[kind]}


def _attributes(docstring: str) -> dict[str, str]:
    """Return what the section `Attributes:` says of each, on one line."""
    section = docstring.partition("Attributes:\n")[2]
    found = re.findall(r"(?m)^    (\w+): (.*(?:\n {8}.*)*)", section)
    return {name: re.sub(r"\s*\n\s*", " ", text) for name, text in found}


def schema_text() -> str:
    """Return the schema as it is published."""
    return json.dumps(report_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
