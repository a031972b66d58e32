"""The text of a pipeline: passes by name, in order, options in braces.

"cleanup, equalize{iterations=2}, choose-qparams"

Recipes hold such texts; what the names and options mean is settled by `edgeq.passing`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgeq.errors import RecipeError


@dataclass(frozen=True)
class Step:
    """One entry of a pipeline text: a pass's name and its options as written."""

    name: str
    options: Mapping[str, str]


_STEP = re.compile(r"\s*(?P<name>[a-z0-9][a-z0-9-]*)\s*(?:\{(?P<options>[^{}]*)\})?\s*")


def parse_steps(text: str) -> list[Step]:
    """Parse a pipeline text into steps.

    >>> parse_steps("cleanup, equalize{iterations=2}")[1].options
    {'iterations': '2'}

    Raises:
        RecipeError: The text is not a list of `name{option=value,...}`.
    """
    steps, position = [], 0
    while position < len(text.rstrip()):
        match = _STEP.match(text, position)
        if match is None or (match.end() < len(text) and text[match.end()] != ","):
            raise RecipeError(f"pipeline: cannot read {text[position:].strip()!r}")
        options = {}
        for item in filter(None, (match["options"] or "").split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise RecipeError(f"pipeline: write {item.strip()!r} as option=value")
            options[key.strip()] = value.strip()
        steps.append(Step(match["name"], options))
        position = match.end() + 1
    return steps


def format_steps(steps: Iterable[Step]) -> str:
    """Return the pipeline text of `steps`."""
    texts = []
    for step in steps:
        options = ",".join(f"{k}={v}" for k, v in step.options.items())
        texts.append(f"{step.name}{{{options}}}" if options else step.name)
    return ", ".join(texts)
