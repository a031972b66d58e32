"""Attention scores without codes of their own: the integer products of the codes of q and k.

    acc = MatMulInteger(q, k, zq, zk)               int32, exact
    x   = Cast(acc)                                 float32, rounded once
    x   = Add(x, mask)                              per mask or bias: one IEEE addition

`x` counts in units of `sq * sk * factor`: numbers that scale the scores scale the unit instead. A
bias is divided by the unit. A mask holds `EMPTY` for what is masked; the sum of a score and `EMPTY`
is `EMPTY`. So a row where all is masked is uniform, as the sum of scores and -3.4e38 is in float32.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from edgeq.attention import MASKED, Attention, Term
from edgeq.graph import Editor
from edgeq.possible_values import possible_values
from edgeq.qdq import Operand, operand
from edgeq.softmax_form import Constants

EMPTY = -(2.0**100)
LOWEST = -(2.0**90)  # below what a score and a bias can come to, above what is masked
_MOST_NEGATIVE = float(np.finfo(np.float32).min)


def coded_operands(attention: Attention) -> tuple[Operand, Operand] | None:
    """Return how q and k are dequantized; None unless both are uint8 per tensor."""
    q, k = operand(attention.q), operand(attention.k)
    if q is None or k is None:
        return None
    plain = all(x.qparams.axis is None and x.qparams.qtype.name == "uint8" for x in (q, k))
    return (q, k) if plain else None


def score_unit(attention: Attention, q: Operand, k: Operand) -> float:
    """Return what a score of 1 unit stands for, behind all numbers that scale the scores."""
    return float(q.qparams.scale) * float(k.qparams.scale) * attention.factor


def may_be_empty(attention: Attention) -> bool:
    """Whether a row may be all -inf, where float32 gives NaN and the guard puts 0."""
    return attention.guard is not None and any(map(_holds_infinity, attention.terms))


class ScoresWriter:
    """Writes the scores of the attentions of one model; masks that several share are written once.

    Attributes:
        made: The values made, in order; whoever uses the writer inserts their producers.
    """

    def __init__(self, editor: Editor, constants: Constants) -> None:
        self.made: list[ir.Value] = []
        self._editor = editor
        self._constants = constants
        self._masks: dict[tuple[ir.Value, bool], ir.Value] = {}

    def write(self, attention: Attention, q: Operand, k: Operand) -> ir.Value:
        """Write the scores of one attention in units; return them, float32."""
        scores = attention.scores.outputs[0]
        zeros = [self._zero(x) for x in (q, k)]
        acc = self._node("MatMulInteger", [q.codes, k.codes, *zeros], scores, ir.DataType.INT32)
        to = ir.Attr("to", ir.AttributeType.INT, ir.DataType.FLOAT.value)
        x = self._node("Cast", [acc], scores, attributes=[to])
        terms = {term.node: term for term in attention.terms}
        scale = float(q.qparams.scale) * float(k.qparams.scale)
        for node in attention.chain:
            output = node.outputs[0]
            if node in terms:
                term = terms[node]
                x = self._node("Add", [x, self._added(term, scale * term.factor)], output)
            elif node.op_type not in ("Mul", "Div", "Max"):  # these scale, or limit nothing
                x = self._node(
                    node.op_type, [x, *node.inputs[1:]], output, attributes=node.attributes.values()
                )
        return x

    def _zero(self, x: Operand) -> ir.Value:
        zero_point = x.qparams.zero_point.astype(x.qparams.qtype.dtype)
        return self._constants(f"{x.codes.name}_zero_point", zero_point)

    def _added(self, term: Term, unit: float) -> ir.Value:
        """Return what `term` adds to scores of this unit."""
        if term.kind == "bias":
            step = self._constants("bias_unit", np.float32(unit))
            units = self._node("Div", [term.value, step], term.value)
            return self._node("Max", [units, self._number(EMPTY)], term.value)
        if term.kind == "mask" and _is_ready(term.value):
            return term.value
        key = term.value, term.keeps
        if key not in self._masks:
            self._masks[key] = self._mask(term)
        return self._masks[key]

    def _mask(self, term: Term) -> ir.Value:
        """Return 0 where `term` keeps a score, `EMPTY` where it does not."""
        condition, keeps = term.value, term.keeps
        if term.kind == "mask":
            limit = self._number(MASKED)
            condition = self._node("LessOrEqual", [term.value, limit], term.value, ir.DataType.BOOL)
            keeps = False
        choices = [self._number(0.0), self._number(EMPTY)]
        return self._node("Where", [condition, *choices[:: 1 if keeps else -1]], term.value)

    def _number(self, number: float) -> ir.Value:
        return self._constants("number", np.float32(number))

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        dtype: ir.DataType = ir.DataType.FLOAT,
        attributes: Iterable[ir.Attr] = (),
    ) -> ir.Value:
        """Write a node of one output with the shape of `like`, whose name its own starts with."""
        value = self._editor.node(
            op_type,
            inputs,
            f"{like.name}_{op_type.lower()}",
            attributes={attribute.name: attribute for attribute in attributes},
            dtype=dtype,
            shape=like.shape,
        )
        self.made.append(value)
        return value


def _is_ready(mask: ir.Value) -> bool:
    """Whether all that `mask` holds is 0, or so low that it is `EMPTY` in any unit; no -inf."""
    numbers = possible_values(mask)
    return numbers is not None and all(n == 0 or _MOST_NEGATIVE <= n <= EMPTY for n in numbers)


def _holds_infinity(term: Term) -> bool:
    sources = [term.value] if term.kind != "choice" else list(term.node.inputs[1:])
    known = [possible_values(v) for v in sources]
    numbers = frozenset[float]().union(*(n for n in known if n is not None))
    unknown_bias = term.kind == "bias" and None in known
    return unknown_bias or -math.inf in numbers
