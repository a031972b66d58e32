"""Two models side by side, on the simulator: SQNR, off-by-N and the first difference per tensor.

Tensors meet by the name that they had in the float model; the input of a QuantizeLinear stands for
its codes. Where passes rescaled channels (`equalize`), a tensor differs from the original by
those factors; a bundle's report compares with the rescaled float model instead.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq import verify
from edgeq.errors import DataError, ModelError
from edgeq.fidelity import Fidelity, FidelityMeter
from edgeq.graph import consumers
from edgeq.histogram import GrowingHistogram
from edgeq.numerics.affine import QParams
from edgeq.qdq import REAL_NAME, is_units, operand, quantize_node
from edgeq.request import Json
from edgeq.simulate import Simulator
from edgeq.value_histogram import ValueHistogram, float_histogram, value_histogram

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorComparison:
    """One tensor of both models.

    Attributes:
        fidelity: The second model's tensor against the first's.
        mismatches: Elements whose bits differ: codes where both have codes of the same format and
            parameters, else reals.
        first: The first of them.
        histogram: How the values of both lie, where that was asked for.
    """

    fidelity: Fidelity
    mismatches: int
    first: verify.Difference | None
    histogram: ValueHistogram | None = None

    def to_json(self) -> Json:
        """Return the entry of `compare --json`."""
        return {
            "name": self.fidelity.name,
            "sqnr_db": self.fidelity.sqnr_db,
            "off_by": list(self.fidelity.off_by),
            "compared": self.fidelity.elements,
            "mismatches": self.mismatches,
            "first": None if self.first is None else str(self.first),
        }


@dataclass(frozen=True, eq=False)
class _Tensor:
    """How a real tensor is found in one model: the value to tap, and its map if it holds codes."""

    tap: str
    qparams: QParams | None

    def real(self, array: NDArray[Any]) -> NDArray[Any]:
        return array if self.qparams is None else self.qparams.dequantize(array)


class _Meeting:
    """One tensor that both models have."""

    def __init__(self, name: str, left: _Tensor, right: _Tensor, values: "_Values | None") -> None:
        self.left, self.right = left, right
        self._name = name
        self._meter = FidelityMeter(name, right.qparams)
        self._mismatches = 0
        self._first: verify.Difference | None = None
        self._codes = _same_map(left.qparams, right.qparams)
        self._values = values

    def add(self, left: NDArray[Any], right: NDArray[Any], sample: int) -> None:
        if left.shape != right.shape:
            raise DataError(
                f"tensor {self._name!r} has shape {left.shape} in one model and"
                f" {right.shape} in the other"
            )
        pair = (left, right) if self._codes else (self.left.real(left), self.right.real(right))
        count, first = verify.compare(self._name, *pair, sample)
        self._mismatches += count
        self._first = self._first or first
        self._meter.add(self.left.real(left), right)
        if self._values is not None:
            self._values.add(self.left.real(left), self.right.real(right))

    def result(self) -> TensorComparison:
        histogram = None if self._values is None else self._values.result(self._name, self._meter)
        return TensorComparison(self._meter.result(), self._mismatches, self._first, histogram)


class _Values:
    """How the values of a tensor lie in both models."""

    def __init__(self, qparams: QParams | None) -> None:
        self._qparams = None if qparams is None or qparams.axis is not None else qparams
        self._left, self._right = GrowingHistogram(), GrowingHistogram()
        self._low, self._high = math.inf, -math.inf

    def add(self, left: NDArray[Any], right: NDArray[Any]) -> None:
        left, right = (np.asarray(side, np.float32) for side in (left, right))
        if not left.size or not (np.isfinite(left).all() and np.isfinite(right).all()):
            return
        self._left.add(left)
        self._low = min(self._low, float(left.min()))
        self._high = max(self._high, float(left.max()))
        if self._qparams is None:
            self._right.add(right)

    def result(self, name: str, meter: FidelityMeter) -> ValueHistogram | None:
        left, seen = self._left.view(), (self._low, self._high)
        if not left.total:
            return None
        if self._qparams is None or meter.codes is None:
            return float_histogram(name, left, self._right.view(), seen)
        return value_histogram(name, left, seen, meter.codes, self._qparams)


def compare_models(
    first: ir.Model, second: ir.Model, batches: Iterable[Arrays], *, histograms: bool = False
) -> tuple[TensorComparison, ...]:
    """Run both models on the same feeds and compare every tensor that both have, in graph order.

    Args:
        first: The one that counts as right.
        second: The one that is measured against it.
        batches: Feeds of both.
        histograms: Keep how values lie.

    Raises:
        ModelError: They have no tensor in common.
        DataError: There are no feeds, or they do not fit one of the models.
    """
    tensors, others = _tensors(first), _tensors(second)
    meetings = {
        name: _Meeting(name, left, right, _Values(right.qparams) if histograms else None)
        for name, left in tensors.items()
        if (right := others.get(name)) is not None
    }
    if not meetings:
        raise ModelError("the models have no tensor name in common: nothing can be compared")
    simulators = Simulator(first), Simulator(second)
    taps = [
        list(dict.fromkeys(side.tap for side in sides))
        for sides in zip(*((m.left, m.right) for m in meetings.values()), strict=True)
    ]
    sample = -1
    for sample, feeds in enumerate(batches):
        arrays = [s.run(feeds, names) for s, names in zip(simulators, taps, strict=True)]
        for meeting in meetings.values():
            meeting.add(arrays[0][meeting.left.tap], arrays[1][meeting.right.tap], sample)
    if sample < 0:
        raise DataError("there are no samples: nothing was compared")
    return tuple(meeting.result() for meeting in meetings.values())


def _tensors(model: ir.Model) -> dict[str, _Tensor]:
    """Return the comparable tensors by their float names, in graph order.

    Inside a model that edgeq quantized, floats may be units or rescaled: only its codes, which say
    what they stand for, and its outputs are comparable.
    """
    found: dict[str, _Tensor] = {}
    values = [(node, value) for node in model.graph for value in node.outputs if value.name]
    ours = any(REAL_NAME in value.metadata_props for _, value in values)
    for node, value in values:
        name = str(value.name)
        real, qparams = _real(node, value)
        if qparams is not None:
            found[real] = _Tensor(name, qparams)
        elif value.dtype in (None, ir.DataType.FLOAT) and (not ours or value.is_graph_output()):
            found.setdefault(name, _Tensor(name, None))
    return found


def _real(node: ir.Node, value: ir.Value) -> tuple[str, QParams | None]:
    """Return the float name of codes, and their map where the graph tells it.

    Codes that are dequantized with scale 1 only are read as units: their real scale is not in the
    graph.
    """
    name = value.metadata_props.get(REAL_NAME)
    if name is not None:
        readers = (operand(use.outputs[0]) for use in consumers(value))
        maps = (reader.qparams for reader in readers if reader and not is_units(reader))
        return name, next(maps, None)
    if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
        return "", None
    quantized = quantize_node(node)
    return str(node.inputs[0].name), None if quantized is None else quantized.qparams


def _same_map(left: QParams | None, right: QParams | None) -> bool:
    if left is None or right is None or left.qtype is not right.qtype or left.axis != right.axis:
        return False
    return np.array_equal(left.scale, right.scale) and np.array_equal(
        left.zero_point, right.zero_point
    )
