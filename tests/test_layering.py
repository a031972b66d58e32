"""Imports point one way: a module imports only from lower layers, heavy libraries have one owner.

The table is the architecture. A new module needs a row here; `edgeq.passes.*`, `edgeq.targets.*`
and the like stand for one layer whose modules do not import each other.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the lowest layer to the highest. A line is one layer: its modules may import those of
# earlier lines, and each other only where the line says so with a leading "~".
LAYERS = """
edgeq
edgeq.errors
~ edgeq.numerics edgeq.numerics.*
edgeq.graph
edgeq.qdq
edgeq.recipe
~ edgeq.operators edgeq.operators.*
edgeq.simulate
edgeq.runtime edgeq.data edgeq.load edgeq.export edgeq.observe
edgeq.calibrate
edgeq.targeting
edgeq.passing
edgeq.passes edgeq.passes.* edgeq.targets edgeq.targets.*
edgeq.certify edgeq.verify
edgeq.report edgeq.bundle
edgeq.compile
edgeq.cli
"""

# Libraries that are slow to import, or an extra: the modules that may import them.
OWNERS = {
    "torch": {"edgeq.export"},
    "onnxscript": {"edgeq.export"},
    "tvm": set(),
    "onnxruntime": {"edgeq.runtime", "edgeq.check"},
    "onnxsim": {"edgeq.passes.cleanup"},
}

# Copied into each bundle: runs on a device that has neither edgeq nor onnx.
STANDALONE = {"edgeq.check": {"numpy", "onnxruntime"}}


def source_files() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    files = {}
    for folder, package in (
        ("edgeq", "edgeq"),
        ("passes", "edgeq.passes"),
        ("targets", "edgeq.targets"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[0] in ("passes", "targets"):  # the links, when the interpreter follows them
                continue
            files[".".join((package, *parts)).removesuffix(".__init__")] = path
    return files


def imports(tree: ast.AST, modules: set[str]) -> Iterator[tuple[str, int]]:
    """Yield what `tree` imports, as (dotted name, line), imports for type checkers left out."""
    for node in walk_run_time(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in modules else str(node.module)), node.lineno


def walk_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk `tree`, but not into `if TYPE_CHECKING:`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from walk_run_time(child)


def parse_layers(text: str) -> list[tuple[bool, list[str]]]:
    lines = (line.split() for line in text.strip().splitlines())
    return [(words[0] == "~", [w for w in words if w != "~"]) for words in lines]


def layer_of(module: str, layers: list[tuple[bool, list[str]]]) -> int | None:
    """Return the layer of `module`; an exact name goes before a pattern."""
    for match in (str.__eq__, fnmatchcase):
        for index, (_, patterns) in enumerate(layers):
            if any(match(module, pattern) for pattern in patterns):
                return index
    return None


def violations(sources: dict[str, str], layer_text: str = LAYERS) -> list[str]:
    """Return one sentence per import that the table forbids."""
    layers, modules, found = parse_layers(layer_text), set(sources), []
    for module, text in sources.items():
        for name, line in imports(ast.parse(text), modules):
            where, library = f"{module}:{line}", name.partition(".")[0]
            if library in OWNERS and module not in OWNERS[library]:
                found.append(f"{where} imports {library}, which {sorted(OWNERS[library])} own")
            if library != "edgeq" or name == module:
                continue
            if module in STANDALONE:
                found.append(f"{where} imports {name}, but stands alone")
                continue
            mine, theirs = layer_of(module, layers), layer_of(name, layers)
            if mine is None or theirs is None:
                found.append(f"{where} imports {name}: one of them has no row in the table")
            elif theirs > mine or (theirs == mine and not layers[mine][0]):
                found.append(f"{where} imports {name}, which is not in a lower layer")
    return found


SOURCES = {module: path.read_text() for module, path in source_files().items()}


def test_every_module_has_a_layer():
    layers = parse_layers(LAYERS)
    missing = [m for m in SOURCES if layer_of(m, layers) is None and m not in STANDALONE]
    assert not missing, f"add to LAYERS: {missing}"
    assert len(SOURCES) > 15


def test_every_row_names_a_module():
    patterns = [p for _, line in parse_layers(LAYERS) for p in line]
    unused = [p for p in patterns if not any(fnmatchcase(m, p) for m in SOURCES)]
    assert not unused, f"remove from LAYERS: {unused}"


def test_imports_point_to_lower_layers():
    assert violations(SOURCES) == []


@pytest.mark.parametrize("module", STANDALONE)
def test_standalone_modules_import_little(module):
    import sys

    tree = ast.parse(SOURCES[module])
    found = {name.partition(".")[0] for name, _ in imports(tree, set())}
    assert found - set(sys.stdlib_module_names) <= STANDALONE[module]


@pytest.mark.parametrize(
    ("rule", "module", "text", "complaint"),
    [
        ("upwards", "edgeq.errors", "import edgeq.cli", "not in a lower layer"),
        ("upwards, from", "edgeq.graph", "from edgeq.cli import main", "not in a lower layer"),
        ("module as a name", "edgeq.graph", "from edgeq import cli", "not in a lower layer"),
        ("inside a function", "edgeq.graph", "def f():\n  import edgeq.cli", "lower layer"),
        ("sideways", "edgeq.passes.a", "import edgeq.passes.b", "not in a lower layer"),
        ("pass to target", "edgeq.passes.a", "import edgeq.targets.b", "not in a lower layer"),
        ("unknown", "edgeq.graph", "import edgeq.helpers", "no row in the table"),
        ("heavy", "edgeq.graph", "def f():\n  import torch.nn", "imports torch"),
        ("heavy, from", "edgeq.cli", "from onnxruntime import InferenceSession", "onnxruntime"),
        ("alone", "edgeq.check", "from edgeq.errors import EdgeqError", "stands alone"),
        ("allowed: lower", "edgeq.cli", "from edgeq.graph import constant", None),
        ("allowed: in a group", "edgeq.numerics.a", "import edgeq.numerics.b", None),
        ("allowed: for types", "edgeq.errors", "if TYPE_CHECKING:\n  import edgeq.cli", None),
    ],
)
def test_the_walk_sees(rule, module, text, complaint):
    sources = {"edgeq.cli": "", "edgeq.passes.b": "", "edgeq.targets.b": "", module: text}
    found = violations(sources)
    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1 and complaint in found[0]
