"""A small quantized model, written by hand, and a bundle of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from edgeq.bundle import Bundle, write_bundle
from edgeq.fidelity import Fidelity
from edgeq.golden import GoldenVectors
from edgeq.graph import to_bytes
from edgeq.manifest import BitSummary, CertificateSummary, Manifest, SampleInfo, TensorInfo
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import UINT8
from edgeq.report import OperatorRow, Report, VerdictRow
from edgeq.simulate import Simulator
from edgeq.stimuli import StimulusInput, stimuli
from edgeq.targeting import Artifact

settings.register_profile("long", max_examples=3000)  # see tests/fuzzing.py

TAPS = ("x_q", "conv_q", "fc_q")
QPARAMS = QParams(UINT8, np.array(0.02, np.float32), np.array(121, np.int32))
INPUT = StimulusInput("x", np.dtype(np.float32), (1, 2, 5, 5), QPARAMS)


def tiny_proto() -> onnx.ModelProto:
    """Conv - Flatten - Gemm, quantized, with a symbolic batch."""
    generator = np.random.default_rng(0)
    initializers = {
        "x_scale": np.float32(0.02),
        "x_zero_point": np.uint8(121),
        "w": generator.integers(-127, 128, (3, 2, 3, 3)).astype(np.int8),
        "w_scale": np.array([0.01, 0.013, 0.017], np.float32),
        "w_zero_point": np.zeros(3, np.int8),
        "b": generator.integers(-500, 500, 3).astype(np.int32),
        "b_scale": np.float32(0.02) * np.array([0.01, 0.013, 0.017], np.float32),
        "b_zero_point": np.zeros(3, np.int32),
        "conv_scale": np.float32(0.08),
        "conv_zero_point": np.uint8(130),
        "v": generator.integers(-127, 128, (4, 27)).astype(np.int8),
        "v_scale": np.float32(0.005),
        "v_zero_point": np.int8(0),
        "fc_scale": np.float32(0.1),
        "fc_zero_point": np.uint8(127),
    }

    def pair(name: str, to: str, kind: str, axis: int | None = None) -> onnx.NodeProto:
        base = to.removesuffix("_q").removesuffix("_dq")
        inputs = [name, f"{base}_scale", f"{base}_zero_point"]
        node = helper.make_node(f"{kind}Linear", inputs, [to], name=to)
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        return node

    nodes = [
        pair("x", "x_q", "Quantize"),
        pair("x_q", "x_dq", "Dequantize"),
        pair("w", "w_dq", "Dequantize", 0),
        pair("b", "b_dq", "Dequantize", 0),
        helper.make_node("Conv", ["x_dq", "w_dq", "b_dq"], ["conv"], name="conv"),
        pair("conv", "conv_q", "Quantize"),
        pair("conv_q", "conv_dq", "Dequantize"),
        helper.make_node("Flatten", ["conv_dq"], ["flat"], name="flat"),
        helper.make_node("QuantizeLinear", ["flat", "conv_scale", "conv_zero_point"], ["flat_q"]),
        helper.make_node(
            "DequantizeLinear", ["flat_q", "conv_scale", "conv_zero_point"], ["flat_dq"]
        ),
        pair("v", "v_dq", "Dequantize"),
        helper.make_node("Gemm", ["flat_dq", "v_dq"], ["fc"], name="fc", transB=1),
        pair("fc", "fc_q", "Quantize"),
        helper.make_node("DequantizeLinear", ["fc_q", "fc_scale", "fc_zero_point"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def tiny_float_proto() -> onnx.ModelProto:
    """Conv - Relu - Flatten - Gemm, float32, with a symbolic batch."""
    generator = np.random.default_rng(1)
    initializers = {
        "w": generator.normal(0, 0.3, (3, 2, 3, 3)).astype(np.float32),
        "v": generator.normal(0, 0.2, (4, 27)).astype(np.float32),
        "c": generator.normal(0, 0.1, 4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("Flatten", ["relu"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "v", "c"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(a, name) for name, a in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def tiny_float() -> onnx.ModelProto:
    """The float model."""
    return tiny_float_proto()


@pytest.fixture
def tiny() -> ir.Model:
    """The quantized model."""
    return ir.from_proto(tiny_proto())


@pytest.fixture
def write_tiny(tiny: ir.Model) -> Callable[..., Bundle]:
    """A function that writes a bundle of the quantized model to a folder."""

    def write(path: Path, *, force: bool = False) -> Bundle:
        simulator = Simulator(tiny)
        golden = GoldenVectors(TAPS)
        for feeds in stimuli([INPUT], rounds=1):
            arrays = simulator.run(feeds, TAPS)
            assert golden.add(feeds, {"y": arrays["y"]}, arrays)
        return write_bundle(
            path,
            artifact=Artifact({"model.onnx": to_bytes(tiny)}),
            manifest=Manifest(
                artifact="model.onnx",
                target="ort-cpu",
                recipe="int8",
                inputs=(TensorInfo("x", "float32", ("batch", 2, 5, 5)),),
                outputs=(TensorInfo("y", "float32", ("batch", 4)),),
                bitwise=BitSummary(4, 1000, 0),
                certificate=CertificateSummary(2, (), {"integer": 2}),
                samples=SampleInfo(10, "00"),
                versions={"edgeq": "0.1.0", "onnxruntime": onnxruntime.__version__},
                session_options={"session.x64quantprecision": "1"},
                metrics={"sqnr_db": 30.5, "top1": 50.0},
            ),
            golden=golden,
            report=tiny_report(),
            force=force,
        )

    return write


@pytest.fixture
def bundle(tmp_path: Path, write_tiny: Callable[..., Bundle]) -> Bundle:
    """A bundle of the quantized model."""
    return write_tiny(tmp_path / "bundle")


def tiny_report() -> Report:
    """A report with one of everything; names try to break the page."""
    return Report(
        model="<script>alert(1)</script>",
        target="ort-cpu",
        recipe="int8",
        recipe_text='[activation]\nqtype = "uint8"',
        verdicts=(VerdictRow("calibration samples", 10, 4, 1000, 0),),
        bytes_float=4000,
        bytes_deployed=1000,
        layers=(
            Fidelity("better", 40.0, (90, 10, 0, 0, 0), 100),
            Fidelity("worse & <b>", 10.0, (10, 40, 30, 15, 5), 100),
            Fidelity("same", None, (100, 0, 0, 0, 0), 100),
        ),
        kernels={"QLinearConv": 1, "QGemm": 1},
        operators=(
            OperatorRow(
                "conv", "Conv", "integer", "bound 12345", "QLinearConv", "uint8 * int8 -> uint8"
            ),
        ),
        versions={"edgeq": "0.1.0"},
    )


@pytest.fixture
def report() -> Report:
    """A report with one of everything."""
    return tiny_report()


@pytest.fixture
def folder(tmp_path: Path, tiny_float: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `model.onnx`, `calibration.npz` and `evaluation.npz`; the current one."""
    onnx.save(tiny_float, tmp_path / "model.onnx")
    generator = np.random.default_rng(0)
    x = generator.normal(0, 1, (12, 2, 5, 5)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=x)
    np.savez(tmp_path / "evaluation.npz", x=x, label=generator.integers(0, 4, 12))
    monkeypatch.chdir(tmp_path)
    return tmp_path
