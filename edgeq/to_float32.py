"""Bring every float16, bfloat16 and float64 value of a graph to float32.

float16 and bfloat16 convert exactly; float64 rounds once, and finite numbers beyond float32's range
saturate (masks such as -1.8e308 must not become infinite).
"""

from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
OTHER_FLOATS = (*HALF, ir.DataType.DOUBLE)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")


def to_float32(model: ir.Model, kinds: Collection[ir.DataType] = OTHER_FLOATS) -> list[str]:
    """Convert values of these types in place; return what was converted, as sentences."""
    converted: Counter[str] = Counter()
    inputs = [v for v in model.graph.inputs if v.dtype in kinds]
    outputs = [v for v in model.graph.outputs if v.dtype in kinds]
    notes = [f"input {v.name} is float32 now, was {_name(v.dtype)}" for v in inputs]
    notes += [f"output {v.name} is float32 now, was {_name(v.dtype)}" for v in outputs]
    graphs = list(model.graphs())
    for graph in graphs:
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in kinds:
                converted[_name(tensor.dtype)] += 1
                value.const_value = _convert(tensor)
        for value in (*graph.inputs, *graph.initializers.values()):
            _retype(value, kinds)
        for node in graph:
            for output in node.outputs:
                _retype(output, kinds)
            _convert_attributes(node, converted, kinds)
    return [f"{n} {kind} tensors converted to float32" for kind, n in sorted(converted.items())] + (
        notes
    )


def _name(dtype: ir.DataType | None) -> str:
    return "" if dtype is None else dtype.name.lower()


def _retype(value: ir.Value, kinds: Collection[ir.DataType]) -> None:
    if value.dtype in kinds:
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _convert_attributes(
    node: ir.Node, converted: Counter[str], kinds: Collection[ir.DataType]
) -> None:
    numbers = {int(kind) for kind in kinds}
    for name, attribute in list(node.attributes.items()):
        if attribute.type is ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype in kinds:
                converted[_name(tensor.dtype)] += 1
                node.attributes[name] = ir.AttrTensor(name, _convert(tensor))
        elif name in _TYPE_ATTRIBUTES and attribute.value in numbers:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def _convert(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def convert() -> ir.TensorProtocol:
        return ir.tensor(narrow(tensor.numpy()), name=tensor.name)

    if not isinstance(tensor, ir.ExternalTensor):
        return convert()
    # Mapped weights stay on disk until they are asked for, and are not kept afterwards.
    return ir.LazyTensor(
        convert, dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape), name=tensor.name
    )


def narrow(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return `array` as float32; finite numbers stay finite.

    >>> narrow(np.array([1e300, -np.inf, 0.5]))
    array([3.4028235e+38,          -inf, 5.0000000e-01], dtype=float32)
    """
    if array.dtype == np.float64:
        limit = float(np.finfo(np.float32).max)
        array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return array.astype(np.float32)
