"""Architectures as users have them, from a float model to a bundle, with both recipes.

Every linear op must be an integer kernel between codes, nothing in front of one may stay float, no
bit may differ and no proof may be missing; the bundle takes any batch, and its outputs are near
those of the float model on data that calibration has not seen.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import edgeq
from edgeq.bundle import Bundle
from edgeq.qdq import linear_group
from edgeq.roles import CLIPS, LINEAR
from tests.architectures import shapes, unusual, vision
from tests.architectures.net import Feed, Net

Architecture = Callable[[Net], list[str]]
ARCHITECTURES: dict[str, Architecture] = {
    name: value
    for module in (vision, shapes, unusual)
    for name, value in vars(module).items()
    if isinstance(value, FunctionType)
    and value.__module__ == module.__name__
    and value.__code__.co_argcount == 1
}
RECIPES = ("int8", "int8-power-of-two")
WITHOUT_LINEAR = {"pools_only", "elementwise_only"}

# dB, of every output. Below 30: the means of nearly independent noise that networks without
# training make are small beside the values that they are means of.
FLOOR = 30.0
FLOORS = {
    "attention": 24.0, "efficientnet": 20.0, "keyword": 24.0, "mlp": 20.0, "mobilenet_v3": 22.0,
    "reductions": 26.0, "tokens": 24.0, "all_moves": 29.0, "two_inputs": 28.0,
}  # fmt: skip


def compile_net(net: Net, model: onnx.ModelProto, path: Path, recipe: str) -> Bundle:
    samples = net.feeds(8, batch=6)
    return edgeq.compile(model, calibration=samples, output=path / "bundle", recipe=recipe)


def run(bundle: Bundle, feed: Feed) -> dict[str, np.ndarray]:
    """Return the outputs of the bundle, as reals."""
    session = bundle.session()
    names = [output.name for output in session.get_outputs()]
    codes = session.run(names, bundle.quantize_inputs(feed))
    return bundle.dequantize_outputs(dict(zip(names, codes, strict=True)))


def run_float(model: onnx.ModelProto, feed: Feed) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the signal to noise ratio in dB; both must be of one shape."""
    assert expected.shape == found.shape
    real = expected.astype(np.float64)
    noise = float(np.square(real - found.astype(np.float64)).sum())
    signal = float(np.square(real).sum())
    assert signal > 0, "an output that is zero tells nothing"
    return float("inf") if noise == 0 else 10 * np.log10(signal / noise)


def floats_in_front(model: ir.Model) -> list[str]:
    """Return the pairs of ops of the user's model, both in front of a linear op, joined by floats.

    A Relu or Clip may stand behind another op: its limits are part of one rounding.
    """
    pending = [node for node in model.graph if linear_group(node) is not None]
    in_front: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node not in in_front:
            in_front.add(node)
            pending += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return [
        f"{source.name} -> {node.name}"
        for node in in_front
        for value in node.inputs
        if value is not None
        and value.dtype == ir.DataType.FLOAT
        and (source := value.producer()) is not None
        and _is_users(source)
        and _is_users(node)
        and node.op_type not in CLIPS
    ]


def _is_users(node: ir.Node) -> bool:
    """Whether the node is one of `Net`: an op type in lower case and a number."""
    name = node.name or ""
    return name.rstrip("0123456789") == node.op_type.lower()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str, recipe: str, tmp_path: Path) -> None:
    net = Net()
    outputs = ARCHITECTURES[name](net)
    model = net.model(outputs)
    bundle = compile_net(net, model, tmp_path, recipe)
    manifest = bundle.manifest
    assert manifest.bitwise.mismatches == 0
    assert manifest.bitwise.compared > 1000
    assert manifest.certificate.unproven == ()

    artifact = ir.load(bundle.artifact)
    linear = [node for node in artifact.graph if node.op_type in LINEAR]
    assert bool(linear) == (name not in WITHOUT_LINEAR)
    assert [n.name for n in linear if linear_group(n) is None] == []
    assert floats_in_front(artifact) == []
    assert manifest.certificate.islands == ()

    verdicts = json.loads((bundle.path / "report.json").read_text())["verdicts"]
    assert all(v["mismatches"] == 0 and v["compared"] > 100 for v in verdicts)
    assert [v["count"] for v in verdicts[:2]] == [8, 20]
    assert verdicts[2]["feeds"].startswith("inputs of other sizes (") and verdicts[2]["count"] >= 2

    (feed,) = net.feeds(1, batch=3, seed=7)
    expected, found = run_float(model, feed), run(bundle, feed)
    assert list(found) == outputs
    floor = FLOORS.get(name, FLOOR)
    ratios = {key: sqnr(expected[key], found[key]) for key in outputs}
    assert min(ratios.values()) > floor, ratios


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize(
    "build", [vision.super_resolution, vision.unet, vision.segmentation, shapes.padded]
)
def test_images_of_any_size(build: Architecture, batch: str | int, tmp_path: Path) -> None:
    net = Net(batch=batch, symbolic=("height", "width"))
    outputs = build(net)
    if build is shapes.padded:  # all but its mean over the image
        del net.nodes[-3:]
        outputs = [net.nodes[-1].output[0]]
    model = net.model(outputs)
    samples = [*net.feeds(8), *net.feeds(8, seed=2, last=(20, 28))]
    bundle = edgeq.compile(model, calibration=samples, output=tmp_path / "bundle")
    assert bundle.manifest.bitwise.mismatches == 0
    (feed,) = net.feeds(1, seed=7, last=(24, 16))
    expected, found = run_float(model, feed), run(bundle, feed)
    simulated = edgeq.simulate(bundle, feed)
    for name in outputs:
        assert sqnr(expected[name], found[name]) > FLOOR
        assert simulated[name].tobytes() == found[name].tobytes()


def test_floats_are_seen(tmp_path: Path) -> None:
    """The checks above find what a user leaves in float: a linear op, and a chain of others."""
    net = Net()
    model = net.model(shapes.squared(net))
    bundle = edgeq.compile(
        model,
        calibration=net.feeds(4),
        output=tmp_path / "bundle",
        keep_float=["add*", "mul*", "conv4"],
        allow_unproven=["*"],
    )
    artifact = ir.load(bundle.artifact)
    linear = [node for node in artifact.graph if node.op_type in LINEAR]
    assert [n.name for n in linear if linear_group(n) is None] == ["conv4"]
    bundle = edgeq.compile(
        model, calibration=net.feeds(4), output=tmp_path / "other", keep_float=["add*", "mul*"]
    )
    assert sorted(floats_in_front(ir.load(bundle.artifact))) == ["add2 -> add3", "mul1 -> add3"]
