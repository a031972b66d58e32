"""How large open dimensions can be: said once, proven up to there, refused beyond."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import edgeq
from edgeq.bundle import Bundle
from edgeq.cli import app
from edgeq.errors import BundleError, DataError, VerificationError
from edgeq.longest import longest, most_elements

TEXT = """<ir_version: 10, opset_import: ["": 21]>
g (float[N,L,8] x) => (float[N,L,4] y) <float h = {0.35}> {
  k = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, k) t = Mul(s, h) p = Softmax(t) a = MatMul(p, x)
  y = MatMul(a, w)
}"""


def float_model() -> onnx.ModelProto:
    """Attention over a row of open length, and one Linear layer."""
    proto = onnx.parser.parse_model(TEXT)
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return proto


def rows(length: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, length, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle for rows of up to 20."""
    folder = tmp_path_factory.mktemp("max-dim")
    return edgeq.compile(
        float_model(), calibration=[{"x": rows(12)}], output=folder / "bundle", max_dim=20
    )


def test_the_bundle_says_so(bundle: Bundle) -> None:
    assert bundle.manifest.max_dim == 20
    assert json.loads((bundle.path / "manifest.json").read_text())["max_dim"] == 20
    assert bundle.manifest.certificate.unproven == ()


@pytest.mark.parametrize("length", [1, 2, 20])
def test_lengths_up_to_it_are_right(bundle: Bundle, length: int) -> None:
    fed = {"x": rows(length)}
    (found,) = bundle.session().run(None, bundle.quantize_inputs(fed))
    (expected,) = edgeq.simulate(bundle.path, fed).values()
    assert found.shape == (4, length, 4) and found.tobytes() == expected.tobytes()


def test_a_longer_row_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    message = "a dimension of 21.*proven up to 20: compile.*--max-dim 21"
    with pytest.raises(BundleError, match=f"'x' has {message}"):
        bundle.quantize_inputs({"x": rows(21)})
    with pytest.raises(BundleError, match=f"'x' has {message}"):
        edgeq.simulate(bundle.path, {"x": rows(21)})
    np.savez(tmp_path / "long.npz", x=rows(21), label=np.zeros((4, 21), np.int64))
    with pytest.raises(BundleError, match=message):
        edgeq.check(bundle, evaluation=tmp_path / "long.npz", metric="top1")
    np.savez(tmp_path / "x.npz", x=rows(21))
    arguments = ["simulate", bundle.path, "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz"]
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 2 and "--max-dim 21" in found.output.replace("\n", " ")
    with pytest.raises(DataError, match=message):
        edgeq.compile(
            float_model(), calibration=tmp_path / "long.npz", output=tmp_path / "b", max_dim=20
        )


def test_what_is_proven_for_less_is_refused_for_more(tmp_path: Path) -> None:
    """The sum of 65537 terms leaves fewer than 8 bits to each."""
    with pytest.raises(edgeq.errors.ModelError, match="rows of 65537 elements"):
        edgeq.compile(
            float_model(), calibration=[{"x": rows(9)}], output=tmp_path / "b", max_dim=65537
        )
    mean = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N,L,8] x) => (float[N,8] y)'
        " <int64[1] axis = {1}> { y = ReduceMean<keepdims = 0>(x, axis) }"
    )
    feeds, folder = [{"x": rows(9)}], tmp_path / "mean"
    with pytest.raises(VerificationError, match="pass a lower --max-dim"):
        edgeq.compile(mean, calibration=feeds, output=folder, max_dim=132_000)
    found = edgeq.compile(mean, calibration=feeds, output=folder, max_dim=65_000)  # 2**24 // 258
    assert found.manifest.certificate.unproven == ()


def test_the_command_takes_it(tmp_path: Path) -> None:
    onnx.save(float_model(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calibration.npz", x=rows(12))
    output = tmp_path / "bundle"
    arguments = ["compile", tmp_path / "model.onnx", "--target", "ort-cpu", "-q", "--json"]
    arguments += ["--calibration", tmp_path / "calibration.npz", "-o", output, "--max-dim", 30]
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.output
    assert json.loads((output / "manifest.json").read_text())["max_dim"] == 30
    assert CliRunner().invoke(app, [*map(str, arguments[:-1]), "0"]).exit_code == 2


@pytest.mark.parametrize(
    ("name", "bound"),
    [("L", 100), ("batch*length", 10_000), ("4*length", 400), ("length + 1", 100), (None, 100)],
)
def test_open_dimensions_have_bounds(name: str | None, bound: int) -> None:
    assert longest(ir.SymbolicDim(name), 100) == bound
    assert most_elements([3, ir.SymbolicDim(name)], 100) == 3 * bound
