"""Tables of what a model computes from one integer: a row for each value that the integer can have.

The simulator runs the part of the graph between the index and the values, on blocks of indices of
one size, so that a row has the same bits whichever indices are asked for with it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor, clone, remove_dead, replace_uses
from edgeq.index_values import Found, IndexValue, Span
from edgeq.simulate import Simulator

Array = NDArray[Any]
ROWS = 256  # computed at once, where the model allows it: enough for BLAS, and little memory


def compute_tables(
    model: ir.Model, found: Found, values: Sequence[ir.Value], span: Span
) -> list[Array]:
    """Return the table of each of `values`, which depend on the same index.

    Args:
        model: The model; not changed.
        found: What is known of its values.
        values: Them.
        span: The least and the greatest index.

    Returns:
        Shape `(indices, *row)`: the axes of a value without those of the index.
    """
    index = found[values[0]].index
    low, count = span[0], span[1] - span[0] + 1
    part, feed = _part(model, found, values)
    simulator = Simulator(part)
    shape = _block(index.value)
    size = math.prod(shape)
    tables = [np.empty((count, *row_shape(v, found[v])), _dtype(v)) for v in values]
    for begin in range(0, count, size):
        chosen = low + np.minimum(np.arange(begin, begin + size), count - 1)
        results = simulator.run({feed: chosen.reshape(shape).astype(_dtype(index.value))})
        for table, value in zip(tables, values, strict=True):
            axes = found[value].axes
            rows = np.moveaxis(results[str(value.name)], axes, range(len(axes)))
            table[begin : begin + size] = rows.reshape(size, *table.shape[1:])[: count - begin]
    return tables


def row_shape(value: ir.Value, about: IndexValue) -> tuple[int, ...]:
    """Return the sizes of the axes of `value` that are not those of its index."""
    sizes = enumerate(value.shape or ())
    return tuple(s for axis, s in sizes if isinstance(s, int) and axis not in about.axes)


def table_bytes(values: Iterable[ir.Value], found: Found, span: Span) -> int:
    """Return the bytes of the tables of `values`, without making them."""
    indices = span[1] - span[0] + 1
    return sum(indices * math.prod(row_shape(v, found[v])) * _dtype(v).itemsize for v in values)


def _dtype(value: ir.Value) -> np.dtype[Any]:
    assert value.dtype is not None
    return value.dtype.numpy()


def _block(value: ir.Value) -> list[int]:
    """Return the shape of a block of indices: its last unknown size makes it large."""
    shape = [size if isinstance(size, int) else 1 for size in value.shape or ()]
    free = [axis for axis, size in enumerate(value.shape or ()) if not isinstance(size, int)]
    if free:
        shape[free[-1]] = max(1, ROWS // math.prod(shape))
    return shape


def _part(model: ir.Model, found: Found, values: Sequence[ir.Value]) -> tuple[ir.Model, str]:
    """Return the part of a copy that leads from the index to `values`, and its input's name."""
    part = clone(model)
    graph = part.graph
    known = {value.name: value for node in graph for value in node.outputs}
    known |= {value.name: value for value in graph.inputs}
    index = found[values[0]].index
    editor = Editor(graph)
    feed = known[index.value.name]
    if not feed.is_graph_input():
        name = editor.names.fresh(f"{index.value.name}_index")
        feed = ir.Value(name=name, shape=index.value.shape, type=index.value.type)
        replace_uses(known[index.value.name], feed)
    for value, about in found.items():
        if about.index is index and value is not index.value:
            _fix_shape(known[value.name], value, about, editor)
    graph.inputs[:] = [feed]
    graph.outputs[:] = [known[value.name] for value in values]
    remove_dead(graph)
    return part, str(feed.name)


def _fix_shape(copy: ir.Value, value: ir.Value, about: IndexValue, editor: Editor) -> None:
    """Let a Reshape keep the axes of the index, whatever its target was computed from."""
    node = copy.producer()
    if node is None or node.op_type != "Reshape":
        return
    target = np.array([0] * len(about.axes) + list(row_shape(value, about)), np.int64)
    node.replace_input_with(1, editor.initializer(f"{copy.name}_shape", target))
    node.attributes.pop("allowzero", None)
