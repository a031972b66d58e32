"""Masks that are provably causal: row `t` keeps keys 0 to `t`, whatever the sizes are.

    LessOrEqual(0, 1, 2, ... along the last axis, 0, 1, 2, ... along the axis before)
    Trilu<upper=0>(ones), Trilu<upper=1>(a low number, 1), then compared, chosen, added

A mask that is constant is looked at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from edgeq.attention import MASKED, Term
from edgeq.counts import Count, count_of
from edgeq.dims import Dim, same_dim
from edgeq.graph import constant, int_attribute
from edgeq.possible_values import possible_values

_DEPTH = 16
_KEYS, _ROWS = Count(0, 1, -1), Count(0, 1, -2)


def is_causal(term: Term, scores: ir.Value) -> bool:
    """Whether a term of an attention keeps the lower triangle of its scores and nothing else.

    There must be as many rows as keys: `scores` says how many.
    """
    if scores.shape is None or len(scores.shape) < 2 or term.kind == "bias":
        return False
    rows, keys = scores.shape[-2:]
    kept: _Kept = (
        (lambda number: bool(number) == term.keeps)
        if term.kind == "choice"
        else (lambda number: number > MASKED)
    )
    return same_dim(rows, keys) and _keeps(term.value, _Question(kept, keys, _DEPTH))


_Kept = Callable[[float], bool]  # whether an element of that value is kept


@dataclass(frozen=True)
class _Question:
    """What is asked of a value: are exactly those elements kept that lie in the lower triangle?

    Attributes:
        kept: Which values of elements mean that they are kept.
        size: How many rows and keys there are: fewer would be broadcast.
        depth: How many nodes to look at, one behind the other.
    """

    kept: _Kept
    size: Dim
    depth: int

    def about(self, kept: _Kept) -> "_Question":
        """Return the question for a value whose elements are kept where `kept` says so."""
        return replace(self, kept=kept)


def _keeps(value: ir.Value | None, asked: _Question) -> bool:
    if value is None or value.shape is None or len(value.shape) < 2 or asked.depth == 0:
        return False
    if not all(same_dim(size, asked.size) for size in value.shape[-2:]):
        return False
    array = constant(value)
    if array is not None:
        found = np.vectorize(asked.kept, otypes=[bool])(array)
        return bool(np.all(found == np.tril(np.ones(array.shape[-2:], bool))))
    node = value.producer()
    if node is None or node.domain or node.op_type not in _RULES:
        return False
    return _RULES[node.op_type](node, replace(asked, depth=asked.depth - 1))


def _compared(node: ir.Node, asked: _Question) -> bool:
    """`key <= row` or `row >= key`, kept where true; `key > row` or `row < key`, where false."""
    operands = list(node.inputs)
    if node.op_type in ("GreaterOrEqual", "Less"):
        operands.reverse()
    truth = node.op_type in ("LessOrEqual", "GreaterOrEqual")
    for value, wanted in zip(operands, (_KEYS, _ROWS), strict=True):
        if value is None or value.shape is None or count_of(value) != wanted:
            return False
        if not same_dim(value.shape[wanted.axis], asked.size):
            return False
    return asked.kept(truth) and not asked.kept(not truth)


def _copied(node: ir.Node, asked: _Question) -> bool:
    return _keeps(node.inputs[0], asked)


def _cast(node: ir.Node, asked: _Question) -> bool:
    """A Cast to a truth value, of one, or to a float: all but those that cut numbers off."""
    source, made = node.inputs[0], node.outputs[0].dtype
    if made == ir.DataType.BOOL:
        return _keeps(source, asked.about(lambda number: asked.kept(bool(number))))
    truth = source is not None and source.dtype == ir.DataType.BOOL
    return (truth or made in (ir.DataType.FLOAT, ir.DataType.DOUBLE)) and _keeps(source, asked)


def _negated(node: ir.Node, asked: _Question) -> bool:
    return _keeps(node.inputs[0], asked.about(lambda number: asked.kept(not number)))


def _chosen(node: ir.Node, asked: _Question) -> bool:
    """`Where(condition, a, b)`, where all of one of them is kept, and nothing of the other."""
    states = [_state(v, asked.kept) for v in node.inputs[1:]]
    if None in states or states[0] == states[1]:
        return False
    return _keeps(node.inputs[0], asked.about(lambda number: bool(number) == states[0]))


def _triangle(node: ir.Node, asked: _Question) -> bool:
    """A triangle of one kind, 0 elsewhere: of both, one is kept."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    offset = np.array(0) if given is None else constant(given)
    inside = _state(node.inputs[0], asked.kept)
    if offset is None or inside is None or inside == asked.kept(0.0):
        return False
    upper = int_attribute(node, "upper", 1)
    return inside != bool(upper) and int(offset.reshape(())) == upper


def _equal(node: ir.Node, asked: _Question) -> bool:
    """`Equal(x, number)`."""
    for data, other in (node.inputs, node.inputs[::-1]):
        number = constant(other)
        if number is not None and number.size == 1:
            return _keeps(data, asked.about(partial(_is_kept, asked.kept, number.item())))
    return False


def _is_kept(kept: _Kept, wanted: float, found: float) -> bool:
    return kept(found == wanted)


def _state(value: ir.Value | None, kept: _Kept) -> bool | None:
    """Return whether all elements are kept; None where some may be and others not."""
    numbers = possible_values(value)
    states = set() if numbers is None else {kept(number) for number in numbers}
    return states.pop() if len(states) == 1 else None


_Rule = Callable[[ir.Node, _Question], bool]
_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "Cast": _cast,
        "Equal": _equal,
        "Expand": _copied,
        "Greater": _compared,
        "GreaterOrEqual": _compared,
        "Identity": _copied,
        "Less": _compared,
        "LessOrEqual": _compared,
        "Not": _negated,
        "Trilu": _triangle,
        "Unsqueeze": _copied,
        "Where": _chosen,
    }
)
