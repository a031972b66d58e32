"""Small models written as text, and their certificates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.certify import Certificate, certify
from edgeq.longest import MAX_DIM
from edgeq.targeting import Capabilities

FUSED = frozenset(
    {"Add", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax"}
)
ORT = Capabilities(fused=FUSED)
Arrays = Mapping[str, NDArray[Any]]


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values if len(values) != 1 else values[0], np.float32)


def u8(value: int) -> NDArray[np.uint8]:
    return np.array(value, np.uint8)


def model(body: str, constants: Arrays, inputs: str, outputs: str = "float[?] y") -> ir.Model:
    """A model of the nodes in `body`; constants become initializers, shapes are inferred."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text.replace("[?]", ""))
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


UNITS = "xd = DequantizeLinear(x, one, z)"
BASE: Arrays = {"one": f32(1), "z": u8(10), "half": f32(0.5), "third": f32(1 / 3), "zy": u8(7)}


def certificate(
    body: str,
    constants: Arrays | None = None,
    inputs: str = "uint8[1,8,10,10] x",
    capabilities: Capabilities = ORT,
    outputs: str = "float[?] y",
    max_dim: int = MAX_DIM,
) -> Certificate:
    built = model(body, {**BASE, **(constants or {})}, inputs, outputs)
    return certify(built, capabilities, max_dim)


def kinds(found: Certificate) -> list[str]:
    return [p.kind for p in found.proofs]


def last(found: Certificate) -> tuple[str, str]:
    return found.proofs[-1].kind, found.proofs[-1].detail


RNG = np.random.default_rng(0)
W8 = RNG.integers(-127, 128, (4, 8, 3, 3)).astype(np.int8)
