"""One fused operator as a row: its inputs and attributes, a model of it, and what it computes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
B, S, T, P = 2, 5, 7, 6  # batch, queries, keys, cached keys: these lengths are symbolic too
SYMBOLS = {B: "B", S: "S", T: "T", P: "P", P + S: "PS", P + T: "PT"}
OPSET = 17


def real(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


@dataclass(frozen=True)
class Row:
    """One node: its operator, inputs (by name; None omits one), attributes and oracle."""

    rule: str
    op_type: str
    inputs: Mapping[str, Array | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = "com.microsoft"
    opset: int = OPSET
    outputs: tuple[str, ...] = ("y",)  # "" omits one
    constants: tuple[str, ...] = ()
    oracle: Callable[..., Any] | None = None
    reference: bool = False

    def model(self, symbolic: bool) -> onnx.ModelProto:
        given = {name: a for name, a in self.inputs.items() if a is not None}
        node = helper.make_node(
            self.op_type,
            [name if a is not None else "" for name, a in self.inputs.items()],
            self.outputs,
            "fused",
            domain=self.domain,
            **self.attributes,
        )
        kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in given.items()}
        infos = [
            helper.make_tensor_value_info(
                n, kinds[n], [SYMBOLS.get(d, d) if symbolic else d for d in a.shape]
            )
            for n, a in given.items()
            if n not in self.constants
        ]
        outs = [helper.make_tensor_value_info(n, self.dtype(n), None) for n in self.outputs if n]
        weights = [onnx.numpy_helper.from_array(given[n], n) for n in self.constants]
        graph = helper.make_graph([node], "g", infos, outs, weights)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def holding(self, *names: str) -> "Row":
        """Return the same with these inputs, as far as it has them, in the model."""
        held = [name for name in names if self.inputs.get(name) is not None]
        return replace(self, constants=tuple(dict.fromkeys((*self.constants, *held))))

    def dtype(self, name: str) -> int:
        return onnx.TensorProto.INT32 if name.startswith("int_") else onnx.TensorProto.FLOAT

    def feeds(self) -> dict[str, Array]:
        return {n: a for n, a in self.inputs.items() if a is not None and n not in self.constants}

    def expected(self) -> list[Array]:
        if self.oracle is not None:
            given = self.oracle(**self.inputs)
            return list(given) if isinstance(given, tuple) else [given]
        model = self.model(symbolic=False)
        if self.reference:
            return list(ReferenceEvaluator(model).run(None, self.feeds()))
        return run(model.SerializeToString(), self.feeds())


def run(model: bytes, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(model, options).run(None, feeds))


def gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))))


def tanh_gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def silu(x: Array, alpha: float = 1.0) -> Array:
    return np.asarray(x / (1 + np.exp(-alpha * x)))


def group_norm(x: Array, gamma: Array, beta: Array, groups: int, epsilon: float) -> Array:
    """Channels last."""
    n, c = x.shape[0], x.shape[-1]
    grouped = x.reshape(n, -1, groups, c // groups).astype(np.float64)
    mean = grouped.mean((1, 3), keepdims=True)
    unit = (grouped - mean) / np.sqrt(grouped.var((1, 3), keepdims=True) + epsilon)
    return np.asarray(unit.reshape(x.shape) * gamma + beta)
