"""The noise of weights is told from that of activations."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.commands.compile import describe
from edgeq.compile import compile_model
from edgeq.float_weight import FloatWeight
from edgeq.noise_sources import noise_sources
from edgeq.numerics.qtype import QTYPES
from edgeq.request import CompileRequest
from edgeq.runtime import SHARED
from edgeq.simulate import Simulator

DIGITS = Path(__file__).parent.parent / "samples" / "digits"
SHAPE = (4, 6)


@pytest.mark.parametrize(("limit", "mostly"), [(127, False), (3, True)], ids=["8 bits", "3 bits"])
def test_the_noise_of_a_model_is_mostly_that_of_coarse_weights(limit, mostly, tmp_path):
    request = CompileRequest(
        model=DIGITS / "digits.onnx",
        target="ort-cpu",
        calibration=DIGITS / "calibration.npz",
        settings={"weight.limit": str(limit)},
        output=tmp_path / "bundle",
    )
    outcome = compile_model(request)
    found = outcome.noise
    assert found is not None and found.share is not None and found.weights_db is not None
    assert (found.share > 0.9) == mostly
    assert (found.weights_db < 20) == mostly
    assert found.samples == 32 and outcome.to_json()["noise"] == found.to_json()
    line = f"noise: {found.weights_db:.2f} dB with the weights alone"
    assert any(text.startswith(line) for text in describe(outcome))


def gemm(codes: np.ndarray, x_scale: float, quantized: bool, scale: float = 0.25) -> ir.Model:
    """`y = x @ w`, in float32 or on codes."""
    real = codes.astype(np.float32) * np.float32(0.25)
    constants: dict[str, Any] = {"w": real}
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"])]
    if quantized:
        constants = {
            "w_q": codes,
            "w_scale": np.float32(scale),
            "w_zero": np.int8(0),
            "x_scale": np.float32(x_scale),
            "x_zero": np.uint8(128),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"]),
            helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w_dq"]),
            helper.make_node("Gemm", ["x_dq", "w_dq"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SHAPE[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, codes.shape[1]])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def sources(weight: float, x_scale: float = 0.5, scale: float = 0.25):
    codes = np.random.default_rng(0).integers(-7, 8, SHAPE).astype(np.int8)
    real = codes.astype(np.float32) * np.float32(0.25) + np.float32(weight)
    reference = gemm(codes, x_scale, quantized=False)
    reference.graph.initializers["w"].const_value = ir.tensor(real, name="w")
    feeds = [{"x": (np.arange(4, dtype=np.float32)[None] - n) * np.float32(0.5)} for n in range(3)]
    quantized = gemm(codes, x_scale, quantized=True, scale=scale)
    simulator = Simulator(quantized)
    source = {"w_q": FloatWeight(real, QTYPES["int8"], 127)}
    return noise_sources(reference, quantized, source, lambda f: simulator.run(f)["y"], feeds)


def test_weights_on_the_grid_make_no_noise():
    found = sources(weight=0.0, x_scale=0.3)
    assert found.weights_db is None
    assert (found.weights, found.samples) == (1, 3)


def test_with_activations_on_the_grid_all_noise_is_that_of_the_weights():
    assert sources(weight=0.1).share == pytest.approx(1.0)


def test_with_noise_of_both_the_weights_have_a_share():
    assert 0.05 < sources(weight=0.1, x_scale=0.3).share < 0.95


def test_codes_that_are_read_as_units_stand_for_the_same_weights():
    assert sources(weight=0.0, scale=1.0).weights_db is None


def test_a_model_without_codes_has_no_such_noise():
    model = gemm(np.ones(SHAPE, np.int8), 1.0, quantized=False)
    assert noise_sources(model, model, {}, lambda feed: feed["x"], []) is None


def test_a_weight_may_be_large():
    """Large ones are handed to ONNX Runtime by name, which has dropped those that nobody reads."""
    codes = np.random.default_rng(0).integers(-7, 8, (4, SHARED // 8)).astype(np.int8)
    reference, quantized = (gemm(codes, 0.5, quantized=q) for q in (False, True))
    real = codes.astype(np.float32) * np.float32(0.25)
    assert real.nbytes > SHARED
    simulator = Simulator(quantized)
    source, feeds = (
        {"w_q": FloatWeight(real, QTYPES["int8"], 127)},
        [{"x": np.ones((1, 4), np.float32)}],
    )
    found = noise_sources(reference, quantized, source, lambda f: simulator.run(f)["y"], feeds)
    assert found is not None and found.weights_db is None and found.weights == 1
