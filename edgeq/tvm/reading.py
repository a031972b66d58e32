"""What lowering reads off the graph before it starts."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgeq.graph import constant, producer, sole_consumer
from edgeq.qdq import linear_group


def needed_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes that outputs depend on, in order."""
    wanted = set(graph.outputs)
    found = []
    for node in reversed(list(graph)):
        if any(value in wanted for value in node.outputs):
            found.append(node)
            wanted.update(value for value in node.inputs if value is not None)
    return found[::-1]


def images(nodes: Sequence[ir.Node]) -> set[str]:
    """Return the names of the images: what convolutions read, and pools."""
    found = set()
    for node in nodes:
        group = linear_group(node)
        if group is not None and node.op_type == "Conv":
            found.add(str(group.x.codes.name))
            found.add(str(group.output.name))
        elif node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool", "Resize"):
            found.update(str(value.name) for value in (node.inputs[0], node.outputs[0]) if value)
    return found


def look_ups(
    nodes: Sequence[ir.Node], shapes: Mapping[str, tuple[int, ...]]
) -> dict[ir.Node, tuple[ir.Value, ir.Node]]:
    """Return the Reshapes that end a look-up, each with its index and its GatherElements.

        Reshape(GatherElements(table, Reshape(index, [-1])), shape of index)

    is a table read element by element, whatever the order in memory.
    """
    found = {}
    for node in nodes:
        table = constant(node.inputs[0]) if node.op_type == "GatherElements" else None
        if table is None or table.ndim != 1 or node.inputs[1] is None:
            continue
        flat, last = node.inputs[1].producer(), sole_consumer(node.outputs[0])
        if flat is None or flat.op_type != "Reshape" or last is None or last.op_type != "Reshape":
            continue
        index, alone = flat.inputs[0], sole_consumer(node.inputs[1])
        if index is None or alone is not node or last.inputs[0] is not node.outputs[0]:
            continue
        if shapes.get(str(index.name)) == shapes.get(str(last.outputs[0].name)):
            found[last] = (index, node)
    return found


def flattened(gather: ir.Node) -> ir.Node:
    """Return the Reshape that makes the index of a look-up."""
    assert gather.inputs[1] is not None
    return producer(gather.inputs[1])
