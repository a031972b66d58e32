"""Look codes up in a table: the form of a function that IEEE does not define."""

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor


def look_up(editor: Editor, index: ir.Value, table: ir.Value, name: str) -> list[ir.Value]:
    """Return the values, in order, that make `table[index]`; the last has the shape of `index`.

    Args:
        editor: Makes the nodes; the caller inserts them.
        index: int32 or codes, any shape; 0 .. len(table) - 1.
        table: One axis.
        name: Names what is looked up.
    """
    values = []
    flat_shape = editor.initializer(f"{name}_flat", np.array([-1], np.int64))
    if index.dtype != ir.DataType.INT32:
        index_int = editor.node(
            "Cast",
            [index],
            f"{name}_index",
            attributes={"to": ir.DataType.INT32.value},
            dtype=ir.DataType.INT32,
            shape=index.shape,
        )
        values.append(index_int)
        shape_source, index = index, index_int
    else:
        shape_source = index
    flat = editor.node("Reshape", [index, flat_shape], f"{name}_flat", dtype=index.dtype)
    picked = editor.node(
        "GatherElements", [table, flat], f"{name}_picked", attributes={"axis": 0}, dtype=table.dtype
    )
    shape = known_shape(editor, shape_source, name)
    if shape is None:
        shape = editor.node("Shape", [shape_source], f"{name}_shape", dtype=ir.DataType.INT64)
        values.append(shape)
    output = editor.node(
        "Reshape", [picked, shape], name, dtype=table.dtype, shape=shape_source.shape
    )
    return [*values, flat, picked, output]


def known_shape(editor: Editor, value: ir.Value, name: str) -> ir.Value | None:
    """Return a constant that reshapes to the shape of `value`, at most one of whose sizes is open.

    `None` where more are, or where a size of 0 could not be told from an open one.
    """
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    if sizes.count(-1) > 1 or 0 in sizes:
        return None
    return editor.initializer(f"{name}_shape", np.array(sizes, np.int64))
