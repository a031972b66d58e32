"""What a graph computes from its symbolic dimensions alone, computed from its inputs, once.

before:  Reshape(x, Concat(Slice(Shape(norm_1), 0, 2), [128])), again for each layer
after:   Reshape(x, shape), with one `shape = Concat(Shape(ids), [128])` in front of all

before:  Gather(table, Cast(Sub(CumSum(Expand(1.0, Shape(ids)), 1), 1.0)))      in float
after:   Gather(table, Range(0, length, 1)), broadcast by what reads the rows

So no shape is read from an activation, which a quantized graph has as codes, and no float is
computed that holds nothing but positions.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.counts import Count, count_of
from edgeq.dims import Dim, same_shape, shape_values
from edgeq.graph import Editor, constant, consumers, int_attribute, remove_dead

_SHAPE_OPERAND = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}
_BROADCASTS = frozenset({"Add", "Mul", "Sub"})
_Key = tuple[int | str, ...]


def share_run_time_shapes(graph: ir.Graph) -> int:
    """Rewire shapes and positions; return how many nodes read another operand now."""
    made = _FromInputs(graph)
    changed = sum(_positions(node, made) for node in graph)
    changed += sum(_shape(node, made) for node in graph)
    made.insert()
    remove_dead(graph)
    return changed


class _FromInputs:
    """Integer vectors made of the dimensions of graph inputs."""

    def __init__(self, graph: ir.Graph) -> None:
        self._editor = Editor(graph)
        self._made: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}
        self._parts: dict[str, ir.Value] = {}
        self._vectors: dict[_Key, ir.Value] = {}
        self._counts: dict[tuple[Count, str], ir.Value] = {}
        self._places: dict[str, tuple[ir.Value, int]] = {}
        for value in graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    self._places.setdefault(dim.value, (value, axis))

    def insert(self) -> None:
        """Put all that was made in front of the graph's nodes."""
        self._editor.insert_first(self._made)

    def knows(self, dims: Sequence[Dim]) -> bool:
        """Whether every dimension is a number or that of an input."""
        return all(isinstance(dim, int) or dim.value in self._places for dim in dims)

    def vector(self, dims: Sequence[Dim]) -> ir.Value:
        """Return the value whose entries are `dims`, which must be known."""
        key = _key(dims)
        if key not in self._vectors:
            parts = [self._part(entry) for entry in key]
            joined = parts[0] if len(parts) == 1 else self._node("Concat", parts, key, axis=0)
            self._vectors[key] = joined
        return self._vectors[key]

    def register(self, dims: Sequence[Dim], value: ir.Value) -> bool:
        """Take `value`, which the graph makes so already; return whether it is the only one."""
        return self._vectors.setdefault(_key(dims), value) is value

    def count(self, count: Count, dim: ir.SymbolicDim) -> ir.Value:
        """Return the vector `start, start + step, ...` with as many elements as `dim` says."""
        key = count, str(dim.value)
        if key not in self._counts:
            self._counts[key] = self._range(count, dim)
        return self._counts[key]

    def _range(self, count: Count, dim: ir.SymbolicDim) -> ir.Value:
        axes = self._constant(np.array([0]))
        length = self._node("Squeeze", [self.vector([dim]), axes], (str(dim.value),), shape=())
        limit = length
        for op_type, number, idle in (("Mul", count.step, 1), ("Add", count.start, 0)):
            if number != idle:
                factor = self._constant(np.array(number))
                limit = self._node(op_type, [limit, factor], (str(dim.value),), shape=())
        start, step = (self._constant(np.array(n)) for n in (count.start, count.step))
        return self._node("Range", [start, limit, step], (str(dim.value),), shape=(dim,))

    def _part(self, entry: int | str) -> ir.Value:
        if isinstance(entry, int):
            return self._constant(np.array([entry]))
        if entry not in self._parts:
            source, axis = self._places[entry]
            attributes = {"start": axis, "end": axis + 1}
            self._parts[entry] = self._node("Shape", [source], (entry,), shape=(1,), **attributes)
        return self._parts[entry]

    def _constant(self, array: NDArray[np.int64]) -> ir.Value:
        key = str(array.tolist())
        if key not in self._constants:
            self._constants[key] = self._editor.initializer("run_time_constant", array)
        return self._constants[key]

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        key: _Key,
        *,
        shape: Sequence[Dim] | None = None,
        **attributes: int,
    ) -> ir.Value:
        name = "_".join([op_type.lower(), *map(str, key)])
        value = self._editor.node(
            op_type, inputs, name, dtype=ir.DataType.INT64,
            attributes=attributes,
            shape=ir.Shape([len(key)] if shape is None else shape),
        )  # fmt: skip
        self._made.append(value)
        return value


def _key(dims: Sequence[Dim]) -> _Key:
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in dims)


def _shape(node: ir.Node, made: _FromInputs) -> bool:
    """Let `node` read a shape made of the inputs' dimensions."""
    place = _SHAPE_OPERAND.get(node.op_type)
    if place is None or node.domain:
        return False
    operand = node.inputs[place]
    if operand is None or constant(operand) is not None:
        return False
    dims = shape_values(operand)
    if dims is None or not made.knows(dims) or all(isinstance(dim, int) for dim in dims):
        return False
    if _is_direct(operand) and made.register(dims, operand):
        return False
    node.replace_input_with(place, made.vector(dims))
    return True


def _is_direct(operand: ir.Value) -> bool:
    """Whether `operand` joins constants and one-element shapes of graph inputs."""
    node = operand.producer()
    if node is None or node.domain:
        return constant(operand) is not None
    if node.op_type == "Concat":
        return all(v is not None and _is_direct(v) for v in node.inputs)
    source = node.inputs[0] if node.op_type == "Shape" else None
    return source is not None and source.is_graph_input()


def _positions(node: ir.Node, made: _FromInputs) -> bool:
    """Let a Gather read positions that are counted as integers."""
    if node.op_type != "Gather" or node.domain or int_attribute(node, "axis", 0) != 0:
        return False
    index, table = node.inputs[1], node.inputs[0]
    count = count_of(index)
    if count is None or not count.step or index is None or index.shape is None or table is None:
        return False
    dim = index.shape[count.axis]
    if isinstance(dim, int) or not made.knows([dim]) or _is_counted(index):
        return False
    if count.axis != -1 or not _rows_broadcast(node):
        return False
    rows = made.count(count, dim)
    node.replace_input_with(1, rows)
    output = node.outputs[0]
    assert output.shape is not None
    output.shape = ir.Shape(list(output.shape)[len(index.shape) - 1 :])
    return True


def _is_counted(index: ir.Value) -> bool:
    node = index.producer()
    return node is not None and node.op_type == "Range"


def _rows_broadcast(node: ir.Node) -> bool:
    """Whether all that read the rows give their leading dimensions back by broadcasting."""
    output = node.outputs[0]
    if output.is_graph_output() or output.shape is None:
        return False
    for reader in consumers(output):
        if reader.op_type not in _BROADCASTS or reader.domain:
            return False
        if not any(v is not None and v is not output and same_shape(v, output)
                   for v in reader.inputs):  # fmt: skip
            return False
    return True
