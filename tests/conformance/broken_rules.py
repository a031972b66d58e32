"""Small QDQ models in ONNX text, run by ONNX Runtime and by the simulator: what rules are about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from edgeq.lint import Finding, lint
from edgeq.numerics.ort_kernels import AVX2, host_cpu
from edgeq.simulate import Simulator

Array = NDArray[Any]
Arrays = Mapping[str, Array]
RNG = np.random.default_rng(0)
x86 = pytest.mark.skipif(host_cpu() != AVX2, reason="shown on x86 with AVX2")


def f32(*values: float) -> Array:
    return np.array(values if len(values) != 1 else values[0], np.float32)


def u8(value: int) -> Array:
    return np.array(value, np.uint8)


def s8(value: int) -> Array:
    return np.array(value, np.int8)


def build(body: str, constants: Arrays, inputs: str, outputs: str = "uint8 y") -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    return onnx.shape_inference.infer_shapes(proto)


def on_runtime(
    proto: onnx.ModelProto, feeds: Arrays, options: Mapping[str, str] | None = None
) -> list[Array]:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    session = ort.InferenceSession(
        proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(a) for a in session.run(None, dict(feeds))]


def kernels(proto: onnx.ModelProto, path: Path) -> set[str]:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(path / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path / "optimized.onnx").graph.node}


def findings(proto: onnx.ModelProto, rule: str) -> list[Finding]:
    return [f for f in lint(ir.from_proto(proto)) if f.rule == rule]


def breaks(proto: onnx.ModelProto, rule: str, count: int = 1) -> Finding:
    found = findings(proto, rule)
    assert len(found) == count, lint(ir.from_proto(proto))
    assert found[0].node and found[0].value and found[0].remedy
    return found[0]


def differing(proto: onnx.ModelProto, feeds: Arrays, name: str = "y") -> int:
    """Count the elements of `name` where ONNX Runtime leaves the simulator."""
    (found,) = on_runtime(proto, feeds)
    expected = Simulator(ir.from_proto(proto)).run(feeds)[name]
    assert found.dtype == expected.dtype and found.size == expected.size > 100
    return int((found != expected).sum())


W = RNG.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8)
CONV = (
    "xd = DequantizeLinear(x, sx, zx) wd = DequantizeLinear(w, sw, zw)"
    " c = Conv(xd, wd) y = QuantizeLinear(c, sy, zy)"
)
BASE: Arrays = {
    "sx": f32(0.1),
    "zx": u8(10),
    "w": W,
    "sw": f32(0.01),
    "zw": s8(0),
    "sy": f32(0.3),
    "zy": u8(100),
    "one": f32(1),
}
IMAGE = "uint8[2,4,64,64] x"
X = RNG.integers(0, 256, (2, 4, 64, 64)).astype(np.uint8)


def conv(
    body: str = CONV, inputs: str = IMAGE, outputs: str = "uint8 y", **changes: Array
) -> onnx.ModelProto:
    return build(body, {**BASE, **changes}, inputs, outputs)
