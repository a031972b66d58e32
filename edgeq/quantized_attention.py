"""Attention between codes: which nodes read the codes of a softmax, and what a sample shows.

    p = codes of Softmax(scores)
    y = MatMul(DequantizeLinear(p), DequantizeLinear(v))
    y = Gemm(Reshape(DequantizeLinear(p)), DequantizeLinear(v))       where v is constant

`exact-softmax` notes what it makes the codes of: the distances of the scores to the largest of
their row, whose probabilities are those that nothing has rounded; the terms, integers, and their
sum.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.attention import MASKED, MOVES, Attention, Term, find_attentions
from edgeq.dims import same_dim
from edgeq.graph import consumers, int_attribute
from edgeq.qdq import REAL_NAME, LinearGroup, linear_group
from edgeq.roles import LINEAR
from edgeq.softmax_bias import Observed, softmax
from edgeq.softmax_form import DISTANCE, HIGHEST_CODE, HIGHEST_TERM, TERMS, TOTAL, UNIT

Values = Mapping[str, NDArray[Any]]
_ELEMENTS = 2**22  # of the probabilities that one sample shows: of more, rows are left out


@dataclass(frozen=True)
class Mask:
    """What hides elements of the scores.

    Attributes:
        term: In the float model.
        value: The floats, or the condition, in the quantized one.
    """

    term: Term
    value: ir.Value

    def keeps(self, array: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which elements it does not hide, where `array` is its value."""
        kept = array == self.term.keeps if self.term.kind == "choice" else array > MASKED
        return np.asarray(kept)


@dataclass(frozen=True, eq=False)
class QuantizedAttention:
    """A product of probabilities and values, both codes.

    Attributes:
        p: The codes of the probabilities.
        group: The product; its left operand is `p`, or the rows of `p` as one matrix.
        distance: How far each score lies from the largest of its row, in units.
        unit: What a distance of 1 stands for.
        terms: What the probabilities are in proportion to, integers held in float32.
        total: Their sum in each row.
        highest: The largest term: that of the largest of a row.
        highest_code: The largest code that there may be.
        heads: The size of the axis in front of rows and keys; 1 where it is not known.
        masks: What hides elements.
    """

    p: ir.Value
    group: LinearGroup
    distance: ir.Value
    unit: float
    terms: ir.Value
    total: ir.Value
    highest: int
    highest_code: int
    heads: int
    masks: tuple[Mask, ...]

    @property
    def name(self) -> str:
        """What a report calls it: the result's name in the float model."""
        y = self.group.y
        name = None if y is None else y.codes.metadata_props.get(REAL_NAME)
        return name or str(self.group.node.outputs[0].name)

    @property
    def row_unit(self) -> np.float32:
        """The terms that one code stands for, where codes count in parts of a row's largest."""
        return np.float32(self.highest / self.highest_code)

    @property
    def taps(self) -> list[str]:
        """The names of the values that `observe` needs."""
        values = [self.p, self.distance, self.terms, *(mask.value for mask in self.masks)]
        if self.group.w.array is None:
            values.append(self.group.w.codes)
        return [str(value.name) for value in values]

    def observe(self, values: Values) -> Observed:
        """Return what one sample shows, from the arrays of `taps`."""
        codes, distance = values[str(self.p.name)], values[str(self.distance.name)]
        kept: NDArray[np.bool_] | None = None
        for mask in self.masks:
            mine = mask.keeps(values[str(mask.value.name)])
            kept = mine if kept is None else kept & mine
        if kept is not None:
            kept = self._rows(np.broadcast_to(kept, codes.shape))
        rounded = self.group.x.qparams.dequantize(self._rows(codes)).astype(np.float64)
        ideal = softmax(self._rows(distance).astype(np.float64) * self.unit, kept)
        terms = self._rows(values[str(self.terms.name)])
        by_row = np.rint(terms / self.row_unit).astype(np.float64) * float(self.row_unit)
        by_row /= np.maximum(terms.sum(-1, keepdims=True, dtype=np.float64), 1)
        return Observed(ideal, rounded, by_row, self._v(values, codes.shape[:-2]), kept)

    def _rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array as (batch, heads, rows, keys), with the rows that are looked at."""
        some = slice(None, None, -(-array.size // _ELEMENTS) or 1)
        return array.reshape(-1, self.heads, *array.shape[-2:])[:, :, some]

    def _v(self, values: Values, lead: tuple[int, ...]) -> NDArray[np.float64]:
        w = self.group.w
        v = w.qparams.dequantize(values[str(w.codes.name)] if w.array is None else w.array)
        if self.group.node.op_type == "Gemm" and int_attribute(self.group.node, "transB", 0):
            v = v.T
        if v.ndim > 2:
            v = np.broadcast_to(v, (*lead, *v.shape[-2:])).reshape(-1, self.heads, *v.shape[-2:])
        return v.astype(np.float64, order="C")  # what BLAS multiplies fast


def find_quantized_attentions(model: ir.Model, reference: ir.Model) -> list[QuantizedAttention]:
    """Return the products with the codes of a softmax along the last axis, in graph order.

    What the terms of an attention hide is read in `reference`, the float model.
    """
    values = {str(v.name): v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    values |= {str(v.name): v for node in model.graph for v in node.outputs}
    attentions = {str(a.output.name): a for a in find_attentions(reference)}
    softmaxes = {str(n.outputs[0].name): n for n in reference.graph if n.op_type == "Softmax"}
    found = []
    for p in values.values():
        name = p.metadata_props.get(REAL_NAME, "")
        made_of = [values.get(p.metadata_props.get(key, "")) for key in (DISTANCE, TERMS, TOTAL)]
        distance, terms, total = made_of
        attention = attentions.get(name)
        if distance is None or terms is None or total is None:
            continue
        if p.shape is None or len(p.shape) < 2:
            continue
        masks = _masks(attention, p, values)
        if masks is None or (attention is None and not _is_unmasked(softmaxes.get(name))):
            continue
        size = p.shape[-3] if len(p.shape) > 2 else 1
        heads = size if isinstance(size, int) else 1
        found += [
            QuantizedAttention(
                p,
                group,
                distance,
                float(p.metadata_props[UNIT]),
                terms,
                total,
                int(p.metadata_props[HIGHEST_TERM]),
                int(p.metadata_props.get(HIGHEST_CODE, 255)),
                heads,
                masks,
            )
            for group in _products(p)
        ]
    return found


def _masks(
    attention: Attention | None, p: ir.Value, values: Mapping[str, ir.Value]
) -> tuple[Mask, ...] | None:
    """Return the masks of an attention; None where one of them has not the axes of `p`."""
    if attention is None or not attention.terms:
        return ()
    first = attention.chain.index(attention.terms[0].node)
    if any(node.op_type in MOVES - {"Identity"} for node in attention.chain[first:]):
        return None
    here = [values.get(str(term.value.name)) for term in attention.terms]
    found = [Mask(t, v) for t, v in zip(attention.terms, here, strict=True) if v is not None]
    return tuple(found) if len(found) == len(here) else None


def _is_unmasked(softmax_node: ir.Node | None) -> bool:
    """Whether scores go from a linear op to the Softmax, scaled at most."""
    value = None if softmax_node is None else softmax_node.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in LINEAR:
            return True
        if node.op_type not in MOVES | {"Mul", "Div"}:
            return False
        value = node.inputs[0]
    return False


def _products(p: ir.Value) -> Iterator[LinearGroup]:
    """Yield the products whose left operand is `p`, or `p` as a matrix of the same rows."""
    yield from _linear_readers(p, ("MatMul", "Gemm"))
    for node in consumers(p):
        if node.op_type == "Reshape" and _keeps_rows(node):
            yield from _linear_readers(node.outputs[0], ("Gemm",))


def _linear_readers(codes: ir.Value, op_types: tuple[str, ...]) -> Iterator[LinearGroup]:
    for real in consumers(codes):
        for node in consumers(real.outputs[0]) if real.op_type == "DequantizeLinear" else ():
            group = linear_group(node) if node.op_type in op_types else None
            if group is not None and group.x.codes is codes:
                yield group


def _keeps_rows(node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None or not len(output.shape):
        return False
    return same_dim(source.shape[-1], output.shape[-1])
