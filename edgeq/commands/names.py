"""`edgeq targets`, `recipes` and `passes`: what there is to choose from."""

import dataclasses
from typing import Annotated

import typer

from edgeq.commands.output import print_json, table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def targets(as_json: AsJson = False) -> None:
    """List the targets: what each is, what it needs installed, and what of that is missing here."""
    from edgeq.targeting import find_target, target_names

    found = [find_target(name) for name in target_names()]
    if as_json:
        rows = [
            {
                "name": target.name(),
                "summary": target.summary,
                "needs": list(target.needs),
                "missing": list(target.missing),
            }
            for target in found
        ]
        print_json({"targets": rows})
        return
    lines = [[t.name(), t.summary, ", ".join(t.needs)] for t in found]
    print("\n".join(table([["name", "summary", "needs"], *lines])))
    for target in found:
        if target.missing:
            print(f"missing here for {target.name()}: {'; '.join(target.missing)}")


def recipes(as_json: AsJson = False) -> None:
    """List the built-in recipes."""
    from edgeq.recipe import load_recipe, recipe_names

    show("recipes", {name: load_recipe(name).summary for name in recipe_names()}, as_json)


def passes(
    name: Annotated[
        str | None, typer.Argument(help="Explain this one.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the passes; with a name, explain one and its options."""
    import inspect

    from edgeq.passing import find_pass, pass_names

    if name is None:
        docs = {n: inspect.getdoc(inspect.getmodule(find_pass(n))) or "" for n in pass_names()}
        show("passes", {n: doc.partition("\n")[0] for n, doc in docs.items()}, as_json)
        return
    found = find_pass(name)
    text = inspect.getdoc(inspect.getmodule(found)) or ""
    options = {field.name: field.default for field in dataclasses.fields(found)}
    if as_json:
        print_json({"name": name, "text": text, "options": options})
        return
    print(f"{name}\n\n{text}")
    if options:
        print("\noptions:", ", ".join(f"{key}={value}" for key, value in options.items()))


def show(kind: str, summaries: dict[str, str], as_json: bool) -> None:
    """Print names with their summaries."""
    if as_json:
        print_json({kind: [{"name": name, "summary": text} for name, text in summaries.items()]})
    else:
        print("\n".join(table([["name", "summary"], *map(list, summaries.items())])))
