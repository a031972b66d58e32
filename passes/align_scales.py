"""Scale whole tensors so that the best clipping range of each has a power-of-two scale.

before:  y = Conv(Relu(Conv(x, w1, b1)), w2)
after:   y = Conv(Relu(Conv(x, w1 / t, b1 / t)), w2 * t)        t > 0 per tensor between them

A power-of-two scale misses the best one by a factor of up to sqrt(2) either way: it clips, or
wastes codes. With `t = best scale / nearest power of two` the tensor is stored in units in which it
misses nothing. Exact in real arithmetic through everything that commutes with a positive factor:
Relu, PRelu, pools, Concat, Add of values with the same t, ops that move elements; a Clip's limits
are divided by t. Tensors that meet there share one t. Graph inputs and outputs, and what other ops
read or make, keep t = 1.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.calibrate import Calibration, calibrate
from edgeq.graph import Editor, constant
from edgeq.linear_weights import (
    behind_affine,
    has_linear_weights,
    input_channels,
    linear_weights,
    set_linear_weights,
)
from edgeq.numerics.qtype import FORMATS
from edgeq.observe import choose_range
from edgeq.passing import Context, Pass
from edgeq.recipe import QuantSpec
from edgeq.roles import activation_inputs, behind_clips, data_inputs, is_activation, moves_codes

_COMMUTES = frozenset(
    {"Add", "AveragePool", "Clip", "GlobalAveragePool", "LeakyRelu", "PRelu", "ReduceMean"}
    | {"Relu", "Resize", "Sub", "Sum"}
)


@dataclass(frozen=True)
class AlignScales(Pass):
    """Give tensors the factor that makes their best scale a power of two."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite weights and limits; return how many groups of tensors were scaled."""
        groups = _Groups(model, context)
        free = groups.free()
        if not free:
            return 0
        names = [str(value.name) for members in free for value in members]
        ratios = context.recipe.clip_ratios()
        seen = calibrate(model, context.samples, names, clip_ratios=ratios)
        factors: dict[ir.Value, float] = {}
        for members in free:
            factor = _factor(members, seen, context.recipe.activation)
            factors |= dict.fromkeys(members, factor)
        _apply(model, factors)
        return len(free)


class _Groups:
    """Tensors that must have the same factor, joined node by node."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self.leader: dict[ir.Value, ir.Value] = {}
        self.fixed: set[ir.Value] = set()
        for value in (*model.graph.inputs, *model.graph.outputs):
            self._fix([value])
        for node in model.graph:
            values = [v for v in (*activation_inputs(node), *node.outputs) if is_activation(v)]
            if _is_linear(node) and not context.keep_float(node):
                for value in values:
                    self._find(value)
            elif _moves_all(node) or _commutes(node):
                self._join(values)
            else:
                self._fix(values)

    def free(self) -> list[list[ir.Value]]:
        """Return the groups that may be scaled, in graph order."""
        bound = {self._find(value) for value in self.fixed}
        groups: dict[ir.Value, list[ir.Value]] = {}
        for value in self.leader:
            if self._find(value) not in bound:
                groups.setdefault(self._find(value), []).append(value)
        return list(groups.values())

    def _find(self, value: ir.Value) -> ir.Value:
        self.leader.setdefault(value, value)
        while self.leader[value] is not value:
            value = self.leader[value]
        return value

    def _join(self, values: list[ir.Value]) -> None:
        for value in values[1:]:
            self.leader[self._find(value)] = self._find(values[0])

    def _fix(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            self._find(value)
            self.fixed.add(value)


def _is_linear(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "Gemm") and has_linear_weights(node)


def _moves_all(node: ir.Node) -> bool:
    """Whether `node` only moves elements, all of them computed at run time."""
    return moves_codes(node) and all(is_activation(v) for v in data_inputs(node))


def _commutes(node: ir.Node) -> bool:
    if node.domain or node.op_type not in _COMMUTES:
        return False
    if node.op_type == "Clip":
        return all(v is None or constant(v) is not None for v in node.inputs[1:])
    if node.op_type in ("Add", "Sub", "Sum"):
        return all(is_activation(v) for v in node.inputs)
    if node.op_type == "PRelu":
        return constant(node.inputs[1]) is not None
    return True


def _factor(members: list[ir.Value], seen: Calibration, spec: QuantSpec) -> float:
    """Return the factor between the widest member's best float scale and a power of two."""
    qtype = FORMATS[spec.qtype]
    plain = QuantSpec(spec.qtype, observer=spec.observer, percentile=spec.percentile)
    widths = []
    for value in members:
        if behind_clips(value) is value:
            low, high = choose_range(seen.statistics[str(value.name)], plain, qtype)
            widths.append(max(high, 0.0) - min(low, 0.0))
    scale = max(widths, default=0.0) / (qtype.qmax - qtype.qmin)
    if scale <= 0:
        return 1.0
    # A hair above: the end of the range must not fall one code beyond the last.
    return scale / 2.0 ** round(math.log2(scale)) * (1 + 2**-20)


def _apply(model: ir.Model, factors: dict[ir.Value, float]) -> None:
    editor = Editor(model.graph)
    for node in list(model.graph):
        if _is_linear(node):
            _scale_linear(node, factors, editor)
        elif node.op_type == "Clip" and node.outputs[0] in factors:
            _scale_limits(node, factors[node.outputs[0]], editor)


def _scale_linear(node: ir.Node, factors: dict[ir.Value, float], editor: Editor) -> None:
    source, output = node.inputs[0], node.outputs[0]
    if source in factors:
        factor = np.full(input_channels(node), factors[source])
        set_linear_weights(node, behind_affine(node, factor, 0 * factor), editor)
    if output in factors:
        weights = linear_weights(node)
        assert weights is not None
        factor = np.full(weights.bias.shape, 1 / factors[output])
        set_linear_weights(node, weights.scaled(factor, 0 * factor), editor)


def _scale_limits(node: ir.Node, factor: float, editor: Editor) -> None:
    for index, value in enumerate(node.inputs[1:], 1):
        array = constant(value)
        if array is not None and value is not None:
            limit = (array.astype(np.float64) / factor).astype(np.float32)
            node.replace_input_with(index, editor.initializer(f"{value.name}_aligned", limit))
