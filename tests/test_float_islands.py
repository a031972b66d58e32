"""What counts as a float island, and what does not."""

import json
from pathlib import Path

import pytest

from edgeq.recipe import load_recipe
from tests.architectures import shapes, unusual, vision
from tests.architectures.net import Net
from tests.test_architecture_options import compile_with
from tests.test_architectures import Architecture

KEPT = "kept by --keep-float"
READ = "its result is read in float32, outside of any exact form"


def masked_attention(net: Net) -> list[str]:
    """A causal mask, computed at run time from integers alone; its Sub and Mul are no islands."""
    x = net.input(6, 8)
    ones = net("ConstantOfShape", net("Slice", net("Shape", x), *map(net.constant, ([1], [2]))))
    seen = net("Reshape", net("CumSum", ones, net.constant(0)), net.constant([-1, 1]))
    column = net("Reshape", seen, net.constant([1, -1]))
    past = net("Cast", net("LessOrEqual", column, seen), to=1)
    mask = net("Mul", net("Sub", net.constant(1.0), past), net.constant(-1e9))
    q, k, v = (net("MatMul", x, net.weight(8, 8, size=0.5)) for _ in range(3))
    scores = net("Add", net("MatMul", q, net("Transpose", k, perm=[0, 2, 1])), mask)
    return [net("MatMul", net("MatMul", net("Softmax", scores, axis=-1), v), net.weight(8, 4))]


# What is kept float32, and the islands that it makes: names and reasons.
ISLANDS: dict[str, tuple[Architecture, list[str], dict[str, str]]] = {
    "nothing kept": (shapes.squared, [], {}),
    "a sum": (shapes.squared, ["add2"], {"add2": KEPT}),
    "a chain of single operations": (
        shapes.squared, ["add*", "mul*"], {"mul1": KEPT, "add2": KEPT, "add3": KEPT}
    ),
    "a function between codes": (unusual.functions, ["tanh5"], {"tanh5": KEPT}),
    "attention: without its Softmax there is no exact form": (
        shapes.attention, ["softmax*"], {"mul13": READ, "softmax14": KEPT}
    ),
    "limits on codes": (vision.mobilenet_v2, [], {}),
    "tables": (unusual.functions, [], {}),
    "a mask": (masked_attention, [], {}),
    "a linear op": (shapes.mlp, ["matmul3"], {"matmul3": KEPT}),
}  # fmt: skip


@pytest.mark.parametrize("name", ISLANDS)
def test_islands(name: str, tmp_path: Path) -> None:
    build, keep_float, islands = ISLANDS[name]
    bundle, _, _, _ = compile_with(
        tmp_path, build, keep_float=keep_float, allow_unproven=["*"] if keep_float else []
    )
    report = json.loads((bundle.path / "report.json").read_text())
    assert {row["node"]: row["reason"] for row in report["islands"]} == islands
    assert bundle.manifest.certificate.islands == tuple(islands)


def test_what_has_no_proof_is_an_island(tmp_path: Path) -> None:
    steps = load_recipe("int8", {}).quantize.replace("tabulate, ", "")
    settings = {"pipeline.quantize": json.dumps(steps)}
    bundle, _, _, _ = compile_with(tmp_path, unusual.twins, settings=settings, allow_unproven=["*"])
    report = json.loads((bundle.path / "report.json").read_text())
    assert bundle.manifest.certificate.islands == bundle.manifest.certificate.unproven != ()
    assert all("use a table" in row["reason"] for row in report["islands"])
