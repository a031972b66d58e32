"""Cutting a quantized graph into blocks: where few tensors cross, as behind residual connections.

A cut lies behind a QuantizeLinear where no more tensors are alive than at the ones beside it: the
end of a residual block or of a transformer's half block; in a chain of layers, anywhere. A block
has two weights or more.
"""

import onnx_ir as ir

from edgeq.qdq import linear_group

_WEIGHTS = 2  # at least, in a block


def find_blocks(graph: ir.Graph) -> dict[ir.Node, int]:
    """Return the number of the block that each node is in, counted from 0 in graph order."""
    nodes = list(graph)
    alive = _alive(nodes)
    ends = [place for place, node in enumerate(nodes) if node.op_type == "QuantizeLinear"]
    found, block, weights = {}, 0, 0
    cuts = {
        end
        for before, end, behind in zip([None, *ends], ends, [*ends[1:], None], strict=False)
        if all(alive[end] <= alive[other] for other in (before, behind) if other is not None)
    }
    for place, node in enumerate(nodes):
        group = linear_group(node)
        weights += group is not None and group.w.array is not None
        found[node] = block
        if place in cuts and weights >= _WEIGHTS:
            block, weights = block + 1, 0
    return found


def _alive(nodes: list[ir.Node]) -> list[int]:
    """Return how many tensors are alive behind each node; what is dequantized counts as its codes.

    Constants, and what depends on them alone, do not count.
    """
    sources: dict[ir.Value, ir.Value] = {}
    last: dict[ir.Value, int] = {}
    first: dict[ir.Value, int] = {}
    for place, node in enumerate(nodes):
        read = [sources[v] for v in node.inputs if v is not None and v in sources]
        entering = [v for v in node.inputs if v is not None and v.is_graph_input()]
        for value in read:
            last[value] = place
        if not read and not entering:
            continue
        for value in node.outputs:
            source = read[0] if node.op_type == "DequantizeLinear" and read else value
            sources[value] = source
            first.setdefault(source, place)
    changes = [0] * (len(nodes) + 1)
    for value, place in first.items():
        changes[place] += 1
        changes[max(last.get(value, place), place)] -= 1
    counts, count = [], 0
    for place in range(len(nodes)):
        count += changes[place]
        counts.append(count)
    return counts
