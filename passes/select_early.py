"""Select rows before they are computed: what nobody reads is not computed.

before:  y = Gather(Add(x, MatMul(LayerNormalization(x), w)), [0], axis=1)
after:   z = Gather(x, [0], axis=1);  y = Add(z, MatMul(LayerNormalization(z), w))

A Gather or Slice by constants moves in front of nodes that treat each row alone, where nobody reads
the other rows: behind a classifier's last attention, the class token alone goes through the last
layer. It does not move along the last axis, where a linear op has its channels.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.axis_sources import Sources, axis_sources, is_pointwise
from edgeq.dims import dim_product, same_dim
from edgeq.graph import (
    Editor,
    constant,
    consumers,
    int_attribute,
    rank,
    remove_dead,
    replace_uses,
    take_output,
)
from edgeq.passing import Context, Pass

_MOVES = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_END = 2**31 - 1  # from here on, an end means all that follows


@dataclass(frozen=True)
class SelectEarly(Pass):
    """Move selections towards the inputs."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many nodes compute less."""
        mover = _Mover(Editor(model.graph))
        done = sum(mover.move(node) for node in reversed(list(model.graph)))
        remove_dead(model.graph)
        return done


@dataclass(frozen=True)
class Selection:
    """Which elements of an axis are taken.

    Attributes:
        axis: Of the value that is read, not negative.
        indices: Constant indices, one axis; from the end where negative.
        drops: Whether the result has no such axis.
    """

    axis: int
    indices: tuple[int, ...]
    drops: bool = False


def selection(node: ir.Node) -> Selection | None:
    """Return what a Gather or Slice by constants takes; None if that depends on run-time sizes."""
    value = node.inputs[0] if node.inputs else None
    ndim = None if value is None else rank(value)
    if node.domain or ndim is None or value is None or constant(value) is not None:
        return None
    if node.op_type == "Gather":
        indices = constant(node.inputs[1])
        if indices is None or indices.ndim > 1:
            return None
        axis = int_attribute(node, "axis", 0) % ndim
        return Selection(axis, tuple(map(int, indices.reshape(-1))), drops=indices.ndim == 0)
    return _slice(node, value, ndim) if node.op_type == "Slice" else None


def _slice(node: ir.Node, value: ir.Value, ndim: int) -> Selection | None:
    operands = [constant(v) for v in node.inputs[1:4]]
    if len(operands) < 3 or any(a is None or a.size != 1 for a in operands):
        return None
    if len(node.inputs) > 4 and not _is_one(constant(node.inputs[4])):
        return None
    start, end, axis = (int(a.reshape(())) for a in operands if a is not None)
    axis %= ndim
    length = None if value.shape is None else value.shape[axis]
    if isinstance(length, int):
        return Selection(axis, tuple(range(length))[start:end])
    return Selection(axis, (-1,)) if start == -1 and end >= _END else None


def _is_one(array: NDArray[np.int64] | None) -> bool:
    return array is not None and array.size == 1 and int(array.reshape(())) == 1


class _Mover:
    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._selected: dict[tuple[ir.Value, int, tuple[int, ...]], ir.Value] = {}

    def move(self, node: ir.Node) -> bool:
        """Let `node` compute only what is read; return whether that is less than all."""
        found = _sole_selection(node.outputs[0])
        if found is None or len(node.outputs) != 1:
            return False
        flat = _flat_rows(node, found.axis)
        if flat:
            self._move_rows(flat, found, rank(node.outputs[0]) or 0)
            sources: Sources | None = {}
        else:
            sources = axis_sources(node, found.axis)
        if sources is None or not (flat or _is_worth(node, found)):
            return False
        readers = consumers(node.outputs[0])
        for index, axis in sources.items():
            value = node.inputs[index]
            assert value is not None
            node.replace_input_with(index, self._take(value, axis, found.indices))
        if node.op_type == "Reshape":
            self._reshape(node, found)
        _resize(node.outputs[0], found)
        for reader in readers:
            self._bypass(reader, node.outputs[0], found.axis)
        return True

    def _move_rows(self, flat: list[ir.Node], found: Selection, ndim: int) -> None:
        """Select in front of nodes that treat rows of a matrix; the first one makes the matrix."""
        first = flat[-1]
        value, sizes = first.inputs[0], constant(first.inputs[1])
        assert value is not None and value.shape is not None and sizes is not None
        chosen = self._take(value, found.axis, found.indices)
        first.replace_input_with(0, chosen)
        if sizes[0] > 0:
            shape = np.array([-1, sizes[1]], np.int64)
            first.replace_input_with(1, self._editor.initializer(f"{value.name}_rows", shape))
        for node in flat:
            made = node.outputs[0]
            assert chosen.shape is not None and made.shape is not None
            made.shape = ir.Shape([dim_product(list(chosen.shape)[: ndim - 1]), made.shape[1]])

    def _take(self, value: ir.Value, axis: int, indices: tuple[int, ...]) -> ir.Value:
        """Return the elements of `value`, selected once for all who read them."""
        key = value, axis, indices
        if key not in self._selected:
            self._selected[key] = self._select(value, axis, np.array(indices, np.int64))
        return self._selected[key]

    def _select(self, value: ir.Value, axis: int, indices: NDArray[np.int64]) -> ir.Value:
        array, name = constant(value), f"{value.name}_selected"
        if array is not None:
            return self._editor.initializer(name, np.take(array, indices, axis))
        made = self._editor.node(
            "Gather", [value, self._editor.initializer(f"{name}_indices", indices)], name,
            attributes={"axis": axis}, dtype=value.dtype, shape=value.shape,
        )  # fmt: skip
        _resize(made, Selection(axis, tuple(map(int, indices))))
        maker = value.producer()
        if maker is None:
            self._editor.insert_first([made])
        else:
            self._editor.insert_after(maker, [made])
        return made

    def _reshape(self, node: ir.Node, found: Selection) -> None:
        """Tell a Reshape the new size."""
        sizes = constant(node.inputs[1])
        assert sizes is not None
        if sizes[found.axis] > 0:
            sizes = sizes.copy()
            sizes[found.axis] = len(found.indices)
            name = f"{node.outputs[0].name}_selected_shape"
            node.replace_input_with(1, self._editor.initializer(name, sizes))

    def _bypass(self, reader: ir.Node, value: ir.Value, axis: int) -> None:
        """Let what reads the selection `reader` read `value`, which holds nothing else now."""
        output, found = reader.outputs[0], selection(reader)
        assert found is not None
        if found.drops:
            axes = self._editor.initializer(f"{output.name}_axes", np.array([axis], np.int64))
            value = self._editor.node(
                "Squeeze", [value, axes], f"{output.name}_selected", dtype=output.dtype,
                shape=output.shape,
            )  # fmt: skip
            self._editor.insert_before(reader, [value])
        replace_uses(output, value)
        take_output(output, value)


def _sole_selection(value: ir.Value) -> Selection | None:
    """Return what all readers of `value` take, where it is not all of it."""
    readers = consumers(value)
    if not readers or value.is_graph_output() or value.shape is None:
        return None
    found = [selection(reader) for reader in readers if reader.inputs[0] is value]
    first = found[0] if found else None
    if first is None or len(found) < len(readers):
        return None
    if any(f is None or (f.axis, f.indices) != (first.axis, first.indices) for f in found):
        return None
    length = value.shape[first.axis]
    fewer = len(first.indices) < length if isinstance(length, int) else len(first.indices) == 1
    return first if fewer else None


def _is_worth(node: ir.Node, found: Selection) -> bool:
    """Whether `node`, or the first node in front of it that does not only move, computes less."""
    while node.op_type in _MOVES:
        axis = (axis_sources(node, found.axis) or {}).get(0)
        source = node.inputs[0]
        maker = None if source is None else source.producer()
        if axis is None or maker is None or len(consumers(maker.outputs[0])) > 1:
            return False
        node, found = maker, Selection(axis, found.indices)
    return len(node.outputs) == 1 and axis_sources(node, found.axis) is not None


def _resize(value: ir.Value, found: Selection) -> None:
    assert value.shape is not None
    sizes = list(value.shape)
    sizes[found.axis] = len(found.indices)
    value.shape = ir.Shape(sizes)


def _flat_rows(node: ir.Node, axis: int) -> list[ir.Node]:
    """Return the nodes between the matrix of all rows and the Reshape `node` behind them, reversed.

    They treat each row alone; the last one, a Reshape, makes the matrix of rows that lie as in the
    result of `node`. None if that is not so, or `axis` is no axis of rows.
    """
    output, value = node.outputs[0], node.inputs[0]
    if node.op_type != "Reshape" or node.domain or constant(node.inputs[1]) is None:
        return []
    if output.shape is None or axis == len(output.shape) - 1:
        return []
    found: list[ir.Node] = []
    while value is not None and rank(value) == 2 and len(consumers(value)) == 1:
        maker = value.producer()
        if maker is None or maker.domain or value.is_graph_output():
            break
        found.append(maker)
        source = maker.inputs[0]
        if maker.op_type == "Reshape":
            return found if _same_rows(source, value, output) else []
        if not (maker.op_type == "Gemm" or is_pointwise(maker)) or axis_sources(maker, 0) != {0: 0}:
            break
        value = source
    return []


def _same_rows(source: ir.Value | None, flat: ir.Value, output: ir.Value) -> bool:
    """Whether `flat` has the rows of `source`, and these lie as in `output`."""
    if source is None or source.shape is None or flat.shape is None or output.shape is None:
        return False
    lead = len(output.shape) - 1
    length = dim_product(list(source.shape)[lead:])
    if len(source.shape) <= lead or length is None or not same_dim(length, flat.shape[-1]):
        return False
    return all(map(same_dim, list(source.shape)[:lead], list(output.shape)[:lead]))
