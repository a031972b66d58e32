"""What is known of an integer vector that a graph computes from shapes.

Each entry is an int, or the symbolic dimension that it is equal to. The product of dimensions is a
dimension too, named as torch's exporter names it: `4*batch*length`.
"""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant, int_attribute

Dim = int | ir.SymbolicDim
_DEPTH = 64  # longer chains than this come from no exporter
_PRODUCT = re.compile(r"\w+(\*\w+)*")


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are known to be equal; two nameless ones are not."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are known to have the same shape."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(map(same_dim, a.shape, b.shape))


def dim_product(dims: Iterable[Dim]) -> Dim | None:
    """Return the product of `dims`; `None` where one is nameless."""
    found = _factors(dims)
    return None if found is None else _dim(*found)


def dim_quotient(dims: Iterable[Dim], divisors: Iterable[Dim]) -> Dim | None:
    """Return the product of `dims` over that of `divisors`; `None` unless it is known to be whole.

    Dimensions of the same name cancel out, so none of them may be zero.
    """
    above, below = _factors(dims), _factors(divisors)
    if above is None or below is None or below[0] == 0 or above[0] % below[0]:
        return None
    if below[1] - above[1]:  # a name that does not cancel out
        return None
    return _dim(above[0] // below[0], above[1] - below[1])


def _factors(dims: Iterable[Dim]) -> tuple[int, Counter[str]] | None:
    """Return the product of `dims` as a number and the names to multiply it with."""
    number, names = 1, Counter[str]()
    for dim in dims:
        text = dim if isinstance(dim, int) else dim.value
        if text is None:
            return None
        parts = text.split("*") if isinstance(text, str) and _PRODUCT.fullmatch(text) else [text]
        for part in parts:
            if isinstance(part, int) or part.isdecimal():
                number *= int(part)
            else:
                names[part] += 1
    return number, names


def _dim(number: int, names: Counter[str]) -> Dim:
    if not names or number == 0:
        return number
    factors = [str(number)] if number != 1 else []
    return ir.SymbolicDim("*".join([*factors, *sorted(names.elements())]))


def shape_values(value: ir.Value, depth: int = _DEPTH) -> list[Dim] | None:
    """Return the entries of the integer scalar or vector `value`; `None` where one is unknown."""
    array = constant(value)
    if array is not None:
        return [int(d) for d in array.reshape(-1)] if array.dtype.kind == "i" else None
    node = value.producer()
    if node is None or node.domain or depth == 0:
        return None
    if node.op_type == "Shape":
        return _shape(node)
    if node.op_type == "Concat":
        parts = [_of(v, depth) for v in node.inputs]
        return None if None in parts else [d for part in parts if part is not None for d in part]
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity", "Cast"):
        return _of(node.inputs[0], depth)
    if node.op_type in ("Gather", "Slice"):
        return _select(node, depth)
    if node.op_type == "Mul":
        return _multiply(node, depth)
    if node.op_type == "Where":
        return _choose(node, depth)
    return None


def _of(value: ir.Value | None, depth: int) -> list[Dim] | None:
    return None if value is None else shape_values(value, depth - 1)


def _shape(node: ir.Node) -> list[Dim] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    ndim = len(source.shape)
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", ndim)
    return list(source.shape)[slice(start, end)]


def _select(node: ir.Node, depth: int) -> list[Dim] | None:
    source = _of(node.inputs[0], depth)
    operands = [constant(v) for v in node.inputs[1:]]
    if source is None or not operands or any(a is None for a in operands):
        return None
    arrays = [np.asarray(a).reshape(-1) for a in operands]
    if node.op_type == "Gather":
        return [source[int(i)] for i in arrays[0] if -len(source) <= i < len(source)]
    if any(len(a) != 1 for a in arrays):
        return None
    step = int(arrays[3][0]) if len(arrays) > 3 else 1
    return source[int(arrays[0][0]) : int(arrays[1][0]) : step]


def _multiply(node: ir.Node, depth: int) -> list[Dim] | None:
    a, b = (_of(v, depth) for v in node.inputs)
    if a is None or b is None or len(a) != 1 or len(b) != 1:
        return None
    product = dim_product([*a, *b])
    return None if product is None else [product]


def _choose(node: ir.Node, depth: int) -> list[Dim] | None:
    """Where(Equal(a, b), x, y), as `expand(n, -1)` is exported; no dimension is negative."""
    equal = None if node.inputs[0] is None else node.inputs[0].producer()
    if equal is None or equal.op_type != "Equal" or equal.domain:
        return None
    a, b, x, y = (_of(v, depth) for v in (*equal.inputs, *node.inputs[1:]))
    if a is None or b is None or x is None or y is None or len({*map(len, (a, b, x, y))}) != 1:
        return None
    result = []
    for left, right, yes, no in zip(a, b, x, y, strict=True):
        if same_dim(left, right):
            result.append(yes)
        elif all(isinstance(d, int) for d in (left, right)) or _is_negative(left, right):
            result.append(no)
        else:
            return None
    return result


def _is_negative(*dims: Dim) -> bool:
    """Whether one of `dims` is a negative number."""
    return any(isinstance(dim, int) and dim < 0 for dim in dims)
