"""Attention of com.microsoft: MultiHeadAttention, and Attention, which holds the projections too.

before:  y = com.microsoft.Attention <num_heads = 12, unidirectional = 1> (x, w, b, mask)
after:   q, k, v = MatMul(x, part of w) + part of b, each with a range of its own
         the spelling of edgeq.attention_spelling, Reshape and Transpose around it

The operators add `mask_filter_value`, -10000 by default, to scores of masked keys; written out
these are the lowest float32, and give the same 0 behind the Softmax. A query all of whose keys are
padding gets the mean of the values instead of an average by scores; it is padding itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeq.attention_masks import causal, every, first_keys
from edgeq.attention_spelling import Masking, join_heads, split_heads, write_attention
from edgeq.dims import same_dim
from edgeq.graph import float_attribute, int_attribute, ints_attribute
from edgeq.writing import Results, ShapeUnknown, Writer

IN_PLACE = (
    "it writes keys and values into a buffer that is its input too",
    "export the model without a cache (use_cache=False), or with caches that are concatenated",
)


@dataclass(frozen=True)
class _Heads:
    """What attends to what.

    Attributes:
        q: Queries, [B, N, S, size].
        k: Keys, [B, N, T, size].
        v: Values, [B, N, T, width / N].
        size: Channels of a head of queries.
        width: Channels of all values.
    """

    q: ir.Value
    k: ir.Value
    v: ir.Value
    size: int
    width: int

    def behind(self, write: Writer, past: Sequence[ir.Value | None]) -> "_Heads":
        """Return the same with the keys and values of a cache in front."""
        k, v = (
            fresh if cached is None else write("Concat", cached, fresh, axis=2)
            for cached, fresh in zip(past, (self.k, self.v), strict=True)
        )
        return replace(self, k=k, v=v)


def attention_of_ort(write: Writer) -> Results:
    """Write one Attention of com.microsoft."""
    node, x, past = write.node, write.required(0), write.input(4)
    shared = int_attribute(node, "past_present_share_buffer", 0)
    if shared or write.input(6) is not None:
        raise write.refusal(*IN_PLACE)
    if int_attribute(node, "do_rotary", 0):
        way_out = "export the model with RotaryEmbedding in front of MultiHeadAttention"
        raise write.refusal("it rotates queries and keys itself", way_out)
    queries = write.length(x, 1)
    before = None if past is None else write.length(past, 3)
    masking = _masking(write, queries, queries, before, write.input(3), write.input(5))
    caches = (None, None) if past is None else [write.take(past, i, 0) for i in (0, 1)]
    heads = _split(write, *_projections(write)).behind(write, caches)
    first = write.integers(0)
    present = write("Concat", *(write("Unsqueeze", h, first) for h in (heads.k, heads.v)), axis=0)
    return [_attend(write, heads, masking), present]


def multi_head_attention(write: Writer) -> Results:
    """Write one MultiHeadAttention."""
    if write.input(8) is not None or write.input(9) is not None:
        raise write.refusal(*IN_PLACE)
    query, past = write.required(0), (write.input(6), write.input(7))
    source = write.input(1) or query
    fresh = write.length(source, 2 if write.ndim(source) == 4 else 1)
    before = None if past[0] is None else write.length(past[0], 2)
    queries = write.length(query, 1)
    masking = _masking(write, queries, fresh, before, write.input(4), write.input(5))
    heads = _heads(write).behind(write, past)
    return [_attend(write, heads, masking), heads.k, heads.v]


def packed_multi_head_attention(write: Writer) -> Results:
    """Write one PackedMultiHeadAttention: one row of tokens, each seeing those of its sequence."""
    query = write.required(0)
    if write.ndim(query) != 2 or write.input(1) is None or write.input(6) is not None:
        way_out = "save the model without packing"
        raise write.refusal("its inputs are packed further, or it has a bias of scores", way_out)
    parts = [write.required(index) for index in range(3)]
    widths = [write.dim(part, 1) for part in parts]
    return [_packed(write, _biased(write, parts, write.input(3), widths), widths, 5)]


def packed_attention(write: Writer) -> Results:
    """Write one PackedAttention, which holds the projections too."""
    if write.input(5) is not None:
        raise write.refusal("it has a bias of scores", "save the model without packing")
    return [_packed(write, *_projections(write), 4)]


# -- parts -----------------------------------------------------------------------------------------


def _number_of_heads(write: Writer) -> int:
    heads = int_attribute(write.node, "num_heads", 0)
    if not heads:
        raise write.refusal("num_heads is missing", "export the model anew")
    return heads


def _projections(write: Writer) -> tuple[list[ir.Value], list[int]]:
    """Return queries, keys and values of the input, and how many channels they have."""
    x, weight = write.required(0), write.required(1)
    third = write.dim(weight, 1) // 3
    widths = list(ints_attribute(write.node, "qkv_hidden_sizes", [third] * 3))
    parts = [
        write("MatMul", x, write.slice(weight, end - width, end))
        for width, end in zip(widths, np.cumsum(widths).tolist(), strict=True)
    ]
    return _biased(write, parts, write.input(2), widths), widths


def _biased(
    write: Writer, parts: list[ir.Value], bias: ir.Value | None, widths: list[int]
) -> list[ir.Value]:
    """Add to each part its piece of the bias."""
    if bias is None:
        return parts
    return [
        write("Add", part, write.slice(bias, end - width, end))
        for part, width, end in zip(parts, widths, np.cumsum(widths).tolist(), strict=True)
    ]


def _split(write: Writer, parts: list[ir.Value], widths: list[int]) -> _Heads:
    """Divide the channels of queries, keys and values among the heads."""
    count = _number_of_heads(write)
    pairs = zip(parts, widths, strict=True)
    q, k, v = (split_heads(write, part, count, width) for part, width in pairs)
    return _Heads(q, k, v, widths[0] // count, widths[2])


def _heads(write: Writer) -> _Heads:
    """Return queries, keys and values of MultiHeadAttention, however they are packed."""
    query, (key, value, bias) = write.required(0), (write.input(i) for i in range(1, 4))
    count = _number_of_heads(write)
    if write.ndim(query) == 5:  # [B, S, N, 3, H]
        if bias is not None:
            raise write.refusal("packed queries have a bias", "export the model anew")
        size = write.dim(query, -1)
        q, k, v = (_unpacked(write, query, index) for index in range(3))
        return _Heads(q, k, v, size, count * size)
    key, width = write.required(1), write.dim(query, -1)
    if value is not None and write.ndim(key) == 3:
        widths = [width, write.dim(key, -1), write.dim(value, -1)]
        return _split(write, _biased(write, [query, key, value], bias, widths), widths)
    (query,) = _biased(write, [query], bias, [width])
    q = split_heads(write, query, count, width)
    if value is None:  # [B, T, N, 2, H]
        k, v = (_unpacked(write, key, index) for index in range(2))
        return _Heads(q, k, v, width // count, width)
    return _Heads(q, key, value, width // count, count * write.dim(value, -1))  # [B, N, T, H]


def _unpacked(write: Writer, packed: ir.Value, index: int) -> ir.Value:
    """Return [B, N, S, H] from [B, S, N, parts, H]."""
    return write("Transpose", write.take(packed, index, 3), perm=[0, 2, 1, 3])


def _masking(
    write: Writer,
    queries: ir.Value,
    fresh: ir.Value,
    before: ir.Value | None,
    padding: ir.Value | None,
    bias: ir.Value | None,
) -> Masking:
    keys = fresh if before is None else write("Add", before, fresh)
    masks = []
    if int_attribute(write.node, "unidirectional", 0):
        masks.append(causal(write, queries, keys, before))
    if padding is not None:
        masks.append(_padding_mask(write, padding, keys))
    return Masking(every(write, masks), bias=bias)


def _padding_mask(write: Writer, padding: ir.Value, keys: ir.Value) -> ir.Value:
    ndim = write.ndim(padding)
    if ndim in (2, 3):  # [B, T], [B, S, T]
        inner = (1, 2) if ndim == 2 else (1,)
        kept = write("Cast", padding, to=int(ir.DataType.BOOL))
        return write("Unsqueeze", kept, write.integers(*inner))
    x, source = write.required(0), padding.producer()
    if ndim == 1 and source is not None and source.op_type == "ReduceSum":
        return first_keys(write, keys, padding)  # EmbedLayerNormalization counted them
    if ndim == 1 and padding.shape is not None:
        if x.shape is not None and same_dim(padding.shape[0], x.shape[0]):
            return first_keys(write, keys, padding)
        if x.shape is None or write.maybe_dim(padding, 0) is None:
            raise ShapeUnknown(f"the length of {padding.name}, which tells what it means,")
    raise write.refusal(
        "its mask is of a rare form",
        "export the model with a mask of shape [batch, keys] or [batch, queries, keys]",
    )


def _attend(write: Writer, heads: _Heads, masking: Masking) -> ir.Value:
    scale = float_attribute(write.node, "scale", 0.0) or heads.size**-0.5
    stages = write_attention(write, heads.q, heads.k, heads.v, scale=scale, masking=masking)
    return join_heads(write, stages.output, heads.width)


def _packed(write: Writer, parts: list[ir.Value], widths: list[int], starts: int) -> ir.Value:
    """Attend among the tokens of each sequence; input `starts` says where sequences begin."""
    every = write.positions(write.length(write.required(0), 0))
    tokens = write("Reshape", every, write.integers(-1, 1))
    limits = write("Cast", write.required(starts), to=int(ir.DataType.INT64))
    # A token's sequence is the number of starts at or before it.
    begun = write("Cast", write("GreaterOrEqual", tokens, limits), to=int(ir.DataType.INT64))
    sequence = write("ReduceSum", begun, write.integers(1), keepdims=1)
    row = write("Transpose", sequence, perm=[1, 0])
    masking = Masking(write("Equal", sequence, row))
    batch = write.integers(0)
    heads = _split(write, [write("Unsqueeze", part, batch) for part in parts], widths)
    return write("Squeeze", _attend(write, heads, masking), batch)
