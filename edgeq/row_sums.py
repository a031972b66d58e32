"""Sums of integers over rows, exact in any order, in the cheapest types that hold them.

float32 counts up to 2**24, float64 up to 2**53, int64 up to 2**63. Where a whole row is too much
for one type, pieces of it are summed there, and their sums in the next:

    x [.., 1024]  Reshape  [.., 4, 256]  ReduceSum in float32  [.., 4]  Cast, ReduceSum in float64

so that only few elements have the wider type.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.chain import Chain

# From the cheapest to the widest: which integers sums may reach.
ROOM = {ir.DataType.FLOAT: 2**24, ir.DataType.DOUBLE: 2**53 - 1, ir.DataType.INT64: 2**62}
_SHORTEST = 16  # shorter pieces are not worth their Reshape


@dataclass(frozen=True)
class Rows:
    """How a tensor is divided into rows.

    Attributes:
        axes: The axes of one row, ascending.
        length: How many elements a row has; None if that is known at run time only.
        longest: How many it has at most.
    """

    axes: tuple[int, ...]
    length: int | None
    longest: int


def row_sums(chain: Chain, x: ir.Value, rows: Rows, bound: int) -> ir.Value:
    """Return the float64 sums of the rows of `x`, whose axes have length 1.

    Args:
        chain: Makes the nodes.
        x: Integers of one of the types above; its shape is known, names of sizes aside.
        rows: Its rows.
        bound: The largest magnitude of an element; the sums must not leave int64.
    """
    assert x.dtype is not None and x.shape is not None
    room = ROOM[x.dtype]
    if rows.longest * bound <= room:
        sizes = [1 if axis in rows.axes else size for axis, size in enumerate(x.shape)]
        total = _reduce(chain, x, rows.axes, sizes, keepdims=1)
        return chain.cast(total, ir.DataType.DOUBLE)
    wider = [dtype for dtype, more in ROOM.items() if more > room]
    assert wider, f"{x.name}: int64 cannot hold sums of {rows.longest} numbers of up to {bound}"
    count = _pieces(rows, len(x.shape), room // bound)
    if count is not None and rows.length is not None:
        lead, piece = rows.axes[0], rows.length // count
        sizes = [*x.shape[:lead], count, *(1,) * (len(rows.axes) - 1)]
        parts = chain.reshape(x, ir.Shape([*sizes, piece]), kept=lead)
        x = _reduce(chain, parts, (len(sizes),), sizes, keepdims=0)
        rows, bound = Rows(rows.axes, count, count), bound * piece
    return row_sums(chain, chain.cast(x, wider[0]), rows, bound)


def _reduce(
    chain: Chain,
    x: ir.Value,
    axes: tuple[int, ...],
    sizes: Sequence[int | ir.SymbolicDim],
    *,
    keepdims: int,
) -> ir.Value:
    over = chain.constant(np.array(axes, np.int64))
    return chain("ReduceSum", x, over, shape=sizes, keepdims=keepdims)


def _pieces(rows: Rows, ndim: int, longest: int) -> int | None:
    """Return into how many pieces of at most `longest` elements a row is cut, the least that do."""
    trailing = rows.axes == tuple(range(rows.axes[0], ndim))
    if rows.length is None or not trailing or longest < _SHORTEST:
        return None
    fewest = -(-rows.length // longest)
    counts = range(fewest, rows.length // _SHORTEST + 1)
    return next((count for count in counts if rows.length % count == 0), None)
