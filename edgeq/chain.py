"""New nodes, made one after another and inserted together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor


class Chain:
    """Makes nodes that stand for one node; what they make is named after its output.

    Attributes:
        made: The values, in the order in which they were made.
    """

    def __init__(self, editor: Editor, name: str) -> None:
        self._editor = editor
        self._name = name
        self.made: list[ir.Value] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value,
        shape: ir.Shape | Sequence[int | ir.SymbolicDim] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: int,
    ) -> ir.Value:
        """Make a node; its result has the shape and dtype of the first input, unless given."""
        value = self._editor.node(
            op_type,
            inputs,
            f"{self._name}_{op_type.lower()}",
            attributes=attributes,
            dtype=dtype or inputs[0].dtype,
            shape=inputs[0].shape if shape is None else ir.Shape(shape),
        )
        self.made.append(value)
        return value

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Make a Cast; return `value` itself if it has this dtype."""
        return value if value.dtype == dtype else self("Cast", value, dtype=dtype, to=dtype.value)

    def reshape(self, value: ir.Value, shape: ir.Shape, *, kept: int) -> ir.Value:
        """Make a Reshape to `shape`, whose first `kept` sizes are those of `value`."""
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        sizes[:kept] = [0] * kept
        assert sizes.count(-1) < 2, f"{value.name}: several sizes of {shape} are unknown"
        return self("Reshape", value, self.constant(np.array(sizes, np.int64)), shape=shape)

    def constant(self, array: NDArray[Any] | np.generic) -> ir.Value:
        """Return an initializer; equal arrays share one."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._editor.initializer(f"{self._name}_constant", array)
        return self._constants[key]

    def insert_before(self, node: ir.Node) -> None:
        """Insert what was made."""
        self._editor.insert_before(node, self.made)
