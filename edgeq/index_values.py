"""Values that depend on one integer alone, element by element: all they can be is known beforehand.

A timestep, a position or a label is an *index*: an integer input of the graph, or the positions
0, 1, 2, ... that a Range makes. A value computed from it and from constants, whose elements at one
place depend on the index at that place only, is one row of numbers per index. Followed are
elementwise operators, those that move elements, and products with constants; what mixes the
elements of the index ends the search.

`Mul(timestep, Expand(1, Shape(sample)))`, as diffusers spreads a step over the batch, copies the
index into a shape of its own: it is a new index with the same numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import constant, int_attribute
from edgeq.index_rules import RULES, Axes
from edgeq.roles import FUNCTIONS, LINEAR

Span = tuple[int, int]

COSTLY = LINEAR | FUNCTIONS | {"Cos", "Pow", "Sin"}
REARRANGING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_COPYING = REARRANGING | {"Expand", "Slice", "Tile"}
_NEUTRAL = MappingProxyType({"Add": 0, "Div": 1, "Mul": 1, "Sub": 0})
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
_FLOAT32_EXACT = 2**24
_DEPTH = 16  # nodes between a tensor of ones and the constant that it repeats


@dataclass(frozen=True, eq=False)
class Index:
    """Integers that a run of the model brings along.

    Attributes:
        value: The tensor that holds them: the source, or a copy of it in another shape.
        source: The graph's input, or the result of a Range.
        span: The least and the greatest, where the user gave them.
    """

    value: ir.Value
    source: ir.Value
    span: Span | None

    @property
    def axes(self) -> Axes:
        """The axes that hold it: all but those behind the first that have one place only."""
        sizes = enumerate(self.value.shape or ())
        return tuple(axis for axis, size in sizes if axis == 0 or size != 1)


@dataclass(frozen=True, eq=False)
class IndexValue:
    """A value that is one row of numbers per element of an index.

    Attributes:
        index: The index.
        axes: The axes of the value that are those of the index, in its order.
        copied: Whether the elements are those of the index, in whatever dtype.
        costly: The first node on the way that quantization would touch: a linear op, or a function
            that IEEE does not define; None if the value is exact as it is.
    """

    index: Index
    axes: Axes
    copied: bool
    costly: ir.Node | None


Found = dict[ir.Value, IndexValue]


def index_values(graph: ir.Graph, spans: Mapping[str, Span]) -> Found:
    """Return the values of `graph` that depend on one index alone, element by element.

    Args:
        graph: A float graph with inferred shapes.
        spans: The least and the greatest value of integer inputs, by name, where the user gave
            them. Rows of an embedding are followed only for an input that is here and has at most
            one axis: there are too many token ids for more tables.

    Returns:
        Them in graph order. All axes but those of the index have a known size.
    """
    found: Found = {}
    for value in graph.inputs:
        if value.shape is not None and _is_index(value, spans):
            found[value] = _whole(Index(value, value, spans.get(str(value.name))))
    for node in graph:
        if _first_position(node) is not None:
            found[node.outputs[0]] = _whole(Index(node.outputs[0], node.outputs[0], None))
        elif not node.domain and any(v in found for v in node.inputs if v is not None):
            found |= _results(node, found)
    return found


def _is_index(value: ir.Value, spans: Mapping[str, Span]) -> bool:
    if value.name in spans:
        return value.dtype is not None and value.dtype.numpy().kind in "iu"
    return value.dtype in _INTEGERS


def _first_position(node: ir.Node | None) -> int | None:
    """Return where a Range that counts up by one begins, if it does so wherever it ends."""
    if node is None or node.op_type != "Range" or node.domain:
        return None
    start, step = constant(node.inputs[0]), constant(node.inputs[2])
    if start is None or step is None or step != 1 or int(start) != start:
        return None
    return int(start)


def _whole(index: Index) -> IndexValue:
    return IndexValue(index, index.axes, True, None)


def _results(node: ir.Node, found: Found) -> Found:
    """Return what `node` adds to `found`."""
    operands = {v: found[v] for v in node.inputs if v is not None and v in found}
    first = next(iter(operands.values()))
    if any(operand.index is not first.index for operand in operands.values()):
        return {}
    copied = all(operand.copied for operand in operands.values()) and _copies(node, operands)
    axes = None
    if node.op_type in RULES and not _ends_at(node, first.index):
        axes = RULES[node.op_type](node, {v: operand.axes for v, operand in operands.items()})
    if axes is not None and all(_has_known_rows(out, axes) for out in node.outputs):
        costly = next((o.costly for o in operands.values() if o.costly is not None), None)
        if costly is None and node.op_type in COSTLY:
            costly = node
        return {out: IndexValue(first.index, axes, copied, costly) for out in node.outputs}
    output = node.outputs[0]
    if not copied or output.shape is None:
        return {}
    return {output: _whole(Index(output, first.index.source, first.index.span))}


def _ends_at(node: ir.Node, index: Index) -> bool:
    """Whether `node` reads an embedding whose rows are too many to compute with."""
    table = constant(node.inputs[0]) if node.op_type == "Gather" else None
    if table is None or table.dtype.kind != "f":
        return False
    return index.span is None or len(index.value.shape or ()) > 1


def _has_known_rows(value: ir.Value, axes: Axes) -> bool:
    if value.shape is None:
        return False
    return all(isinstance(size, int) or axis in axes for axis, size in enumerate(value.shape))


def known_spans(graph: ir.Graph, found: Found, longest: int) -> dict[ir.Value, Span]:
    """Return the range of each source where it is known: as given, or the rows that it selects.

    Args:
        graph: The graph that `found` is of.
        found: What `index_values` returned.
        longest: The most places that a Range can have.

    Raises:
        ModelError: A range that was given leaves the rows.
    """
    spans = {about.index.source: about.index.span for about in found.values()}
    for source in spans:
        first = _first_position(source.producer())
        if first is not None:
            spans[source] = first, first + longest - 1
    for node in graph:
        table = constant(node.inputs[0]) if node.op_type == "Gather" and not node.domain else None
        place = None if table is None else _shifted(node.inputs[1], found)
        if table is None or place is None:
            continue
        index, shift = place
        count = table.shape[int_attribute(node, "axis", 0)]
        low, high = -shift, count - 1 - shift
        if index.span is not None and not low - count <= index.span[0] <= index.span[1] <= high:
            raise ModelError(
                f"--input-range {index.source.name}={index.span[0]}:{index.span[1]}: node"
                f" {node.name!r} selects from {count} rows by it; give a range within {low}:{high}"
            )
        known = spans[index.source] or (low, high)
        if index.span is None:
            spans[index.source] = max(known[0], low), min(known[1], high)
    return {source: span for source, span in spans.items() if span is not None}


def _shifted(value: ir.Value | None, found: Found) -> tuple[Index, int] | None:
    """Return the index whose elements `value` holds, and the number that was added to them."""
    if value is None or value not in found:
        return None
    if found[value].copied:
        return found[value].index, 0
    node = value.producer()
    if node is None or node.op_type not in ("Add", "Sub"):
        return None
    number, place = constant(node.inputs[1]), _shifted(node.inputs[0], found)
    if number is None or number.size != 1 or place is None:
        return None
    step = int(number.reshape(()))
    return place[0], place[1] + (step if node.op_type == "Add" else -step)


def _copies(node: ir.Node, operands: Mapping[ir.Value, IndexValue]) -> bool:
    """Whether each element that `node` makes is one of its index operand, whose elements are."""
    if node.op_type == "Cast":
        dtype = node.outputs[0].dtype
        spans = [operand.index.span for operand in operands.values()]
        exact = all(span is None or max(map(abs, span)) <= _FLOAT32_EXACT for span in spans)
        return dtype in _INTEGERS or (dtype in _FLOATS and exact)
    if node.op_type in _NEUTRAL:
        others = [(i, v) for i, v in enumerate(node.inputs) if v is not None and v not in operands]
        if len(others) != 1 or (others[0][0] == 0 and node.op_type in ("Div", "Sub")):
            return False
        return repeated(others[0][1]) == _NEUTRAL[node.op_type]
    return node.op_type in _COPYING and node.inputs[0] in operands


def repeated(value: ir.Value | None, depth: int = _DEPTH) -> float | None:
    """Return the number that every element of `value` is, if that is known without its shape."""
    array = constant(value)
    if array is not None:
        same = array.size > 0 and array.dtype.kind in "biuf" and np.all(array == array.flat[0])
        return float(array.flat[0]) if same else None
    node = None if value is None else value.producer()
    if node is None or node.domain or depth == 0:
        return None
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return 0.0 if fill is None else float(fill.as_tensor().numpy().flat[0])
    # A cast changes numbers, but neither 0 nor 1.
    if node.op_type in _COPYING | {"Cast"}:
        return repeated(node.inputs[0], depth - 1)
    return None
