"""Which values become codes, in which format, and which stay inside an exact form.

- A linear op reads uint8 codes, and its result is uint8.
- A normalisation reads codes of any width: its input, and the sums that feed it, have the format of
  the recipe's `[residual]` (16 bits cost no integer kernel there). Whatever else reads such a value
  reads a uint8 copy of it.
- Nothing is rounded inside an exact form: between the two products of attention, within a unary
  region, between a normalisation and its scale and bias, behind an embedding that only sums read.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.attention import find_attentions
from edgeq.attention import inner_values as attended_values
from edgeq.errors import ModelError
from edgeq.graph import constant, consumers, int_attribute
from edgeq.normalization import inner_values as normalized_values
from edgeq.normalization import is_normalization, normalization
from edgeq.passing import Context
from edgeq.roles import (
    ACCUMULATING,
    CLIPS,
    LINEAR,
    activation_inputs,
    behind_clips,
    data_inputs,
    is_activation,
    moves_codes,
)
from edgeq.unary_regions import UnaryRegion, unary_regions

ADDITIONS = frozenset({"Add", "Sub", "Sum"})
ELEMENTWISE = ADDITIONS | {"Mul"}


@dataclass(frozen=True, eq=False)
class Group:
    """Values that share their parameters: movement ops lie between them.

    Attributes:
        values: In graph order.
        residual: Whether they have the format of the recipe's `[residual]`.
        copied: The values that also need a uint8 copy.
    """

    values: tuple[ir.Value, ...]
    residual: bool
    copied: tuple[ir.Value, ...]


def plan_codes(model: ir.Model, context: Context) -> list[Group]:
    """Return the values to quantize, in groups."""
    groups = shared_groups(model, quantized_values(model, context))
    residual = _residual_groups(groups, _normalized(model), context)
    return [
        Group(
            tuple(group),
            number in residual,
            tuple(v for v in group if number in residual and _has_narrow_reader(v)),
        )
        for number, group in enumerate(groups)
    ]


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
    tables = {unary.nodes[-1]: unary.source for unary in _tables(model.graph, context)}
    wanted: dict[ir.Value, None] = {}
    for node in model.graph:
        if context.keep_float(node):
            continue
        if node in inside:
            wanted |= dict.fromkeys(activation_inputs(node))
        elif node in tables:
            wanted[_source_of_codes(tables[node])] = None
        elif not node.domain and node.op_type == "Softmax":
            wanted |= dict.fromkeys(map(_source_of_codes, activation_inputs(node)))
        elif not node.domain and node.op_type in ACCUMULATING and not moves_codes(node):
            wanted |= dict.fromkeys(activation_inputs(node))
        elif (found := normalization(node)) is not None:
            wanted[found.x] = None
        if node in inside and node.op_type in ("Conv", "MatMul"):
            wanted[behind_clips(node.outputs[0])] = None
    wanted |= dict.fromkeys(_outputs_as_codes(model, context))
    unrounded = unrounded_values(model, context)
    return [v for v in wanted if v not in unrounded]


def unrounded_values(model: ir.Model, context: Context) -> set[ir.Value]:
    """Return the values that exact forms keep, or that limits on codes take in: never codes."""
    limited = (v for node in model.graph for v in node.outputs if _absorbed(v, context))
    return {*_inner_values(model, context), *limited}


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
    """Walk up from `value` through what moves codes."""
    node = value.producer()
    while node is not None and moves_codes(node) and all(map(is_activation, data_inputs(node))):
        sources = list(activation_inputs(node))
        if len(sources) != 1:
            break
        value = sources[0]
        node = value.producer()
    return value


def _absorbed(value: ir.Value, context: Context) -> bool:
    """Whether only Relu or Clip nodes lie between `value`'s op and the value that is quantized."""
    node = value.producer()
    if node is None or moves_codes(node) or context.keep_float(node):
        return False
    return behind_clips(value) is not value


# -- exact forms -----------------------------------------------------------------------------------


def _tables(graph: ir.Graph, context: Context) -> list[UnaryRegion]:
    """Return the regions that become tables: where IEEE defines all, the nodes themselves do."""
    return [unary for unary in unary_regions(graph, context.keep_float) if not unary.is_ieee]


def _inner_values(model: ir.Model, context: Context) -> Iterator[ir.Value]:
    """Yield the values inside exact forms."""
    kept = (a for a in find_attentions(model) if not context.keep_float(a.softmax))
    yield from attended_values(kept)
    for unary in _tables(model.graph, context):
        yield from (v for n in unary.nodes for v in n.outputs if v is not unary.output)
    for node in model.graph:
        if not context.keep_float(node):
            yield from normalized_values(node)
    yield from _embedded(model.graph)
    yield from _only_scaled(model.graph, context)


def _only_scaled(graph: ir.Graph, context: Context) -> Iterator[ir.Value]:
    """Yield what is read to be scaled by channel alone, and what is moved on the way there."""
    last = [node for node in graph if node.outputs[0].name in context.channel_scales]
    inside = set(last)
    pending = [node.inputs[0] for node in last]
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if value is None or node is None or value.is_graph_output() or node.op_type in LINEAR:
            continue
        if not all(reader in inside for reader in consumers(value)):
            continue
        yield value
        if moves_codes(node) or node.op_type in CLIPS:
            inside.add(node)
            pending += data_inputs(node) if moves_codes(node) else node.inputs[:1]


_REARRANGEMENTS = frozenset({"Expand", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def _embedded(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield rows of constant tables, and sums of such, that only sums read: they stay exact."""
    rows: set[ir.Value] = set()
    for node in graph:
        if is_embedding(node) or (
            node.op_type in ELEMENTWISE | _REARRANGEMENTS
            and not node.domain
            and any(v in rows for v in node.inputs)
            and all(v in rows for v in activation_inputs(node))
        ):
            rows.update(node.outputs)
    for value in rows:
        if not value.is_graph_output() and all(
            reader.op_type in ELEMENTWISE or (reader.outputs[0] in rows)
            for reader in consumers(value)
        ):
            yield value


def is_embedding(node: ir.Node) -> bool:
    """Whether `node` picks rows of a constant float table by indices computed at run time."""
    if node.op_type != "Gather" or node.domain or int_attribute(node, "axis", 0):
        return False
    table = constant(node.inputs[0])
    return (
        table is not None
        and table.dtype == np.float32
        and table.ndim == 2
        and constant(node.inputs[1]) is None
    )


# -- groups ----------------------------------------------------------------------------------------


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


def _normalized(model: ir.Model) -> set[ir.Value]:
    """Return what normalisations read."""
    return {found.x for node in model.graph if (found := normalization(node)) is not None}


def _residual_groups(
    groups: list[list[ir.Value]], normalized: set[ir.Value], context: Context
) -> set[int]:
    """Return the groups that normalisations read, and those that are added up into them."""
    number_of = {value: number for number, group in enumerate(groups) for value in group}
    fixed = {
        number
        for value, number in number_of.items()
        if value.name in context.qparams or _made_by_linear(value, context)
    }
    pending = {number for value, number in number_of.items() if value in normalized} - fixed
    found: set[int] = set()
    while pending:
        number = pending.pop()
        found.add(number)
        makers = [v.producer() for v in groups[number]]
        for node in makers:
            if node is None or node.op_type not in ADDITIONS or node.domain:
                continue
            for value in activation_inputs(node):
                other = number_of.get(value)
                if other is not None and other not in fixed | found and _is_sum(groups[other]):
                    pending.add(other)
    return found


def _is_sum(group: list[ir.Value]) -> bool:
    """Whether the values are sums or normalised ones, moved or not."""
    makers = [node for value in group if (node := value.producer()) is not None]
    made = [node for node in makers if not moves_codes(node)]
    return bool(made) and all(n.op_type in ELEMENTWISE or is_normalization(n) for n in made)


def _made_by_linear(value: ir.Value, context: Context) -> bool:
    """Whether an integer linear op makes `value`, perhaps through Relu or Clip: as uint8."""
    node = value.producer()
    while node is not None and node.op_type in CLIPS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in LINEAR and not context.keep_float(node)


def _has_narrow_reader(value: ir.Value) -> bool:
    return any(map(reads_narrow, consumers(value)))


def reads_narrow(node: ir.Node) -> bool:
    """Whether `node` needs uint8 operands: all but normalisations and single IEEE operations."""
    if is_normalization(node) or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return False
    return node.op_type not in ELEMENTWISE and not moves_codes(node)
