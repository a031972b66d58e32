"""What a user can ask for beside a recipe, where it is not obvious what happens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeq
from edgeq.bundle import Bundle
from edgeq.check_bits import Tally
from edgeq.errors import ModelError, VerificationError
from tests.architectures import shapes, unusual, vision
from tests.architectures.net import Feed, Net
from tests.test_architectures import Architecture, run, run_float, sqnr

RECIPES = ("int8", "int8-power-of-two")


def frames(net: Net, count: int, *, batch: int = 1, seed: int = 1) -> list[Feed]:
    """Return camera frames for every input."""
    generator = np.random.default_rng(seed)
    return [
        {n: generator.integers(0, 256, (batch, *s), np.uint8) for n, s in net.shapes.items()}
        for _ in range(count)
    ]


def compile_with(
    path: Path, build: Architecture, *, recipe: str = "int8", **options: Any
) -> tuple[Bundle, Net, onnx.ModelProto, list[str]]:
    net = Net()
    outputs = build(net)
    model = net.model(outputs)
    samples = frames(net, 8, batch=4) if "input_types" in options else net.feeds(8, batch=6)
    bundle = edgeq.compile(
        model, calibration=samples, output=path / "bundle", recipe=recipe, **options
    )
    assert bundle.manifest.bitwise.compared > 1000
    assert bundle.manifest.bitwise.mismatches == 0
    return bundle, net, model, outputs


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "build",
    [
        vision.residual, vision.segmentation, vision.super_resolution, vision.detector,
        shapes.relu_is_output, shapes.mlp, shapes.recurrent_gates, unusual.pools_only,
        unusual.elementwise_only, unusual.logits_read_twice,
    ],
)  # fmt: skip
def test_all_outputs_as_codes(build: Architecture, recipe: str, tmp_path: Path) -> None:
    names = build(Net())
    bundle, net, model, outputs = compile_with(
        tmp_path, build, recipe=recipe, output_types=dict.fromkeys(names, "uint8")
    )
    (feed,) = net.feeds(1, batch=3, seed=7)
    session = bundle.session()
    codes = dict(zip(outputs, session.run(outputs, feed), strict=True))
    assert {array.dtype for array in codes.values()} == {np.dtype(np.uint8)}
    for info in bundle.manifest.outputs:
        assert info.dtype == "uint8" and info.scale is not None and info.zero_point is not None
    expected, found = run_float(model, feed), bundle.dequantize_outputs(codes)
    assert min(sqnr(expected[name], found[name]) for name in outputs) > 19
    edgeq.check(bundle, taps=True).raise_for_mismatch()


def test_one_output_as_codes_leaves_the_others(tmp_path: Path) -> None:
    names = shapes.relu_is_output(Net())
    bundle, _, _, _ = compile_with(
        tmp_path, shapes.relu_is_output, output_types={names[1]: "uint8", names[0]: "float32"}
    )
    assert [info.dtype for info in bundle.manifest.outputs] == ["float32", "uint8", "float32"]
    assert [info.scale is None for info in bundle.manifest.outputs] == [True, False, True]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "build",
    [vision.residual, vision.super_resolution, shapes.normalised_first, shapes.input_branches],
)
def test_frames_as_input(build: Architecture, recipe: str, tmp_path: Path) -> None:
    bundle, net, model, outputs = compile_with(
        tmp_path, build, recipe=recipe, input_types={"x": "uint8"}
    )
    assert [info.dtype for info in bundle.manifest.inputs] == ["uint8"]
    (feed,) = frames(net, 1, batch=3, seed=7)
    expected = run_float(model, {k: v.astype(np.float32) for k, v in feed.items()})
    found = run(bundle, feed)
    assert min(sqnr(expected[name], found[name]) for name in outputs) > 25


REFUSED: dict[str, tuple[Architecture, dict[str, Any], str]] = {
    "codes of integers": (
        unusual.arg_max, {"output_types": {"argmax5": "uint8"}}, "argmax5 is INT64, not real"
    ),
    "codes of an input": (
        shapes.input_is_output, {"output_types": {"x": "uint8"}}, "remove it from the outputs"
    ),
    "frames as an output": (
        shapes.input_is_output, {"input_types": {"x": "uint8"}}, "remove it from the outputs"
    ),
    "codes of a constant": (
        unusual.outputs_alike, {"output_types": {"identity6": "uint8"}}, "not computed from the"
    ),
    "no such output": (
        shapes.mlp, {"output_types": {"y": "uint8"}}, "--output-type y: the model has add4"
    ),
    "no such node": (
        shapes.mlp, {"keep_float": ["mathmul0"]}, "no node or value .*did you mean 'matmul0'"
    ),
    "no such unproven node": (
        shapes.mlp, {"allow_unproven": ["matmul0", "mathmul0"]},
        "--allow-unproven mathmul0: no node .*did you mean 'matmul0'",
    ),
    "16 bits": (shapes.mlp, {"output_types": {"add4": "int16"}}, "write uint8 or float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    build, options, text = REFUSED[name]
    with pytest.raises(ModelError, match=text):
        compile_with(tmp_path, build, **options)
    assert list(tmp_path.iterdir()) == []


def test_keep_float(tmp_path: Path) -> None:
    bundle, _, _, _ = compile_with(tmp_path, vision.residual, keep_float=["add*"])
    assert bundle.manifest.certificate.islands == ("add7", "add14")
    report = json.loads((bundle.path / "report.json").read_text())
    assert {row["reason"] for row in report["islands"]} == {"kept by --keep-float"}


def test_fused_kernels_and_exact_sums_are_no_float_islands(tmp_path: Path) -> None:
    bundle, _, _, _ = compile_with(tmp_path, vision.residual)
    report = json.loads((bundle.path / "report.json").read_text())
    assert report["kernels"]["QLinearAdd"] == 2
    assert report["islands"] == report["tail"] == []


def test_a_sum_in_float_needs_a_permission(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="1 nodes without a proof; first: Conv 'conv0'"):
        compile_with(tmp_path, vision.mobilenet_v2, keep_float=["conv0"])


def test_nothing_to_quantize_is_said(tmp_path: Path) -> None:
    bundle, _, _, _ = compile_with(tmp_path, unusual.elementwise_only)
    report = json.loads((bundle.path / "report.json").read_text())
    assert "the model stays float32" in json.dumps(report["notes"])


PERMITTED = {
    "the last Gemm": (vision.residual, "gemm*", 2.0**-12),
    "a Sigmoid at the end": (vision.unet, "sigmoid*", 2.0**-12),
    "Exp of one of two outputs": (vision.detector, "exp*", 2.0**-12),
    "the first Conv": (vision.mobilenet_v2, "conv0", 2.0**-3),
    "everything": (vision.residual, "*", 2.0**-12),
}


@pytest.mark.parametrize("name", PERMITTED)
def test_permitted_without_a_proof(name: str, tmp_path: Path) -> None:
    build, pattern, tolerance = PERMITTED[name]
    bundle, _, _, _ = compile_with(tmp_path, build, keep_float=[pattern], allow_unproven=[pattern])
    manifest = bundle.manifest
    assert manifest.certificate.unproven
    assert manifest.outputs[-1].tolerance == tolerance
    assert all(info.tolerance is None for info in manifest.outputs[:-1])
    report = json.loads((bundle.path / "report.json").read_text())
    assert "allowed without a proof" in json.dumps(report["notes"])
    edgeq.check(bundle, taps=True).raise_for_mismatch()


def test_what_is_permitted_is_held_to_the_tolerance(tmp_path: Path) -> None:
    bundle, _, _, _ = compile_with(
        tmp_path, vision.residual, keep_float=["gemm*"], allow_unproven=["gemm*"]
    )

    # The golden outputs, moved by less and by more than is allowed.
    (name,) = (info.name for info in bundle.manifest.outputs)
    for factor, same in ((1 + 2.0**-13, True), (1 + 2.0**-11, False)):
        tally = Tally(bundle.path, json.loads((bundle.path / "manifest.json").read_text()))
        for run_ in tally._expected:
            run_[name] = (run_[name] * np.float32(factor)).astype(np.float32)
        tally.outputs(bundle.session(), 1)
        assert (tally.mismatches == 0) is same
