"""What the queries of an attention see: the sum of the values, and how many keys.

Without a mask every query sees all keys: ReduceSum. Under a causal mask it sees those up to its
own: CumSum, a small part of the work of a product. Under any other mask MatMulInteger adds up what
the mask keeps.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.attention import MASKED
from edgeq.causal_masks import is_causal
from edgeq.chain import Chain
from edgeq.dims import Dim, same_dim
from edgeq.numerics.affine import QParams
from edgeq.quantized_attention import Mask, QuantizedAttention

INT32, FLOAT = ir.DataType.INT32, ir.DataType.FLOAT


class SeenValues:
    """Writes them; the attentions of one model share their masks."""

    def __init__(self) -> None:
        self._masks: dict[tuple[ir.Value, ...], ir.Value] = {}
        self._counts: dict[tuple[ir.Value, ...], ir.Value] = {}

    def sum(self, write: Chain, attention: QuantizedAttention) -> ir.Value:
        """Return the sum of the values that each query sees, in units, int32."""
        v, masks = attention.group.w, attention.masks
        assert v.codes.shape is not None
        if masks and not all(is_causal(mask.term, attention.p) for mask in masks):
            zeros = write.constant(np.uint8(0)), write.constant(stored_zero_point(v.qparams))
            shape = attention.group.node.outputs[0].shape
            kept = self._mask(write, masks)
            return write("MatMulInteger", kept, v.codes, *zeros, shape=shape, dtype=INT32)
        units = write.cast(v.codes, INT32)
        if v.qparams.zero_point.any():
            units = write("Sub", units, write.constant(v.qparams.zero_point.astype(np.int32)))
        if masks:
            return write("CumSum", units, write.constant(np.int64(-2)))
        sizes = [*v.codes.shape[:-2], 1, v.codes.shape[-1]]
        return write("ReduceSum", units, write.constant(np.array([-2])), shape=sizes, keepdims=1)

    def count(self, write: Chain, attention: QuantizedAttention) -> ir.Value:
        """Return how many keys each query sees, at least 1, float32: (rows, 1), or one number."""
        masks, terms = attention.masks, attention.terms
        if not masks:
            length = None if terms.shape is None else terms.shape[-1]
            if isinstance(length, int):
                return write.constant(np.float32(length))
            shape = write("Shape", terms, start=-1, shape=(1,), dtype=ir.DataType.INT64)
            return write.cast(shape, FLOAT)
        key = tuple(mask.value for mask in masks)
        if key not in self._counts:
            kept = write.cast(self._mask(write, masks), FLOAT)
            sizes = None if kept.shape is None else [*kept.shape[:-1], 1]
            count = write("ReduceSum", kept, write.constant(np.array([-1])), keepdims=1)
            count.shape = None if sizes is None else ir.Shape(sizes)
            self._counts[key] = write("Max", count, write.constant(np.float32(1)))
        return self._counts[key]

    def _mask(self, write: Chain, masks: Sequence[Mask]) -> ir.Value:
        """Return 1 for what no mask hides, 0 for the rest, uint8."""
        key = tuple(mask.value for mask in masks)
        if key not in self._masks:
            first, *others = (_kept(write, mask) for mask in masks)
            for other in others:
                shape = _common(first, other)
                first = write("And", first, other)
                first.shape = shape
            self._masks[key] = write.cast(first, ir.DataType.UINT8)
        return self._masks[key]


def stored_zero_point(qparams: QParams) -> NDArray[Any]:
    """Return the zero point in the type of the codes."""
    return np.asarray(qparams.zero_point.astype(qparams.qtype.dtype))


def _kept(write: Chain, mask: Mask) -> ir.Value:
    """Return whether `mask` leaves an element, bool."""
    if mask.term.kind == "choice":
        return mask.value if mask.term.keeps else write("Not", mask.value)
    limit = write.constant(np.float32(MASKED))
    return write("Greater", mask.value, limit, dtype=ir.DataType.BOOL)


def _common(a: ir.Value, b: ir.Value) -> ir.Shape | None:
    """Return the shape of what two values are broadcast to; None where it is not known."""
    if a.shape is None or b.shape is None:
        return None
    pairs: list[tuple[Dim, Dim]] = list(
        zip_longest(reversed(a.shape), reversed(b.shape), fillvalue=1)
    )
    if any(x != 1 and y != 1 and not same_dim(x, y) for x, y in pairs):
        return None
    return ir.Shape([y if x == 1 else x for x, y in reversed(pairs)])
