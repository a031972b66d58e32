"""Attention of ai.onnx, opsets 23 to 25: heads, grouped keys, caches, masks, windows.

before:  y = Attention <q_num_heads = 8, kv_num_heads = 8, is_causal = 1> (q, k, v)
after:   the spelling of edgeq.attention_spelling, Reshape and Transpose around it

A query that a truth mask leaves no key gives 0, as the operator says. Where a float mask computed
at run time is -inf for all keys of a query, the result is not a number instead.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.attention_masks import causal, every, first_keys, window
from edgeq.attention_spelling import (
    LOWEST,
    Masking,
    join_heads,
    never_empty,
    repeat_heads,
    split_heads,
    write_attention,
)
from edgeq.graph import float_attribute, int_attribute
from edgeq.writing import Results, ShapeUnknown, Writer


@dataclass(frozen=True)
class _Block:
    """How queries and keys lie beside each other.

    Attributes:
        queries: How many, an int64 scalar.
        keys: How many, those of the cache included.
        offset: Keys before the first query; None for 0.
    """

    queries: ir.Value
    keys: ir.Value
    offset: ir.Value | None


def attention(write: Writer) -> Results:
    """Write one Attention of ai.onnx."""
    node, q = write.node, write.required(0)
    flat = write.ndim(q) == 3
    if flat:
        heads, key_heads = (int_attribute(node, n, 0) for n in ("q_num_heads", "kv_num_heads"))
        if not heads or not key_heads:
            raise write.refusal("q_num_heads or kv_num_heads is missing", "export the model anew")
    else:
        heads, key_heads = write.dim(q, 1), write.dim(write.required(1), 1)
    scale = float_attribute(node, "scale", 0.0)
    if not scale:
        scale = (write.dim(q, -1) // (heads if flat else 1)) ** -0.5
    masking = _masking(write, _block(write, flat))
    k, v = (_with_cache(write, index, flat, key_heads) for index in (1, 2))
    stages = write_attention(
        write,
        split_heads(write, q, heads, write.maybe_dim(q, -1)) if flat else q,
        repeat_heads(write, k, key_heads, heads // key_heads),
        repeat_heads(write, v, key_heads, heads // key_heads),
        scale=scale,
        masking=masking,
        cap=float_attribute(node, "softcap", 0.0),
    )
    output = stages.output
    if flat:
        width = write.maybe_dim(write.required(2), -1)
        output = join_heads(write, output, width and width // key_heads * heads)
    mode = int_attribute(node, "qk_matmul_output_mode", 0)
    if mode == 2 and write.is_read(3) and masking != Masking():
        way_out = "export the model without qk_matmul_output"
        raise write.refusal("its masked scores are read, which hold -inf", way_out)
    scores = (stages.scores, stages.capped, stages.capped, stages.probabilities)[mode]
    return [output, k, v, scores]


def _block(write: Writer, flat: bool) -> _Block:
    axis = 1 if flat else 2
    queries = write.length(write.required(0), axis)
    keys = write.length(write.required(1), axis)
    past, lengths = write.input(4), write.input(6)
    if past is not None:
        offset = write.length(past, 2)
        return _Block(queries, write("Add", offset, keys), offset)
    if lengths is None:
        return _Block(queries, keys, None)
    offset = write("Sub", write("Cast", lengths, to=int(ir.DataType.INT64)), queries)
    return _Block(queries, keys, write("Unsqueeze", offset, write.integers(1, 2, 3)))


def _with_cache(write: Writer, index: int, flat: bool, heads: int) -> ir.Value:
    """Return keys or values behind those of the cache, [B, N, T, H]."""
    x, past = write.required(index), write.input(3 + index)
    fresh = split_heads(write, x, heads, write.maybe_dim(x, -1)) if flat else x
    return fresh if past is None else write("Concat", past, fresh, axis=2)


def _masking(write: Writer, block: _Block) -> Masking:
    node, mask, lengths = write.node, write.input(3), write.input(6)
    masks: list[ir.Value] = []
    bias = None
    if int_attribute(node, "is_causal", 0):
        masks.append(causal(write, block.queries, block.keys, block.offset))
    sides = [int_attribute(node, f"{side}_window_size", -1) for side in ("left", "right")]
    windows = window(write, block.queries, block.keys, block.offset, *sides)
    masks += windows
    sure = lengths is None and not windows
    if lengths is not None:
        masks.append(first_keys(write, block.keys, lengths))
    if mask is not None and mask.dtype is None:
        raise ShapeUnknown(f"the type of {mask.name}")
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        sure = sure and never_empty(mask) and not masks
        masks.append(_padded(write, mask))
    elif mask is not None:
        bias = _padded(write, mask)
    return Masking(every(write, masks), may_be_empty=not sure, bias=bias)


def _padded(write: Writer, mask: ir.Value) -> ir.Value:
    """Let a mask that is shorter than the keys forbid the rest, where both lengths are known."""
    k, past = write.required(1), write.input(4)
    axis = 1 if write.ndim(k) == 3 else 2
    parts = [k.shape[axis] if k.shape is not None else None]
    if past is not None:
        parts.append(past.shape[2] if past.shape is not None else None)
    length = None if mask.shape is None or not len(mask.shape) else mask.shape[-1]
    numbers = [part for part in parts if isinstance(part, int)]
    if not isinstance(length, int) or len(numbers) < len(parts) or length in (1, sum(numbers)):
        return mask
    pads = [0] * (2 * write.ndim(mask))
    pads[-1] = sum(numbers) - length
    is_bool = mask.dtype == ir.DataType.BOOL
    return write("Pad", mask, write.integers(*pads), None if is_bool else write.number(LOWEST))
