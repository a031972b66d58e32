"""Masks of attention as truth values: which keys each query may see.

Positions count from the first key; a query's own position is its place in the block of queries plus
the number of keys that were there before.
"""

import onnx_ir as ir

from edgeq.writing import Writer


def causal(write: Writer, queries: ir.Value, keys: ir.Value, offset: ir.Value | None) -> ir.Value:
    """Return the causal mask `key <= query + offset`.

    Args:
        write: Writes the nodes.
        queries: How many, an int64 scalar.
        keys: How many, an int64 scalar.
        offset: Keys before the first query: int64, a scalar or [B, 1, 1, 1]; None for 0.

    Returns:
        bool, [queries, keys] or [B, 1, queries, keys].
    """
    rows = _rows(write, queries, offset)
    return write("LessOrEqual", write.positions(keys), rows)


def window(
    write: Writer,
    queries: ir.Value,
    keys: ir.Value,
    offset: ir.Value | None,
    left: int,
    right: int,
) -> list[ir.Value]:
    """Return the masks of a window around each query; a negative size leaves a side open."""
    rows, columns = _rows(write, queries, offset), write.positions(keys)
    masks = []
    if left >= 0:
        first = write("Sub", rows, write.integers(left))
        masks.append(write("GreaterOrEqual", columns, first))
    if right >= 0:
        last = write("Add", rows, write.integers(right))
        masks.append(write("LessOrEqual", columns, last))
    return masks


def first_keys(write: Writer, keys: ir.Value, lengths: ir.Value) -> ir.Value:
    """Return the mask of the first `lengths[b]` keys of each sample, [B, 1, 1, keys]."""
    columns = write("Cast", lengths, to=int(ir.DataType.INT64))
    limits = write("Unsqueeze", columns, write.integers(1, 2, 3))
    return write("Less", write.positions(keys), limits)


def every(write: Writer, masks: list[ir.Value]) -> ir.Value | None:
    """Return what all masks allow; None without masks."""
    if not masks:
        return None
    result = masks[0]
    for mask in masks[1:]:
        result = write("And", result, mask)
    return result


def _rows(write: Writer, queries: ir.Value, offset: ir.Value | None) -> ir.Value:
    # Not Unsqueeze: ONNX follows small integers through it, and then takes the column for a vector.
    rows = write("Reshape", write.positions(queries), write.integers(-1, 1))
    return rows if offset is None else write("Add", rows, offset)
