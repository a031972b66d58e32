"""How long an axis can be at run time: what bounds sums over axes that the model leaves open.

The user says it once, as `max_dim`: no dimension that the model leaves open is greater. A dimension
named as a product, `4*batch*length`, is bounded by the product of its factors.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_DIM = 4096


def longest(dim: "int | ir.SymbolicDim", max_dim: int) -> int:
    """Return the greatest length of an axis.

    >>> import onnx_ir as ir
    >>> longest(ir.SymbolicDim("4*batch*length"), 100), longest(7, 100)
    (40000, 7)
    """
    if isinstance(dim, int):
        return dim
    factors = str(dim.value or "").split("*")
    return math.prod(int(f) if f.isdecimal() else max_dim for f in factors)


def most_elements(dims: "Iterable[int | ir.SymbolicDim]", max_dim: int) -> int:
    """Return the most elements that axes have together."""
    return math.prod(longest(dim, max_dim) for dim in dims)
