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

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.functions import Float64, float64_function
from edgeq.graph import constant, consumers, float_attribute, rank
from edgeq.qdq import operand
from edgeq.roles import CLIPS, moves_codes

Array = NDArray[Any]


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
    def moves(self) -> tuple[ir.Node, ...]:
        """The nodes that move elements, each reading what the one before it has moved."""
        return tuple(node for node in self.nodes if _moves(node))

    def evaluate(self, x: Float64) -> Float64:
        """Return the output for the values `x` of the source, any shape, all in float64.

        Elements stay where they are, whatever `moves` would do. Where the function is not defined
        the result is what IEEE says: infinities and NaN.
        """
        values: dict[ir.Value, Array] = {}

        def read(value: ir.Value | None) -> Array | None:
            if value is None:
                return None
            array = values.get(value, constant(value))
            return x if array is None else array

        with np.errstate(all="ignore"):
            for node in self.nodes:
                values[node.outputs[0]] = _evaluate(node, [read(v) for v in node.inputs])
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
    taken: set[ir.Node] = set()
    found = []
    for node in reversed(graph):
        real = node.outputs[0].dtype == ir.DataType.FLOAT
        if node in taken or leave(node) or not real or not _is_elementwise(node):
            continue
        region = _region(node, order, leave, shared=shared)
        if region is not None and _is_worth(region):
            taken.update(n for n in region.nodes if _is_inside(n.outputs[0], region.nodes))
            found.append(region)
    return found[::-1]


def is_function(node: ir.Node) -> bool:
    """Whether `node` computes a function of one value that IEEE does not define."""
    if node.domain:
        return False
    return node.op_type == "Pow" or float64_function(node) is not None


def _region(
    last: ir.Node,
    order: Mapping[ir.Node, int],
    leave: Callable[[ir.Node], bool],
    *,
    shared: bool,
) -> UnaryRegion | None:
    """Grow the region that ends in `last` towards its inputs; the largest with one source wins."""

    def position(value: ir.Value) -> int:
        source = value.producer()
        return -1 if source is None else order[source]

    nodes, best = {last}, None
    paths = dict.fromkeys(_variables(last), tuple[ir.Node, ...]())  # what moves each value

    def alike(values: list[ir.Value]) -> bool:
        return len({(_identity(value), paths[value]) for value in values}) <= 1

    open_, fixed = list(paths), list[ir.Value]()
    while alike(fixed):
        if alike([*fixed, *open_]):
            best = frozenset(nodes), min([*fixed, *open_], key=position)
        if not open_:
            break
        # The latest value first: all of its readers that can belong to the region then do.
        value = max(open_, key=position)
        open_.remove(value)
        node = value.producer()
        if node is None or leave(node) or not (_is_elementwise(node) or _moves(node)):
            fixed.append(value)
            continue
        if not (shared or _is_inside(value, nodes)):
            fixed.append(value)
            continue
        nodes.add(node)
        path = (*paths[value], node) if _moves(node) else paths[value]
        for read in _variables(node):
            if paths.setdefault(read, path) != path:
                return _made(best, last, order)
            if read not in (*fixed, *open_):
                open_.append(read)
    return _made(best, last, order)


def _made(
    best: tuple[frozenset[ir.Node], ir.Value] | None, last: ir.Node, order: Mapping[ir.Node, int]
) -> UnaryRegion | None:
    if best is None or best[1].dtype != ir.DataType.FLOAT:
        return None
    members = sorted(best[0], key=order.__getitem__)
    return _behind_limits(UnaryRegion(best[1], tuple(members), last.outputs[0]))


def _is_inside(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    """Whether nobody but `nodes` reads `value`."""
    return not value.is_graph_output() and all(reader in nodes for reader in consumers(value))


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


def _identity(value: ir.Value) -> object:
    """Return what two values have in common when they are dequantized alike."""
    found = operand(value)
    if found is None:
        return value
    q = found.qparams
    return found.codes, q.qtype.name, q.axis, q.scale.tobytes(), q.zero_point.tobytes()


def _variables(node: ir.Node) -> list[ir.Value]:
    """Return the data that `node` reads and that are no constants, each once."""
    if _moves(node):
        return [value for value in node.inputs[:1] if value is not None]
    return list(dict.fromkeys(v for v in node.inputs if v is not None and constant(v) is None))


# Each element of what they make is one of what they read, whatever its value.
_REARRANGEMENTS = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Identity", "Reshape", "Slice", "SpaceToDepth",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def _moves(node: ir.Node) -> bool:
    return node.op_type in _REARRANGEMENTS and moves_codes(node)


def _is_elementwise(node: ir.Node) -> bool:
    """Whether `node` treats each element alone, its constants being numbers."""
    if node.domain or node.outputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.BOOL):
        return False
    if node.op_type not in _ARITHMETIC and float64_function(node) is None:
        return False
    variables = _variables(node)
    ranks = [rank(v) for v in variables]
    limit = max((r for r in ranks if r is not None), default=0)
    arrays = [a for a in map(constant, node.inputs) if a is not None]
    return bool(variables) and all(a.size == 1 and a.ndim <= limit for a in arrays)


def _evaluate(node: ir.Node, operands: list[Array | None]) -> Array:
    wide = [None if a is None else _number(a) for a in operands]
    first, function = wide[0], float64_function(node)
    assert first is not None
    if _moves(node):
        return first
    return function(first) if function is not None else _ARITHMETIC[node.op_type](node, *wide)


def _number(array: Array) -> Array:
    """Return `array` in float64, truth values as they are; one element has no axes."""
    wide = array if array.dtype == np.bool_ else array.astype(np.float64)
    return wide.reshape(()) if wide.size == 1 else wide


def _leaky(node: ir.Node, x: Array) -> Array:
    return np.where(x < 0, np.float64(np.float32(float_attribute(node, "alpha", 0.01))) * x, x)


def _thresholded(node: ir.Node, x: Array) -> Array:
    return np.where(x > np.float32(float_attribute(node, "alpha", 1.0)), x, 0.0)


def _clip(node: ir.Node, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _of(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda node, *operands: np.asarray(function(*operands))


_ARITHMETIC: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "Abs": _of(np.abs),
        "Add": _of(np.add),
        "And": _of(np.logical_and),
        "Ceil": _of(np.ceil),
        "Clip": _clip,
        "Div": _of(np.divide),
        "Equal": _of(np.equal),
        "Floor": _of(np.floor),
        "Greater": _of(np.greater),
        "GreaterOrEqual": _of(np.greater_equal),
        "LeakyRelu": _leaky,
        "Less": _of(np.less),
        "LessOrEqual": _of(np.less_equal),
        "Max": _of(lambda *x: np.maximum.reduce(np.broadcast_arrays(*x))),
        "Min": _of(lambda *x: np.minimum.reduce(np.broadcast_arrays(*x))),
        "Mul": _of(np.multiply),
        "Neg": _of(np.negative),
        "Not": _of(np.logical_not),
        "Or": _of(np.logical_or),
        "PRelu": _of(lambda x, slope: np.where(x < 0, x * slope, x)),
        "Pow": _of(np.power),
        "Relu": _of(lambda x: np.maximum(x, 0.0)),
        "Round": _of(np.rint),
        "Sign": _of(np.sign),
        "Sqrt": _of(np.sqrt),
        "Sub": _of(np.subtract),
        "Sum": _of(lambda *x: sum(x)),
        "ThresholdedRelu": _thresholded,
        "Where": _of(np.where),
    }
)
