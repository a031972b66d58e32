"""RotaryEmbedding written as two products and a sum, over tables of cosines and sines.

before:  y = RotaryEmbedding(x, cos, sin, ids)
after:   y = Add(Mul(x, Gather([cos, cos], ids)), Mul(swapped, Gather([-sin, sin], ids)))

`swapped` is x with the two halves of each head exchanged, or neighbours where the rotation is
interleaved: a movement, so codes stay codes. The products and sums are those of the operator's
definition, and so are their roundings: a - b is a + (-b). Su et al., RoFormer, 2021, equation 34.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.graph import float_attribute, int_attribute
from edgeq.writing import Results, Writer


@dataclass(frozen=True)
class Rotation:
    """How to rotate.

    Attributes:
        cos: Cosines of half of the rotated channels: a table by position, or values by token.
        sin: The sines, likewise.
        ids: Positions, [batch, length]; None where cos and sin are by token.
        size: How many channels of a head are rotated.
        interleaved: Whether neighbours rotate, not halves.
    """

    cos: ir.Value
    sin: ir.Value
    ids: ir.Value | None
    size: int
    interleaved: bool


def rotary_embedding(write: Writer) -> Results:
    """RotaryEmbedding of ai.onnx."""
    cos, sin, ids = write.required(1), write.required(2), write.input(3)
    return [_rotated_heads(write, write.required(0), cos, sin, ids)]


def rotary_embedding_of_ort(write: Writer) -> Results:
    """RotaryEmbedding of com.microsoft, whose positions come first and may be one offset."""
    node, x, ids = write.node, write.required(0), write.required(1)
    if int_attribute(node, "is_packed_batching", 0) or float_attribute(node, "scale", 1.0) != 1:
        raise write.refusal("it is packed or scaled", "export the model with plain RotaryEmbedding")
    if write.ndim(ids) == 1:
        every = write.positions(write.length(x, write.ndim(x) - 2))
        ids = write("Unsqueeze", write("Add", every, ids), write.integers(0))
    return [_rotated_heads(write, x, write.required(2), write.required(3), ids)]


def _rotated_heads(
    write: Writer, x: ir.Value, cos: ir.Value, sin: ir.Value, ids: ir.Value | None
) -> ir.Value:
    """Rotate x of shape [batch, heads, length, size] or [batch, length, heads * size]."""
    node, ndim = write.node, write.ndim(x)
    heads = int_attribute(node, "num_heads", 0)
    size = int_attribute(node, "rotary_embedding_dim", 0) or 2 * write.dim(cos, -1)
    how = Rotation(cos, sin, ids, size, bool(int_attribute(node, "interleaved", 0)))
    if ndim == 4:
        return _rotated(write, x, how, width=write.dim(x, -1), axis=1)
    channels = write.dim(x, -1)
    width = channels // heads if heads else size
    apart = write("Reshape", x, write.integers(0, 0, channels // width, width))
    rotated = _rotated(write, apart, how, width=width, axis=2)
    return write("Reshape", rotated, write.integers(0, 0, channels))


def _rotated(write: Writer, x: ir.Value, how: Rotation, width: int, axis: int) -> ir.Value:
    """Rotate the first channels of x, whose heads lie along `axis` and have `width` channels."""
    part = x if how.size == width else write.slice(x, 0, how.size)
    cosines = _by_token(write, how, (how.cos, how.cos), axis)
    sines = _by_token(write, how, (write("Neg", how.sin), how.sin), axis)
    swapped = _swapped(write, part, how)
    result = write("Add", write("Mul", part, cosines), write("Mul", swapped, sines))
    if part is x:
        return result
    return write("Concat", result, write.slice(x, how.size, width), axis=-1)


def _by_token(
    write: Writer, how: Rotation, halves: tuple[ir.Value, ir.Value], axis: int
) -> ir.Value:
    """Return the factors of the channels, first for halves or neighbours, then for tokens."""
    if how.interleaved:
        columns = [write("Unsqueeze", half, write.integers(-1)) for half in halves]
        pairs = write("Concat", *columns, axis=-1)
        ndim = write.ndim(how.cos)
        table = write("Reshape", pairs, write.integers(*(0,) * (ndim - 1), how.size))
    else:
        table = write("Concat", *halves, axis=-1)
    if how.ids is not None:
        table = write("Gather", table, how.ids, axis=0)
    return write("Unsqueeze", table, write.integers(axis))


def _swapped(write: Writer, x: ir.Value, how: Rotation) -> ir.Value:
    """Return x, the halves of each head exchanged, or neighbours."""
    if not how.interleaved:
        half = how.size // 2
        return write("Concat", write.slice(x, half, how.size), write.slice(x, 0, half), axis=-1)
    pairs = write("Reshape", x, write.integers(0, 0, 0, how.size // 2, 2))
    turned = write("Concat", write.slice(pairs, 1, 2), write.slice(pairs, 0, 1), axis=-1)
    return write("Reshape", turned, write.integers(0, 0, 0, how.size))
