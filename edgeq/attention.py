"""Recognise attention as exporters write it, before and after quantization.

    s = MatMul(q, k)                              both computed at run time
    x = Mul | Div (s, one positive number)        any number of times, Reshape and Transpose between
    x = Add(x, mask) | Where(condition, x, low)   any number of times
    p = Softmax(x)                                maybe Where(IsNaN(p), 0, p)
    y = MatMul(p, v)

No value between `s` and `p` needs codes of its own: the exact form works on the integer products
of the codes of `q` and `k`. So a mask of large negative numbers never meets a quantizer, whose
range it would eat. In a QDQ graph `q` and `k` come from DequantizeLinear nodes, and `p` goes to a
QuantizeLinear.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import onnx_ir as ir

from edgeq.graph import constant, consumers, int_attribute
from edgeq.possible_values import possible_values
from edgeq.roles import activation_inputs, is_activation

MASKED = -1e4  # what is at most this is no score: the mildest number that exporters mask with
# Ops that leave each score what it is, and where numbers that scale it may pass through.
MOVES = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# What masks and biases are made by, where no activation goes in.
_MAKES_MASKS = MOVES | frozenset(
    {
        "Abs", "Add", "Cast", "Clip", "Concat", "ConstantOfShape", "Div", "Expand", "Flatten",
        "Gather", "Max", "Min", "Mul", "Neg", "Slice", "Sub", "Tile", "Trilu", "Where",
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Term:
    """What is added to the scores, or put in their place.

    Attributes:
        node: Add or Where.
        kind: `mask`: floats that are 0 or at most `MASKED`; `bias`: any floats, among them masks
            that are not known as such; `choice`: the condition of a Where.
        value: The floats, or the condition.
        keeps: Of a choice: the truth value that keeps a score.
        factor: The product of the numbers that scale the scores in front of `node`.
    """

    node: ir.Node
    kind: Literal["mask", "bias", "choice"]
    value: ir.Value
    keeps: bool
    factor: float


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention.

    Attributes:
        scores: The MatMul of queries and keys.
        chain: The nodes between `scores` and `softmax`, in order.
        factor: The product of all numbers that scale the scores; positive.
        terms: Masks and biases in the chain, in order.
        softmax: The Softmax.
        guard: The Where that puts 0 in the place of NaN behind it, if any.
        product: The MatMul of the probabilities and the values, if that is what reads them.
    """

    scores: ir.Node
    chain: tuple[ir.Node, ...]
    factor: float
    terms: tuple[Term, ...]
    softmax: ir.Node
    guard: ir.Node | None
    product: ir.Node | None

    @property
    def q(self) -> ir.Value:
        """The left operand of the scores: float, or what a DequantizeLinear makes."""
        return _input(self.scores, 0)

    @property
    def k(self) -> ir.Value:
        """The right operand of the scores, transposed as MatMul wants it."""
        return _input(self.scores, 1)

    @property
    def v(self) -> ir.Value | None:
        """The right operand of `product`."""
        return None if self.product is None else _input(self.product, 1)

    @property
    def axis(self) -> int:
        """The axis along which probabilities sum to 1, as the Softmax states it."""
        return int_attribute(self.softmax, "axis", -1)

    @property
    def output(self) -> ir.Value:
        """The probabilities."""
        return (self.guard or self.softmax).outputs[0]


def find_attentions(model: ir.Model) -> list[Attention]:
    """Return the attentions of the main graph, in order; they share no node but those of masks."""
    found = (_attention(node) for node in model.graph if _is(node, "Softmax"))
    return [attention for attention in found if attention is not None]


def scalar_factor(node: ir.Node) -> float | None:
    """Return the positive number that a Mul or Div scales its other operand with."""
    if not _is(node, "Mul", "Div"):
        return None
    array = constant(node.inputs[1])
    if array is None and node.op_type == "Mul":
        array = constant(node.inputs[0])
    if array is None or array.size != 1 or not float(array.item()) > 0:
        return None
    number = float(array.item())
    return number if node.op_type == "Mul" else 1.0 / number


def inner_values(attentions: Iterable[Attention]) -> list[ir.Value]:
    """Return the float values that stay without codes.

    They are the scores on their way to each Softmax, its result where a guard follows, and what
    masks and biases are made of, where nothing else reads it. A bias that linear ops or functions
    make is an activation like any other, and not among them.
    """
    attentions = list(attentions)
    found: dict[ir.Value, None] = {}
    readers: set[ir.Node] = set()
    for attention in attentions:
        readers.update(attention.chain)
        found |= dict.fromkeys(n.outputs[0] for n in (attention.scores, *attention.chain))
        if attention.guard is not None:
            found[attention.softmax.outputs[0]] = None
    terms = dict.fromkeys(t.value for a in attentions for t in a.terms if _is_plain(t.value))
    pending = list(terms)
    while fresh := [v for v in pending if v not in found and _is_private(v, readers)]:
        found |= dict.fromkeys(fresh)
        makers = [node for v in fresh if (node := v.producer()) is not None]
        readers.update(makers)
        # What had other readers may have none left now.
        pending += [v for node in makers for v in activation_inputs(node)]
    return list(found)


def _attention(softmax: ir.Node) -> Attention | None:
    path = _path(softmax.inputs[0])
    if path is None:
        return None
    factor = 1.0
    terms: list[Term] = []
    for before, node in pairwise(path):
        scale = scalar_factor(node)
        factor *= 1.0 if scale is None else scale
        terms += _terms(node, before.outputs[0], factor)
    guard = _guard(softmax)
    product = _product((guard or softmax).outputs[0])
    return Attention(path[0], path[1:], factor, tuple(terms), softmax, guard, product)


def _path(value: ir.Value | None) -> tuple[ir.Node, ...] | None:
    """Return the MatMul of the scores and the nodes from there to `value`; they do nothing else."""
    node = None if value is None else value.producer()
    if node is None or value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    if _is(node, "MatMul"):
        return (node,) if all(is_activation(v) for v in node.inputs) else None
    for carrier in _carriers(node):
        path = _path(carrier)
        if path is not None:
            return (*path, node)
    return None


def _carriers(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the inputs of `node` that may be the scores."""
    if _is(node, *MOVES):
        yield _input(node, 0)
    elif (
        _is(node, "Mul", "Div", "Max")
        and (scalar_factor(node) is not None or _limits_nothing(node))
    ) or _is(node, "Add"):
        yield from activation_inputs(node)
    elif _is(node, "Where"):
        for index, other in ((1, 2), (2, 1)):
            if _is_low(_input(node, other)):
                yield _input(node, index)


def _terms(node: ir.Node, carrier: ir.Value, factor: float) -> Iterator[Term]:
    """Yield what `node` adds to the scores that `carrier` brings, or chooses among them."""
    if node.op_type == "Add":
        (other,) = (_input(node, i) for i in (0, 1) if node.inputs[i] is not carrier)
        yield Term(node, "mask" if _is_mask(other) else "bias", other, True, factor)
    elif node.op_type == "Where":
        yield Term(node, "choice", _input(node, 0), node.inputs[1] is carrier, factor)


def _limits_nothing(node: ir.Node) -> bool:
    """Whether `node` is a Max with numbers that are masked anyway."""
    limits = [v for v in node.inputs if v is not None and constant(v) is not None]
    return _is(node, "Max") and len(node.inputs) == 2 and any(map(_is_low, limits))


def _is_low(value: ir.Value) -> bool:
    numbers = possible_values(value)
    return numbers is not None and all(number <= MASKED for number in numbers)


def _is_mask(value: ir.Value) -> bool:
    numbers = possible_values(value)
    return numbers is not None and all(number == 0 or number <= MASKED for number in numbers)


def _is_plain(value: ir.Value) -> bool:
    """Whether `value` is made of inputs and constants by operators that no pass makes integer."""
    node = value.producer()
    if value.dtype != ir.DataType.FLOAT or node is None or constant(value) is not None:
        return True
    floats = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
    return _is(node, *_MAKES_MASKS) and all(map(_is_plain, floats))


def _is_private(value: ir.Value, readers: Collection[ir.Node]) -> bool:
    """Whether `value` is a float computed at run time that none but `readers` read."""
    if not is_activation(value) or value.is_graph_output():
        return False
    return all(node in readers for node in consumers(value))


def _guard(softmax: ir.Node) -> ir.Node | None:
    """Return `Where(IsNaN(p), 0, p)`, where it and its condition alone read p."""
    output = softmax.outputs[0]
    readers = consumers(output)
    where = next((node for node in readers if _is(node, "Where")), None)
    if where is None or where.inputs[2] is not output or output.is_graph_output():
        return None
    condition, zero = _input(where, 0).producer(), constant(where.inputs[1])
    if not _is(condition, "IsNaN") or zero is None or zero.any():
        return None
    return where if set(readers) == {condition, where} else None


def _product(probabilities: ir.Value) -> ir.Node | None:
    """Return the first MatMul whose left operand the probabilities are, as reals or as codes."""
    for node in consumers(probabilities):
        if _is(node, "MatMul") and node.inputs[0] is probabilities:
            return node
        if _is(node, "QuantizeLinear", "DequantizeLinear", *MOVES):
            found = _product(node.outputs[0])
            if found is not None:
                return found
    return None


def _is(node: ir.Node | None, *op_types: str) -> bool:
    return node is not None and not node.domain and node.op_type in op_types


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
