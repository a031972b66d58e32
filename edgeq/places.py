"""The first, last and depthwise linear ops of a model, which rules of a recipe may treat apart.

- A linear op is first if it reads a graph input, moved and quantized at most.
- A linear op is last if no linear op depends on it.
- A Conv is depthwise if each of its channels reads one alone.
- A value is first if it is a graph input, moved at most; last if only last ops depend on it.
"""

from collections.abc import Iterator

import onnx_ir as ir

from edgeq.graph import constant, consumers, int_attribute
from edgeq.roles import LINEAR, data_inputs, moves_codes

_CODING = frozenset({"Cast", "Clip", "DequantizeLinear", "QuantizeLinear"})


def places_of_node(node: ir.Node) -> frozenset[str]:
    """Return where a linear op stands; nowhere for other nodes."""
    if node.op_type not in LINEAR or node.domain:
        return frozenset()
    found: set[str] = set()
    if any(value is not None and _is_input(value) for value in node.inputs):
        found.add("first")
    if _is_last(node):
        found.add("last")
    if _is_depthwise(node):
        found.add("depthwise")
    return frozenset(found)


def places_of_value(value: ir.Value) -> frozenset[str]:
    """Return where an activation stands."""
    found: set[str] = set()
    if _is_input(value):
        found.add("first")
    if all(map(_is_last, _next_linear(value))):
        found.add("last")
    return frozenset(found)


def _is_input(value: ir.Value) -> bool:
    """Whether `value` is a graph input, perhaps moved and quantized."""
    if value.is_graph_input():
        return value.is_initializer() is False
    node = value.producer()
    if node is None or node.domain or constant(value) is not None:
        return False
    if moves_codes(node) or node.op_type == "Pad":  # codes are padded with their zero point
        return any(map(_is_input, data_inputs(node)))
    source = node.inputs[0] if node.op_type in _CODING else None
    return source is not None and _is_input(source)


def _is_depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1].shape if node.op_type == "Conv" and node.inputs[1] is not None else None
    grouped = int_attribute(node, "group", 1) > 1
    return grouped and weight is not None and weight[1] == 1


def _is_last(node: ir.Node) -> bool:
    return not any(True for output in node.outputs for _ in _next_linear(output))


def _next_linear(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the linear ops that depend on `value` with no other in between."""
    pending, seen = consumers(value), set[ir.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op_type in LINEAR and not node.domain:
            yield node
        else:
            pending += [reader for output in node.outputs for reader in consumers(output)]
