"""The second moments of what a linear op reads: all that the error of its result depends on.

With rows x of inputs in units, and the float model's results y in steps of the input's scale,

    sum over rows of (y - w x)**2  =  sum y**2 - 2 w (sum y x) + w (sum x x^T) w^T

so layers are rounded with the exact error over every sample, and the memory depends on the size of
the layer alone. Sums of units are exact: 8-bit products in float32 blocks, added up in float64.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.calibrate import Feeds, as_float, batches, joined, tapped_session
from edgeq.linear_rows import LinearRows
from edgeq.numerics.blas import single_threaded
from edgeq.operators.batchwise import keeps_samples_apart
from edgeq.qdq import REAL_NAME
from edgeq.runtime import run
from edgeq.simulate import Simulator

Array = NDArray[Any]
Float64 = NDArray[np.float64]

BATCH = 4  # samples that run together, where they do not meet


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """Sums over all rows that one linear op read.

    Attributes:
        count: How many rows there were.
        inputs: float64 (groups, depth, depth): sum x x^T, exact.
        input_sums: float64 (groups, depth): sum x, exact.
        targets: float64 (outputs, depth): sum y x; None where the float model has no such value.
        target_sums: float64 (outputs,): sum y.
    """

    count: int
    inputs: Float64
    input_sums: Float64
    targets: Float64 | None
    target_sums: Float64 | None


def second_moments(
    model: ir.Model,
    simulator: Simulator,
    layers: Sequence[LinearRows],
    feeds: Iterable[Feeds],
    reference: ir.Model,
    names: Mapping[str, str],
) -> list[SecondMoments]:
    """Stream samples through the quantized model, and through the float one beside it.

    Args:
        model: The quantized model.
        simulator: Of it, as far as it is.
        layers: The linear ops in question.
        feeds: The samples, with a batch axis.
        reference: The float model.
        names: By the name of a linear op's output, that of the float model's value for it;
            ops that it does not name have no targets.
    """
    sums = [_Sums(layer) for layer in layers]
    session = tapped_session(reference, list(names.values())) if names else None
    groups = [[str(layer.group.x.codes.name)] for layer in layers]
    batch = BATCH if keeps_samples_apart(model.graph) else 1
    for some in batches(feeds, batch):
        feed = joined(some)
        real = {} if session is None else run(session, as_float(reference, feed))
        with single_threaded():  # else the last bits of the targets depend on the machine
            for number, values in simulator.observe(feed, groups):
                name = names.get(str(layers[number].group.node.outputs[0].name))
                (codes,) = values.values()
                sums[number].add(codes, None if name is None else real[name])
    return [one.result() for one in sums]


def float_results(layers: Sequence[LinearRows], reference: ir.Model) -> dict[str, str]:
    """Return, by the name of an op's result, that of the float model's, where it has the op too."""
    known = {(str(v.name), node.op_type) for node in reference.graph for v in node.outputs}
    found: dict[str, str] = {}
    for layer in layers:
        node, name = layer.group.node, str(layer.group.node.outputs[0].name)
        # The name of an output of the model went to what is behind the codes.
        for real in (name, layer.group.output.metadata_props.get(REAL_NAME, "")):
            if (real, node.op_type) in known:
                found.setdefault(name, real)
    return found


def moment_bytes(layer: LinearRows) -> int:
    """Return what the moments of a layer take."""
    return 8 * layer.depth * (layer.groups * (layer.depth + 1) + layer.outputs)


class _Sums:
    """Adds up the moments of one layer."""

    def __init__(self, layer: LinearRows) -> None:
        self._layer, self._count = layer, 0
        self._inputs = np.zeros((layer.groups, layer.depth, layer.depth))
        self._input_sums = np.zeros((layer.groups, layer.depth))
        self._targets = np.zeros((layer.groups, layer.outputs // layer.groups, layer.depth))
        self._target_sums = np.zeros(layer.outputs)
        self._real = False

    def add(self, codes: Array, values: Array | None) -> None:
        results = None if values is None else self._scaled(values)
        for place, x in self._layer.inputs(codes):
            self._count += x.shape[1]
            self._inputs += x.swapaxes(1, 2) @ x
            self._input_sums += x.sum(1, dtype=np.float64)
            if results is not None:
                y = results[place].reshape(len(results[place]), self._layer.groups, -1)
                self._targets += np.moveaxis(y, 0, 2) @ x
        if results is not None:
            self._real = True
            self._target_sums += results.sum(0, dtype=np.float64)

    def _scaled(self, values: Array) -> NDArray[np.float32]:
        results = self._layer.results(values)
        return np.asarray(results / self._layer.group.x.qparams.scale, np.float32)

    def result(self) -> SecondMoments:
        targets = self._targets.reshape(self._layer.outputs, self._layer.depth)
        return SecondMoments(
            self._count,
            self._inputs,
            self._input_sums,
            targets if self._real else None,
            self._target_sums if self._real else None,
        )
