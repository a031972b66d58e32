"""Regions of elementwise nodes that are a function of one value: what one table holds.

    y = Mul(x, Sigmoid(x))          y = Mul(Mul(x, Add(Erf(Div(x, 1.4142)), 1)), 0.5)

A region is the largest set of elementwise nodes that ends in one output, reads one value besides
constants of one element, and whose inner values nobody else reads. It is reported where a table may
be worth its cost: it holds a function that IEEE does not define, or several operations. A Reshape,
Transpose or the like between two parts of it belongs to it.

In a QDQ graph every reader has a DequantizeLinear of its own: values dequantized alike from the
same codes are one source. A Relu or Clip in front of a region stays outside while its input is
real: quantizing behind it wastes no codes on what it cuts off.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.elementwise_nodes import evaluate, is_elementwise, is_function, variables
from edgeq.functions import Float64
from edgeq.graph import constant, consumers
from edgeq.qdq import operand
from edgeq.roles import CLIPS, moves_codes

Moves = tuple[ir.Node, ...]

# Each element of what they make is one of what they read, whatever its value.
_REARRANGEMENTS = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Identity", "Reshape", "Slice", "SpaceToDepth",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class UnaryRegion:
    """Elementwise nodes that together are a function of one value.

    Attributes:
        source: What they read: in a QDQ graph, the first of the values dequantized alike.
        nodes: In graph order; the last one makes `output`.
        output: The one value that others read.
    """

    source: ir.Value
    nodes: tuple[ir.Node, ...]
    output: ir.Value

    @property
    def is_ieee(self) -> bool:
        """Whether IEEE defines every operation: the nodes themselves are then exact."""
        return not any(is_function(node) for node in self.nodes)

    @property
    def moves(self) -> Moves:
        """The nodes that move elements, each reading what the one before it has moved."""
        return tuple(node for node in self.nodes if _moves(node))

    def evaluate(self, x: Float64) -> Float64:
        """Return the output for the values `x` of the source, any shape, all in float64.

        Elements stay where they are, whatever `moves` would do. Where the function is not defined
        the result is what IEEE says: infinities and NaN.
        """
        values: dict[ir.Value, NDArray[Any]] = {}

        def read(value: ir.Value | None) -> NDArray[Any] | None:
            if value is None:
                return None
            array = values.get(value, constant(value))
            return x if array is None else array

        for node in self.nodes:
            operands = [read(value) for value in node.inputs]
            moved = operands[0] if _moves(node) else None
            values[node.outputs[0]] = evaluate(node, operands) if moved is None else moved
        return np.asarray(np.broadcast_to(values[self.output], x.shape), np.float64)


def unary_regions(
    graph: ir.Graph,
    leave: Callable[[ir.Node], bool] = lambda node: False,
    *,
    shared: bool = False,
) -> list[UnaryRegion]:
    """Return the regions that may be worth a table, in graph order.

    Args:
        graph: Float or QDQ, with the types and ranks of its values known.
        leave: Nodes that no region may hold.
        shared: Whether regions may hold values that others read as well, and each other's nodes.
            Otherwise they end there and have no node in common.
    """
    order = {node: index for index, node in enumerate(graph)}
    members = {n for n in order if (_moves(n) or is_elementwise(n)) and not leave(n)}
    taken: set[ir.Node] = set()
    found = []
    for node in reversed(order):
        real = node.outputs[0].dtype == ir.DataType.FLOAT
        if node not in members or node in taken or _moves(node) or not real:
            continue
        region = _Growth(node, members, order, shared=shared).largest()
        if region is not None and _is_worth(region):
            taken.update(n for n in region.nodes if _is_inside(n.outputs[0], region.nodes))
            found.append(region)
    return found[::-1]


class _Growth:
    """A region that grows from its last node towards its inputs, by nodes out of `members`.

    `open` values may belong to it, `fixed` ones do not; `keys` say which of them are the same
    value, and in the same place: what it is, and the nodes that move it on its way to the output.
    """

    def __init__(
        self, last: ir.Node, members: set[ir.Node], order: dict[ir.Node, int], *, shared: bool
    ) -> None:
        self.last, self.members, self.order, self.shared = last, members, order, shared
        self.nodes = {last}
        self.fixed: list[ir.Value] = []
        self.open: list[ir.Value] = []
        self.keys: dict[ir.Value, tuple[object, Moves]] = {}
        self._reach(last, ())

    def largest(self) -> UnaryRegion | None:
        """Return the largest region with one source; None if there is none."""
        best = None
        while self._alike(self.fixed):
            if self._alike([*self.fixed, *self.open]):
                best = self._region()
            if not self.open or not self._grow():
                break
        if best is None or best.source.dtype != ir.DataType.FLOAT:
            return None
        return _behind_limits(best)

    def _alike(self, values: list[ir.Value]) -> bool:
        return len({self.keys[value] for value in values}) <= 1

    def _region(self) -> UnaryRegion:
        source = min([*self.fixed, *self.open], key=self._position)
        nodes = sorted(self.nodes, key=self.order.__getitem__)
        return UnaryRegion(source, tuple(nodes), self.last.outputs[0])

    def _position(self, value: ir.Value) -> int:
        node = value.producer()
        return -1 if node is None else self.order[node]

    def _grow(self) -> bool:
        """Take in or fix the latest open value; return False if it would be moved in two ways."""
        # All readers of the latest value that can belong to the region then do.
        value = max(self.open, key=self._position)
        self.open.remove(value)
        node = value.producer()
        inside = self.shared or _is_inside(value, self.nodes)
        if node is None or node not in self.members or not inside:
            self.fixed.append(value)
            return True
        self.nodes.add(node)
        moves = self.keys[value][1]
        return self._reach(node, (*moves, node) if _moves(node) else moves)

    def _reach(self, node: ir.Node, moves: Moves) -> bool:
        for value in _data(node):
            if value not in self.keys:
                self.keys[value] = _identity(value), moves
                self.open.append(value)
            elif self.keys[value][1] != moves:
                return False
        return True


def _is_inside(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    """Whether nobody but `nodes` reads `value`."""
    return not value.is_graph_output() and all(reader in nodes for reader in consumers(value))


def _identity(value: ir.Value) -> object:
    """Return what two values have in common when they are dequantized alike."""
    found = operand(value)
    if found is None:
        return value
    q = found.qparams
    return found.codes, q.qtype.name, q.axis, q.scale.tobytes(), q.zero_point.tobytes()


def _behind_limits(region: UnaryRegion) -> UnaryRegion:
    """Leave out what limits or moves reals before anything else is done to them."""
    source, nodes = region.source, list(region.nodes)
    while operand(source) is None and len(nodes) > 1:
        first = nodes[0]
        if not (first.op_type in CLIPS or _moves(first)):
            break
        if any(value is source for node in nodes[1:] for value in node.inputs):
            break
        source = nodes.pop(0).outputs[0]
    return UnaryRegion(source, tuple(nodes), region.output)


def _is_worth(region: UnaryRegion) -> bool:
    return not region.is_ieee or len(region.nodes) - len(region.moves) > 1


def _data(node: ir.Node) -> list[ir.Value]:
    """Return the data that `node` reads and that are no constants, each once."""
    return [v for v in node.inputs[:1] if v is not None] if _moves(node) else variables(node)


def _moves(node: ir.Node) -> bool:
    return node.op_type in _REARRANGEMENTS and moves_codes(node)
