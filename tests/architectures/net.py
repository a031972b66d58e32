"""Builds small float models node by node, with random weights of a sensible size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Feed = dict[str, NDArray[np.float32]]


class Net:
    """A model in the making; every method that adds a node returns the name of its result."""

    def __init__(
        self, seed: int = 0, *, batch: str | int = "batch", symbolic: Sequence[str] = ()
    ) -> None:
        """Start a model.

        Args:
            seed: Of the weights.
            batch: The batch axis of all inputs: a name, or a size.
            symbolic: Names for the last dimensions of all inputs, in place of their sizes.
        """
        self.generator = np.random.default_rng(seed)
        self.batch = batch
        self.symbolic = symbolic
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, float] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, *shape: int, name: str = "x", size: float = 1.0) -> str:
        """Add an input; `shape` is without the batch axis, `size` the magnitude of its samples."""
        self.shapes[name] = shape
        self.sizes[name] = size
        return name

    def weight(self, *shape: int, size: float = 1.0) -> str:
        """Add normal weights."""
        return self.constant(self.generator.normal(0, size, shape))

    def constant(self, values: Any) -> str:
        """Add a constant: int64 where all are Python integers, else float32."""
        array = np.asarray(values)
        array = array if array.dtype.kind in "ib" else array.astype(np.float32)
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def split(self, op_type: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with `count` outputs."""
        name = f"{op_type.lower()}{len(self.nodes)}"
        outputs = [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=name, **attributes))
        return outputs

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.split(op_type, 1, *inputs, **attributes)[0]

    def conv(
        self,
        x: str,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        dims: int = 2,
        bias: bool = True,
        group: int = 1,
        **attributes: Any,
    ) -> str:
        """Add a Conv; pads keep the size unless they are given."""
        fan_in = inputs // group * kernel**dims
        shape = (outputs, inputs // group, *[kernel] * dims)
        w = self.weight(*shape, size=np.sqrt(2 / fan_in))
        attributes.setdefault("pads", [kernel // 2] * (2 * dims))
        extra = [self.weight(outputs, size=0.1)] if bias else []
        return self("Conv", x, w, *extra, group=group, **attributes)

    def conv_relu(self, x: str, inputs: int, outputs: int, kernel: int = 3, **more: Any) -> str:
        """Add Conv - Relu."""
        return self("Relu", self.conv(x, inputs, outputs, kernel, **more))

    def batch_norm(self, x: str, channels: int) -> str:
        """Add a BatchNormalization with statistics that are not trivial."""
        parts = [
            self.constant(self.generator.uniform(0.5, 1.5, channels)),
            self.weight(channels, size=0.3),
            self.weight(channels, size=0.3),
            self.constant(self.generator.uniform(0.5, 2, channels)),
        ]
        return self("BatchNormalization", x, *parts)

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        """Add a Gemm as torch exports it."""
        w = self.weight(outputs, inputs, size=np.sqrt(1 / inputs))
        return self("Gemm", x, w, self.weight(outputs, size=0.1), transB=1)

    def classify(self, x: str, channels: int, classes: int = 5) -> str:
        """Add GlobalAveragePool - Flatten - Gemm."""
        return self.dense(self("Flatten", self("GlobalAveragePool", x)), channels, classes)

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """Return the model."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [self._info(name) for name in self.shapes],
            [self._info(name) for name in outputs],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(inferred)
        return inferred

    def _info(self, name: str) -> onnx.ValueInfoProto:
        """Describe an input, or an output: what is computed is inferred."""
        if name not in self.shapes:
            return onnx.ValueInfoProto(name=name)
        fixed = self.shapes[name][: len(self.shapes[name]) - len(self.symbolic)]
        shape = [self.batch, *fixed, *self.symbolic]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def feeds(
        self, count: int, *, batch: int = 1, seed: int = 1, last: Sequence[int] = ()
    ) -> list[Feed]:
        """Return random samples for the inputs, `last` being the sizes of their last dimensions."""
        generator = np.random.default_rng(seed)
        return [
            {
                name: generator.normal(
                    0, self.sizes[name], (batch, *shape[: len(shape) - len(last)], *last)
                ).astype(np.float32)
                for name, shape in self.shapes.items()
            }
            for _ in range(count)
        ]
