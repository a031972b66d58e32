"""Replace what depends on an index alone by tables: a row for each integer that it can be.

before:  t = Gemm(Sigmoid(Gemm(Sin(Mul(Cast(timestep), frequencies)), v, c)), w, b);  y = Add(x, t)
after:   t = Gather(table, Sub(timestep, low));                                       y = Add(x, t)

`table[i]` is the float32 value of `t` at `timestep = low + i`, as edgeq's simulator computes it. No
run of the float model sees other values, so the tables are exact; and the linear ops and functions
in front of them, which 8 bits would harm most, are gone. The range of the integer is what the user
says (`--input-range timestep=0:999`), or the rows of an embedding that it selects from. Positions
that a Range counts are an index too, up to `max_dim`: sines and cosines of rotary embeddings.

Nothing is done where nothing is to be gained: token ids of an embedding, masks made of integers. A
Reshape, Unsqueeze or Transpose stays behind the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.dims import same_dim
from edgeq.errors import ModelError
from edgeq.graph import (
    MESSAGE_LIMIT,
    Editor,
    consumers,
    producer,
    remove_dead,
    replace_uses,
    take_output,
    weight_bytes,
)
from edgeq.index_tables import compute_tables, table_bytes
from edgeq.index_values import (
    REARRANGING,
    Found,
    Index,
    IndexValue,
    Span,
    index_values,
    known_spans,
)
from edgeq.passing import Context, Pass

_INDICES = (ir.DataType.INT32, ir.DataType.INT64)  # what Gather takes


@dataclass(frozen=True)
class TabulateIndex(Pass):
    """Look up what an integer alone decides."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many values became tables.

        Raises:
            ModelError: The range of an integer input is needed and unknown, is not that of an
                embedding, or makes tables larger than a file can be.
        """
        graph = model.graph
        found = index_values(graph, context.input_ranges)
        spans = known_spans(graph, found, context.max_dim)
        wanted = _wanted(graph, found)
        editor = Editor(graph)
        for index in dict.fromkeys(found[value].index for value in wanted):
            values = [value for value in wanted if found[value].index is index]
            span = spans.get(index.source)
            if span is None:
                raise _unknown_range(found[values[0]])
            size, before = table_bytes(values, found, span), weight_bytes(model)
            _check_size(index, size)
            tables = compute_tables(model, found, values, span)
            rows = _rows(index, span, values[0], editor)
            for value, table in zip(values, tables, strict=True):
                _replace(value, table, rows, found[value], editor)
            remove_dead(graph)
            removed = before - (weight_bytes(model) - size)
            text = (
                f"{len(values)} values that depend on {index.source.name} ({span[0]} to {span[1]})"
                f" alone are tables of {size} bytes; {removed} bytes of weights went"
            )
            context.notes.append((self.name(), text))
        return len(wanted)


def _wanted(graph: ir.Graph, found: Found) -> list[ir.Value]:
    """Return the last values on every way that depend on an index alone, in graph order."""
    outside: set[ir.Node] = set()
    for node in reversed(list(graph)):
        ends = node.outputs[0] not in found
        if not ends and not node.domain and node.op_type in REARRANGING:
            ends = outside.issuperset(consumers(node.outputs[0]))
        if ends:
            outside.add(node)
    return [
        value
        for value, about in found.items()
        if about.costly is not None
        and value.producer() not in outside
        and (value.is_graph_output() or not outside.isdisjoint(consumers(value)))
    ]


# -- ranges ----------------------------------------------------------------------------------------


def _unknown_range(about: IndexValue) -> ModelError:
    node, name = about.costly, about.index.source.name
    assert node is not None
    return ModelError(
        f"node {node.name!r} ({node.op_type}) depends on the integer input {name!r} alone: a table"
        " replaces it, once the range of the integer is known. Pass --input-range NAME=LOW:HIGH,"
        f" both ends included: --input-range {name}=0:999 for 1000 steps"
    )


def _check_size(index: Index, size: int) -> None:
    if size > MESSAGE_LIMIT:
        raise ModelError(
            f"the tables of what depends on {index.source.name} alone take {size} bytes, more than"
            " a model file can hold; give a smaller --input-range, or cut the graph there"
        )


# -- the rewrite -----------------------------------------------------------------------------------


def _rows(index: Index, span: Span, first: ir.Value, editor: Editor) -> ir.Value:
    """Return the rows to look up: the index, counted from the least one."""
    value = index.source if _same_shape(index.source, index.value) else index.value
    sizes, made = list(value.shape or ()), []
    if value.dtype not in _INDICES:
        cast = editor.node(
            "Cast",
            [value],
            f"{value.name}_integer",
            attributes={"to": int(ir.DataType.INT64)},
            dtype=ir.DataType.INT64,
            shape=value.shape,
        )
        made.append(cast)
        value = cast
    if span[0]:
        assert value.dtype is not None
        low = editor.initializer(f"{value.name}_low", np.array(span[0], value.dtype.numpy()))
        row = editor.node(
            "Sub", [value, low], f"{value.name}_row", dtype=value.dtype, shape=value.shape
        )
        made.append(row)
        value = row
    if len(index.axes) < len(sizes):
        short = [axis for axis in range(len(sizes)) if axis not in index.axes]
        axes = editor.initializer(f"{value.name}_axes", np.array(short, np.int64))
        shape = ir.Shape([sizes[axis] for axis in index.axes])
        flat = editor.node(
            "Squeeze", [value, axes], f"{value.name}_flat", dtype=value.dtype, shape=shape
        )
        made.append(flat)
        value = flat
    editor.insert_before(producer(first), made)
    return value


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(same_dim(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def _replace(
    value: ir.Value, table: NDArray[Any], rows: ir.Value, about: IndexValue, editor: Editor
) -> None:
    """Put a look-up in the place of `value`: rows first, then its other axes where they were."""
    assert value.shape is not None
    sizes, name = list(value.shape), value.name
    others = [axis for axis in range(len(sizes)) if axis not in about.axes]
    long = [axis for axis in others if sizes[axis] != 1]
    narrow = table.reshape(len(table), *(size for size in table.shape[1:] if size != 1))
    order = [*about.axes, *long]
    made = [
        editor.node(
            "Gather",
            [editor.initializer(f"{name}_table", narrow), rows],
            f"{name}_looked_up",
            attributes={"axis": 0},
            dtype=value.dtype,
            shape=ir.Shape([sizes[axis] for axis in order]),
        )
    ]
    if order != sorted(order):
        perm = [int(place) for place in np.argsort(order)]
        made.append(_moved("Transpose", made[-1:], sorted(order), value, editor, perm=perm))
    if len(long) < len(others):
        short = np.array([axis for axis in others if axis not in long], np.int64)
        axes = editor.initializer(f"{name}_axes", short)
        made.append(_moved("Unsqueeze", [made[-1], axes], range(len(sizes)), value, editor))
    editor.insert_before(producer(value), made)
    replace_uses(value, made[-1])
    if value.is_graph_output():
        take_output(value, made[-1])


def _moved(
    op_type: str,
    inputs: Sequence[ir.Value],
    axes: Sequence[int],
    value: ir.Value,
    editor: Editor,
    **attributes: list[int],
) -> ir.Value:
    """Return a node that leaves the given axes of `value`."""
    sizes = list(value.shape or ())
    return editor.node(
        op_type,
        inputs,
        f"{value.name}_{op_type.lower()}",
        attributes=dict(attributes),
        dtype=value.dtype,
        shape=ir.Shape([sizes[axis] for axis in axes]),
    )
