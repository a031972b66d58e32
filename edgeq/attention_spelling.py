"""Attention in the spelling that the passes read, whatever operator it comes from.

    s = Mul(MatMul(q, Transpose(k)), scale)    q [B, N, S, H], k [B, N, T, H], v [B, N, T, W]
    s = Mul(Tanh(Div(s, cap)), cap)            where the scores are capped
    s = Add(s, bias)                           where there is a bias, which may hold large negatives
    s = Where(allowed, s, lowest)              where a mask forbids keys
    y = MatMul(Softmax(s), v)
    y = Where(any(allowed), y, 0)              where a query may have no key at all

Vaswani et al., Attention Is All You Need, 2017, section 3.2.1. Operators scale q and k by the root
of the scale each; the scores then are the same up to the rounding of float32.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant
from edgeq.writing import Writer

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Masking:
    """Which keys a query sees.

    Attributes:
        allowed: bool, broadcastable to [B, N, S, T]; None where nothing is forbidden.
        may_be_empty: Whether a query may have no key; its result is 0 then.
        bias: float32, broadcastable to [B, N, S, T], added to the scores; None for 0.
    """

    allowed: ir.Value | None = None
    may_be_empty: bool = False
    bias: ir.Value | None = None


@dataclass(frozen=True)
class Stages:
    """The values of one attention: scaled scores, then capped, probabilities, the result.

    A query without keys has probabilities 0 and the result 0.
    """

    scores: ir.Value
    capped: ir.Value
    probabilities: ir.Value
    output: ir.Value


def write_attention(
    write: Writer,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    *,
    scale: float,
    masking: Masking,
    cap: float = 0.0,
) -> Stages:
    """Write one attention.

    Args:
        write: Writes the nodes.
        q: [B, N, S, H].
        k: [B, N, T, H].
        v: [B, N, T, W].
        scale: What the scores are multiplied by.
        masking: Which keys a query sees.
        cap: Scores become `cap * tanh(score / cap)` before they are masked; 0 leaves them.
    """
    keys = write("Transpose", k, perm=[0, 1, 3, 2])
    scores = write("MatMul", q, keys)
    if scale != 1:
        scores = write("Mul", scores, write.number(scale))
    capped = scores
    if cap:
        limit = write.number(cap)
        capped = write("Mul", write("Tanh", write("Div", scores, limit)), limit)
    masked = capped
    if masking.bias is not None:
        masked = write("Add", masked, masking.bias)
    if masking.allowed is not None:
        masked = write("Where", masking.allowed, masked, write.number(LOWEST))
    probabilities = write("Softmax", masked, axis=-1)
    output = write("MatMul", probabilities, v)
    if masking.allowed is not None and masking.may_be_empty:
        # Behind the product, so that nothing stands between it and the Softmax.
        some, zero = _any(write, masking.allowed), write.number(0)
        output = write("Where", some, output, zero)
        probabilities = write("Where", some, probabilities, zero)
    return Stages(scores, capped, probabilities, output)


def _any(write: Writer, allowed: ir.Value) -> ir.Value:
    """Return whether each row of a mask holds a True, as [..., 1]."""
    numbers = write("Cast", allowed, to=int(ir.DataType.UINT8))
    most = write("ReduceMax", numbers, write.integers(-1), keepdims=1)
    return write("Cast", most, to=int(ir.DataType.BOOL))


def never_empty(mask: ir.Value) -> bool:
    """Whether each row of `mask` is known to hold a True."""
    array = constant(mask)
    return array is not None and bool(array.any(axis=-1).all())


def split_heads(write: Writer, x: ir.Value, heads: int, width: int | None) -> ir.Value:
    """Turn [B, S, width] into [B, heads, S, width / heads]; `width` may be unknown."""
    size = -1 if width is None else width // heads
    apart = write("Reshape", x, write.integers(0, 0, heads, size))
    return write("Transpose", apart, perm=[0, 2, 1, 3])


def join_heads(write: Writer, x: ir.Value, width: int | None) -> ir.Value:
    """Turn [B, N, S, W] into [B, S, width]; `width`, which is N * W, may be unknown."""
    shape = write.integers(0, 0, -1 if width is None else width)
    return write("Reshape", write("Transpose", x, perm=[0, 2, 1, 3]), shape)


def repeat_heads(write: Writer, x: ir.Value, heads: int, times: int) -> ir.Value:
    """Let each of `heads` heads, axis 1, serve `times` neighbouring heads of the queries."""
    if times == 1:
        return x
    return write("Gather", x, write.constant(np.arange(heads * times) // times), axis=1)
