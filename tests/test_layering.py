"""Imports point one way: a module imports from its own layer and lower ones, never in a circle.

The table is the architecture; a new module needs a word in it. Passes and targets do not import
each other. Libraries that are slow to import have one owner.
"""

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the lowest layer to the highest: a name, and its modules within `edgeq`. The modules of a
# layer may import each other unless its name ends in "!".
LAYERS = {
    "facade": "edgeq",
    "errors": "errors steps runner",
    "check": "check check_*",
    "numerics": "numerics numerics.* cpus",
    "graph": "graph onnx_api exactness dims folding linear_weights pool_counts tensor_check"
    " stored_codes writing fused_operators fused_activations fused_attention fused_attention_of_ort"
    " fused_normalizations fused_products attention_masks attention_spelling rotary_embedding"
    " refused_operators places einsum normalization_spelling idle_choice"
    " to_float32 old_opsets affine_nodes contrib_codes look_up functions roles qdq"
    " simplify elementary versions"
    " index_values index_rules"
    " attention possible_values longest logarithm_form softmax_form scores_form"
    " certain_exponentials code_counts"
    " normalization channel_affine chain row_sums row_statistics"
    " causal_masks"
    " elementwise_nodes unary_regions"
    " accumulators counts run_time_shapes symbolic_shapes",
    "recipe": "recipe bit_choice bit_program",
    "operators": "operators operators.* float_sums proofs",
    "simulate": "axis_sources simulate stimuli fidelity softmax_bias quantized_attention trajectory"
    " index_tables",
    "in and out": "runtime optimized npz feeds spool user_code data metrics language load"
    " export source model_file observe"
    " histogram buckets clip_ratio statistics clipping entropy weight_range weight_codes"
    " float_search float_weight calibrate seen_inputs linear_rows"
    " second_moments layer_rounding rounded_layer rounding_adaround rounding_descent rounding_gptq"
    " rounding_tasks bit_noise checkpoint device"
    " channel_samples channel_shifts channel_groups",
    "targeting": "by_name targeting memory_use",
    "passing": "passing bit_formats bit_latency bit_layers bit_measure bit_search"
    " tasks noise_sources request request_names"
    " channel_sites channel_noise channel_units"
    " code_plan group_ranges seen_values softmax_bias_form softmax_row_form",
    "learning": "learning learning.*",
    "tvm": "tvm tvm.*",
    "passes!": "passes passes.* targets targets.*",
    "verify": "certify tolerance verify float_proofs fused_proofs integer_proofs"
    " rounded_exponentials rules lint float_checks fusion_checks linear_checks breach fix predict",
    "bundle": "manifest golden report report_page report_schema report_view read_report"
    " value_histogram charts bundle evidence",
    "compile": "compile refusals compile_report compiled operator_rows compare compare_page"
    " inspect measure scores opening stimulus_feeds float_islands cluster workers bit_sensitivity",
    "interface": "api bundle_check predicted_check remote_check remote_side",
    "diffusion": "diffusion diffusion.*",
    "commands": "commands commands.* cli __main__",
}

# Libraries that are slow to import, or an extra: the modules that may import them.
OWNERS = {
    "torch": {
        "edgeq.device",
        "edgeq.export",
        "edgeq.learning.*",
        "edgeq.diffusion.iteration",
        "edgeq.diffusion.schedulers",
    },
    "matplotlib": {"edgeq.charts"},
    "distributed": {"edgeq.cluster"},
    "diffusers": {"edgeq.diffusion.schedulers"},
    "PIL": {"edgeq.diffusion.image_grid"},
    "onnxscript": {"edgeq.export"},
    "tvm": {"edgeq.tvm.*"},
    "tvm_ffi": {"edgeq.tvm.*"},
    "onnxruntime": {"edgeq.runtime", "edgeq.check_session", "edgeq.check_saturation"},
    "scipy": {"edgeq.bit_program"},
    "onnxsim": {"edgeq.passes.cleanup"},
}

# Copied into each bundle: runs on a device that has neither edgeq nor onnx.
STANDALONE = {"numpy", "onnxruntime"}


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


def layer_of(module: str) -> int | None:
    """Return the place of the layer of `module`; an exact name goes before a pattern."""
    inner = module.removeprefix("edgeq.")
    for match in (str.__eq__, fnmatchcase):
        for place, words in enumerate(LAYERS.values()):
            if any(match(inner, word) for word in words.split()):
                return place
    return None


def violations(sources: dict[str, str]) -> list[str]:
    """Return one sentence per import that the table forbids."""
    modules, closed, found = set(sources), [name.endswith("!") for name in LAYERS], []
    for module, text in sources.items():
        for name, line in imports(ast.parse(text), modules):
            where, library = f"{module}:{line}", name.partition(".")[0]
            owners = OWNERS.get(library, {module})
            if not any(fnmatchcase(module, owner) for owner in owners):
                found.append(f"{where} imports {library}, which {sorted(owners)} own")
            if library != "edgeq" or name == module:
                continue
            mine, theirs = layer_of(module), layer_of(name)
            if mine is None or theirs is None:
                found.append(f"{where} imports {name}: one of them is not in the table")
            elif theirs > mine or (theirs == mine and closed[mine] and name not in module):
                found.append(f"{where} imports {name}, which is not in a lower layer")
    return found


def circle(sources: dict[str, str]) -> list[str]:
    """Return modules that import each other in a circle; empty if there is none."""
    known = set(sources)
    graph = {m: {n for n, _ in imports(ast.parse(t), known)} & known for m, t in sources.items()}
    for module in graph:
        graph[module].discard(module)
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


SOURCES = {module: path.read_text() for module, path in source_files().items()}


def test_every_module_has_a_layer():
    missing = [m for m in SOURCES if layer_of(m) is None]
    assert not missing, f"add to LAYERS: {missing}"
    assert len(SOURCES) > 15


def test_every_word_of_the_table_names_a_module():
    words = [word for line in LAYERS.values() for word in line.split()]
    modules = [m.removeprefix("edgeq.") for m in SOURCES]
    unused = [word for word in words if not any(fnmatchcase(m, word) for m in modules)]
    assert not unused, f"remove from LAYERS: {unused}"


def test_imports_point_to_lower_layers():
    assert violations(SOURCES) == []


def test_nothing_is_imported_in_a_circle():
    assert circle(SOURCES) == []


def test_the_check_needs_little():
    group = {
        m: text for m, text in SOURCES.items() if m == "edgeq.check" or m.startswith("edgeq.check_")
    }
    found = {name for text in group.values() for name, _ in imports(ast.parse(text), set(SOURCES))}
    outside = {name for name in found if name not in group}
    assert {n.partition(".")[0] for n in outside} - set(sys.stdlib_module_names) <= STANDALONE
    assert "edgeq.check" in group and "edgeq" not in outside


@pytest.mark.parametrize(
    ("rule", "module", "text", "complaint"),
    [
        ("upwards", "edgeq.errors", "import edgeq.cli", "not in a lower layer"),
        ("upwards, from", "edgeq.graph", "from edgeq.cli import main", "not in a lower layer"),
        ("module as a name", "edgeq.graph", "from edgeq import cli", "not in a lower layer"),
        ("inside a function", "edgeq.graph", "def f():\n  import edgeq.cli", "lower layer"),
        ("sideways", "edgeq.passes.a", "import edgeq.passes.b", "not in a lower layer"),
        ("pass to target", "edgeq.passes.a", "import edgeq.targets.b", "not in a lower layer"),
        ("unknown", "edgeq.graph", "import edgeq.helpers", "not in the table"),
        ("heavy", "edgeq.graph", "def f():\n  import torch.nn", "imports torch"),
        ("heavy, from", "edgeq.cli", "from onnxruntime import InferenceSession", "onnxruntime"),
        ("alone", "edgeq.check", "from edgeq.graph import constant", "not in a lower layer"),
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


def test_circles_are_seen():
    assert circle({"edgeq.a": "import edgeq.b", "edgeq.b": "import edgeq.c"}) == []
    text = "def f():\n  from edgeq import a"
    found = circle({"edgeq.a": "import edgeq.b", "edgeq.b": text})
    assert set(found) == {"edgeq.a", "edgeq.b"}
