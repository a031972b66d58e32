"""Choose scale and zero point of every activation that is to be quantized.

The model is not edited: decisions go to `context.qparams`, by value name, and `insert-qdq` follows
them. A value is quantized when

1. a node in front of some linear op reads it (nothing stays float there), or
2. a Conv or MatMul makes it (their integer kernels have no float result; a Relu or Clip behind it
   is looked through), or
3. a function that IEEE does not define reads it, or an op that adds many elements (tables, exact
   forms and sums in units start from codes), or
4. it is a graph output that the user wants as codes.

What comes behind the last linear op is the float tail: it keeps float32 where IEEE defines it.
Ops that only move elements share the parameters of their input, and so do all inputs of a Concat:
one scale for both sides costs less than rounding twice. Inputs that come as codes keep their own.
"""

from collections import defaultdict
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import constant, consumers
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import QTYPES
from edgeq.numerics.scale import choose_qparams
from edgeq.observe import choose_range
from edgeq.passing import Context, Pass, node_names
from edgeq.recipe import QuantSpec
from edgeq.roles import (
    ACCUMULATING,
    CLIPS,
    FUNCTIONS,
    LINEAR,
    SCALAR_ARITHMETIC,
    activation_inputs,
    behind_clips,
    data_inputs,
    is_activation,
    moves_codes,
)


@dataclass(frozen=True)
class ChooseQParams(Pass):
    """Decide the parameters of activations from what calibration saw."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Fill `context.qparams`; return how many values it gained.

        Raises:
            ModelError: An output that the user wants as codes is a constant.
        """
        assert context.calibration is not None, "choose-qparams runs after calibration"
        before = len(context.qparams)
        wanted = quantized_values(model, context)
        if not wanted and not context.qparams:
            text = "no linear op, sum or function is to be quantized: the model stays float32"
            context.notes.append((self.name(), text))
        for group in shared_groups(model, wanted):
            qparams = _decide(group, context)
            for value in group:
                context.qparams.setdefault(value.name or "", qparams)
        return len(context.qparams) - before


def linear_nodes(model: ir.Model, context: Context) -> list[ir.Node]:
    """Return the linear ops that are to be integer."""
    return [
        node
        for node in model.graph
        if not node.domain and node.op_type in LINEAR and not context.keep_float(node)
    ]


def region(model: ir.Model, context: Context) -> set[ir.Node]:
    """Return the nodes in front of, or at, some integer linear op."""
    found: set[ir.Node] = set()
    pending = linear_nodes(model, context)
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        sources = (value.producer() for value in activation_inputs(node))
        pending += [source for source in sources if source is not None]
    return found


def quantized_values(model: ir.Model, context: Context) -> list[ir.Value]:
    """Return the values to quantize, in graph order."""
    inside = region(model, context)
    wanted: dict[ir.Value, None] = {}
    for node in model.graph:
        if context.keep_float(node):
            continue
        if node in inside:
            wanted |= dict.fromkeys(activation_inputs(node))
        elif not node.domain and (node.op_type in FUNCTIONS or node.op_type == "Softmax"):
            wanted |= dict.fromkeys(map(_source_of_codes, activation_inputs(node)))
        elif not node.domain and node.op_type in ACCUMULATING and not moves_codes(node):
            wanted |= dict.fromkeys(activation_inputs(node))
        if node in inside and node.op_type in ("Conv", "MatMul"):
            wanted[behind_clips(node.outputs[0])] = None
    wanted |= dict.fromkeys(_outputs_as_codes(model, context))
    return [value for value in wanted if not _absorbed(value, context)]


def _outputs_as_codes(model: ir.Model, context: Context) -> list[ir.Value]:
    outputs = [v for v in model.graph.outputs if v.name in context.output_types]
    for value in outputs:
        if not is_activation(value):
            raise ModelError(
                f"output {value.name} cannot be given as codes: it is not computed from the inputs;"
                " remove it from the outputs, or leave it float32"
            )
    return outputs


def _source_of_codes(value: ir.Value) -> ir.Value:
    """Walk up from `value` through what a table swallows, then through what moves codes."""
    moved = False
    node = value.producer()
    while node is not None and not node.domain:
        moves = moves_codes(node) and all(map(is_activation, data_inputs(node)))
        swallowed = not moved and node.op_type in SCALAR_ARITHMETIC and scalar_constants(node)
        sources = list(activation_inputs(node))
        if len(sources) != 1 or not (moves or swallowed):
            return value
        moved = moved or moves
        value = sources[0]
        node = value.producer()
    return value


def scalar_constants(node: ir.Node) -> bool:
    """Whether all constant inputs of `node` have one element."""
    arrays = [constant(value) for value in node.inputs]
    return all(array is None or array.size == 1 for array in arrays)


def _absorbed(value: ir.Value, context: Context) -> bool:
    """Whether only Relu or Clip nodes lie between `value`'s op and the value that is quantized."""
    node = value.producer()
    if node is None or moves_codes(node) or context.keep_float(node):
        return False
    return behind_clips(value) is not value


def shared_groups(model: ir.Model, wanted: list[ir.Value]) -> list[list[ir.Value]]:
    """Return the values to quantize in groups that share their parameters.

    Movement ops extend the groups: what they make of codes are codes.
    """
    leader: dict[ir.Value, ir.Value] = {value: value for value in wanted}

    def find(value: ir.Value) -> ir.Value:
        while leader[value] is not value:
            value = leader[value]
        return value

    for node in model.graph:
        if not moves_codes(node):
            continue
        sources = [v for v in data_inputs(node) if is_activation(v)]
        if not sources or any(v not in leader for v in sources):
            continue
        if len(sources) != len(data_inputs(node)):
            continue
        for other in (*sources[1:], *node.outputs):
            leader.setdefault(other, other)
            leader[find(other)] = find(sources[0])
    groups: defaultdict[ir.Value, list[ir.Value]] = defaultdict(list)
    for value in leader:
        groups[find(value)].append(value)
    return list(groups.values())


def _decide(group: list[ir.Value], context: Context) -> QParams:
    fixed = [context.qparams[v.name or ""] for v in group if v.name in context.qparams]
    if fixed and all(fixed[0].same_as(other) for other in fixed[1:]):
        return fixed[0]
    assert context.calibration is not None
    spec = _spec(group[0], context)
    qtype = QTYPES[spec.qtype]
    statistics = context.calibration.statistics
    ranges = [choose_range(statistics[v.name or ""], spec, qtype) for v in group]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    return choose_qparams(low, high, spec)


def _spec(value: ir.Value, context: Context) -> QuantSpec:
    """Return the spec of the node that makes `value`; of its first reader, for a graph input."""
    node = value.producer()
    if node is not None and node.op_type in CLIPS:
        source = node.inputs[0]
        node = node if source is None else source.producer() or node
    if node is None:
        readers = consumers(value)
        if not readers:
            return context.recipe.activation
        node = readers[0]
    return context.recipe.spec("activation", node.op_type, node_names(node))
