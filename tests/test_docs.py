"""What the pages say exists, exists; what exists is on the pages."""

import re
from pathlib import Path

import pytest

from edgeq.cli import app
from edgeq.cpus import in_words
from edgeq.passing import make_pass, parse_steps, pass_names
from edgeq.recipe import load_recipe, recipe_names
from edgeq.rules import RULES, UNPROVEN
from edgeq.targeting import target_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def table(text: str, heading: str) -> list[str]:
    """Return the names in the first column of the table under `heading`."""
    section = text.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [
        ("README.md", "### Targets", target_names),
        ("README.md", "### Recipes", recipe_names),
        ("README.md", "### Passes", pass_names),
        ("docs/recipes.md", "## Built in", recipe_names),
    ],
)
def test_tables_are_complete(page, heading, names):
    listed = table((ROOT / page).read_text(), heading)
    assert sorted(listed) == sorted(names()) and len(listed) >= 1


def test_every_rule_has_its_row():
    section = (ROOT / "docs/cpus.md").read_text().split("\n## Rules\n", 1)[1]
    listed = re.findall(r"^\| `(.+)` \| (.+) \| (.+) \| (yes|no) \|$", section, re.MULTILINE)
    known = [
        (rule.id, rule.summary, in_words(rule.cpus), "yes" if rule.rewrite else "no")
        for rule in (*RULES, UNPROVEN)
    ]
    assert listed == known


def test_commands_are_complete():
    section = (ROOT / "README.md").read_text().split("\n## Commands\n", 1)[1].split("\n#", 1)[0]
    listed = re.findall(r"`edgeq ([a-z]+(?: [a-z]+)?)", section.split("`--json`")[0])
    known = [str(command.name) for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        inner = group.typer_instance.registered_commands
        known += [f"{group.name} {command.name}" for command in inner]
    assert sorted(listed) == sorted(known)


def test_the_recipe_that_is_shown_works(tmp_path):
    text = re.search(r"```toml\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
    assert text is not None
    path = tmp_path / "my.toml"
    path.write_text(text.group(1))
    recipe = load_recipe(str(path), {})
    steps = [*parse_steps(recipe.prepare), *parse_steps(recipe.quantize)]
    assert len([make_pass(step) for step in steps]) > 5 and len(recipe.rules) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = re.findall(
        r"`((?:edgeq|passes|targets|benchmarks|tests|docs)/[\w/.-]+)`", page.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_make_targets_that_are_named_exist():
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        n for page in PAGES for n in re.findall(r"(?:`|^    )make ([a-z]+)", page.read_text(), re.M)
    }
    assert {"demo", "test", "check", "bench"} <= named
    assert named <= known
