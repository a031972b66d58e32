"""Keep rows in one matrix between linear ops, instead of restoring their leading axes in between.

before:  y = Add(x, Reshape(Gemm(..), [batch, length, C]))
         z = Gemm(Reshape(LayerNormalization(y), [-1, C]), ..)
after:   y = Add(Reshape(x, [-1, C]), Gemm(..))
         z = Gemm(LayerNormalization(y), ..)

A Reshape that divides the rows of a matrix moves behind nodes that treat each row alone, until it
meets the Reshape that joins them again: both go. What such a node adds is joined in front of it.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.axis_sources import is_pointwise
from edgeq.dims import dim_product, same_shape
from edgeq.graph import (
    Editor,
    constant,
    int_attribute,
    producer,
    remove_dead,
    replace_uses,
    take_output,
)
from edgeq.passing import Context, Pass
from edgeq.roles import is_activation


@dataclass(frozen=True)
class FlattenRows(Pass):
    """Move Reshapes that divide rows towards the outputs, until they meet their inverse."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many nodes read a matrix that did not."""
        flattener = _Flattener(Editor(model.graph))
        done = sum([flattener.flatten(node) for node in list(model.graph)])
        remove_dead(model.graph)
        return done


class _Flattener:
    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._matrices: dict[ir.Value, ir.Value] = {}  # by what they are the rows of

    def flatten(self, node: ir.Node) -> bool:
        """Let `node` read a matrix if rows of one are what it reads."""
        if node.op_type == "Reshape" and not node.domain:
            return self._join(node)
        divided = [v for v in node.inputs if v is not None and _matrix(v) is not None]
        if not divided or not _treats_rows_alone(node):
            return False
        divide = divided[0].producer()
        assert divide is not None and divide.inputs[1] is not None
        for index, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(index, self._rows_of(value))
        if node.op_type == "LayerNormalization":
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
        self._divide(node, divide.inputs[1])
        return True

    def _join(self, node: ir.Node) -> bool:
        """Read the matrix itself, if it is what its own rows, divided, are reshaped to."""
        source, output = node.inputs[0], node.outputs[0]
        matrix = None if source is None else _matrix(source)
        if source is None or matrix is None:
            if source is not None and _holds_rows(output, source):
                self._matrices.setdefault(source, output)
            return False
        if _holds_rows(output, source) and not output.is_graph_output():
            replace_uses(output, matrix)
            return True
        sizes = constant(node.inputs[1])
        if sizes is None or not sizes.all():  # a 0 stands for an axis of the rows
            return False
        node.replace_input_with(0, matrix)
        return True

    def _rows_of(self, value: ir.Value) -> ir.Value:
        """Return the rows of `value` as a matrix; constants, so that they broadcast to one."""
        array = constant(value)
        if array is not None:
            if array.ndim < 3:
                return value
            flat = array.reshape(array.shape[-1:] if array.size > 1 else ())
            return self._editor.initializer(f"{value.name}_row", flat)
        matrix = _matrix(value) or self._matrices.get(value)
        if matrix is None:
            assert value.shape is not None
            sizes = np.array([-1, value.shape[-1]], np.int64)
            matrix = self._editor.node(
                "Reshape", [value, self._editor.initializer(f"{value.name}_rows_shape", sizes)],
                f"{value.name}_rows", dtype=value.dtype,
                shape=ir.Shape([dim_product(list(value.shape)[:-1]), value.shape[-1]]),
            )  # fmt: skip
            self._insert_behind(value, matrix)
            self._matrices[value] = matrix
        return matrix

    def _insert_behind(self, value: ir.Value, made: ir.Value) -> None:
        maker = value.producer()
        if maker is None:
            self._editor.insert_first([made])
        else:
            self._editor.insert_after(maker, [made])

    def _divide(self, node: ir.Node, sizes: ir.Value) -> None:
        """Give what `node` makes the axes that it had, for whoever else reads it."""
        output = node.outputs[0]
        rows = next(v.shape for v in node.inputs if v is not None and is_activation(v))
        assert rows is not None
        restored = self._editor.node(
            "Reshape", [output, sizes], f"{output.name}_divided", dtype=output.dtype,
            shape=output.shape,
        )  # fmt: skip
        output.shape = rows
        replace_uses(output, restored, but=[producer(restored)])
        if output.is_graph_output():
            take_output(output, restored)
        self._editor.insert_after(node, [restored])


def _matrix(value: ir.Value) -> ir.Value | None:
    """Return the matrix whose rows a Reshape has divided to make `value`."""
    node = value.producer()
    if node is None or node.op_type != "Reshape" or node.domain:
        return None
    source = node.inputs[0]
    return source if source is not None and _holds_rows(source, value) else None


def _holds_rows(matrix: ir.Value, value: ir.Value) -> bool:
    """Whether `matrix` has two axes, and its rows are those of `value`, which has more."""
    if matrix.shape is None or value.shape is None:
        return False
    length = value.shape[-1] if len(value.shape) > len(matrix.shape) == 2 else None
    return isinstance(length, int) and length == matrix.shape[1]


def _treats_rows_alone(node: ir.Node) -> bool:
    output = node.outputs[0]
    if node.domain or not is_activation(output) or output.shape is None or len(node.outputs) != 1:
        return False
    if node.op_type == "LayerNormalization":
        return int_attribute(node, "axis", -1) in (-1, len(output.shape) - 1)
    length = output.shape[-1]
    for value in node.inputs:
        array = constant(value)
        if value is None:
            continue
        if array is None and not (is_activation(value) and same_shape(value, output)):
            return False
        if array is not None and array.size != 1 and array.shape[-1:] != (length,):
            return False
        if array is not None and array.size not in (1, length):
            return False
    return is_pointwise(node)
