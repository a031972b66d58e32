"""What is in a model: operators, sizes, quantization parameters, and its certificate."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeq.numerics.affine import QParams
from edgeq.qdq import operand, quantize_node
from edgeq.request import Json
from edgeq.stored_codes import stored_format


@dataclass(frozen=True)
class QuantizedRow:
    """How one tensor is quantized.

    Attributes:
        name: Of the codes.
        role: `activation`, `weight` or `bias`.
        qtype: Format of the codes as they are stored.
        granularity: `per_tensor` or `per_channel`.
        scales: The smallest and the largest scale.
        zero_points: The smallest and the largest zero point.
    """

    name: str
    role: str
    qtype: str
    granularity: str
    scales: tuple[float, float]
    zero_points: tuple[int, int]

    def to_json(self) -> Json:
        """Return the entry of `inspect --json`."""
        return {**vars(self), "scales": list(self.scales), "zero_points": list(self.zero_points)}


@dataclass(frozen=True)
class ValueRow:
    """An input or output of the model."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Inspection:
    """What is in a model.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
        operators: Number of nodes by op type, most frequent first.
        parameters: Number of elements of all initializers.
        weight_bytes: Their size, by dtype.
        quantized: Every quantized tensor, in graph order.
    """

    inputs: tuple[ValueRow, ...]
    outputs: tuple[ValueRow, ...]
    operators: Mapping[str, int]
    parameters: int
    weight_bytes: Mapping[str, int]
    quantized: tuple[QuantizedRow, ...]

    def to_json(self) -> dict[str, object]:
        """Return the object of `inspect --json`, without the certificate."""
        rows = {"inputs": self.inputs, "outputs": self.outputs}
        return {
            **{key: [vars(row) for row in values] for key, values in rows.items()},
            "operators": dict(self.operators),
            "parameters": self.parameters,
            "weight_bytes": dict(self.weight_bytes),
            "quantized": [row.to_json() for row in self.quantized],
        }


def inspect_model(model: ir.Model) -> Inspection:
    """Return what is in `model`; its arrays are not read, apart from scales and zero points."""
    graph = model.graph
    counts = Counter(node.op_type for node in graph)
    sizes: Counter[str] = Counter()
    parameters = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            sizes[_dtype_name(tensor.dtype)] += int(tensor.nbytes)
            parameters += int(tensor.size)
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    return Inspection(
        tuple(_value(v) for v in inputs),
        tuple(_value(v) for v in graph.outputs),
        dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        parameters,
        dict(sorted(sizes.items())),
        tuple(_quantized(graph)),
    )


def _quantized(graph: ir.Graph) -> list[QuantizedRow]:
    rows: dict[str, QuantizedRow] = {}
    for node in graph:
        result = quantize_node(node) if node.op_type == "QuantizeLinear" else None
        if result is not None:
            name = str(result.codes.name)
            rows.setdefault(name, _row(name, "activation", result.qparams))
        found = operand(node.outputs[0]) if node.op_type == "DequantizeLinear" else None
        if found is None:
            continue
        name = str(found.codes.name)
        packed = stored_format(found.codes)
        constant = found.codes.const_value is not None or packed is not None
        wide = found.qparams.qtype.bits > 16
        role = "bias" if constant and wide else "weight" if constant else "activation"
        row = _row(name, role, found.qparams)
        rows.setdefault(name, row if packed is None else replace(row, qtype=packed))
    return list(rows.values())


def _row(name: str, role: str, qparams: QParams) -> QuantizedRow:
    scale, zero = np.atleast_1d(qparams.scale), np.atleast_1d(qparams.zero_point)
    return QuantizedRow(
        name,
        role,
        qparams.qtype.name,
        "per_tensor" if qparams.axis is None else "per_channel",
        (float(scale.min()), float(scale.max())),
        (int(zero.min()), int(zero.max())),
    )


def _value(value: ir.Value) -> ValueRow:
    dtype = "unknown" if value.dtype is None else _dtype_name(value.dtype)
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return ValueRow(str(value.name), dtype, shape)


def _dtype_name(dtype: ir.DataType) -> str:
    """Return numpy's spelling: ONNX says `FLOAT` and `DOUBLE`."""
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())
