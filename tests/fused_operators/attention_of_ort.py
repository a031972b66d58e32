"""Attention of com.microsoft: projections, packed inputs, padding, caches."""

import itertools
from typing import Any

import numpy as np

from tests.fused_operators.attention import H, K, W, flat, heads
from tests.fused_operators.row import Array, B, P, Row, S, T, real

Q, KEYS, VALUES = flat(K, S, H), flat(K, T, H, 1), flat(K, T, W, 2)
MULTI = {"q": Q, "k": KEYS, "v": VALUES}
BIAS = {"b": real(K * (2 * H + W))}
NONE = {"b": None}
PADDING = np.array([[1] * 4 + [0] * 3, [1] * 7], np.int32)
PRESENT = ("y", "pk1", "pv1")
OLD = {"pk": heads(K, P, H, 3), "pv": heads(K, P, H, 4)}
EVEN = {"q": Q, "k": flat(K, S, H, 1), "v": flat(K, S, H, 2)}
MASKS = {"b": None, "mask": None, "bias": None}


def multi(rule: str, inputs: Any, outputs: Any = ("y",), **attributes: Any) -> Row:
    return Row(f"MultiHeadAttention, {rule}", "MultiHeadAttention", inputs,
               {"num_heads": K} | attributes, outputs=outputs)  # fmt: skip


def packed_oracle(q: Array, packed: Array) -> Array:
    k, v = packed[:, :, :, 0], packed[:, :, :, 1]
    q = q.reshape(B, S, K, H)
    scores = np.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(H)
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return np.asarray(np.einsum("bnst,btnh->bsnh", p, v).reshape(B, S, K * H))


MULTI_HEAD = [
    multi("plain", MULTI),
    multi("biases", MULTI | BIAS),
    multi("scaled", MULTI, scale=0.125),
    multi("padded keys", MULTI | NONE | {"mask": PADDING}),
    multi("padded keys by query", MULTI | NONE | {"mask": np.broadcast_to(
        PADDING[:, None], (B, S, T)).copy()}),
    multi("lengths of keys", MULTI | NONE | {"mask": np.array([4, 7], np.int32)}),
    multi("bias of scores", MULTI | BIAS | {"mask": None, "bias": real(B, K, S, T)}),
    multi("bias of scores, one head", MULTI | NONE | {"mask": None, "bias": real(1, 1, S, T)}),
    multi("causal", {"q": Q, "k": flat(K, S, H, 1), "v": flat(K, S, W, 2)}, unidirectional=1),
    multi("keys by head", {"q": Q, "k": heads(K, T, H, 1), "v": heads(K, T, H, 2)}),
    multi("cache", EVEN | MASKS | OLD, PRESENT),
    multi("cache, causal", EVEN | MASKS | OLD, PRESENT, unidirectional=1),
    Row("MultiHeadAttention, packed keys and values", "MultiHeadAttention",
        {"q": Q, "packed": real(B, T, K, 2, H)}, {"num_heads": K}, oracle=packed_oracle),
]  # fmt: skip

MODEL, HEADS = 12, 3
PROJECTED = {"x": real(B, S, MODEL), "w": real(MODEL, 3 * MODEL), "b": real(3 * MODEL)}
FIXED = ("w", "b")
TOKENS = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)


def projected(rule: str, inputs: Any = PROJECTED, outputs: Any = ("y",), **attributes: Any) -> Row:
    return Row(f"Attention, {rule}", "Attention", inputs, {"num_heads": HEADS} | attributes,
               outputs=outputs, constants=FIXED)  # fmt: skip


PAST = {"past": real(2, B, HEADS, P, MODEL // HEADS)}
OF_ORT = [
    projected("plain"),
    projected("causal", unidirectional=1),
    projected("padded", PROJECTED | {"mask": TOKENS}),
    projected("padded and causal", PROJECTED | {"mask": TOKENS}, unidirectional=1),
    projected("padded by query", PROJECTED | {"mask": np.repeat(TOKENS[:, None], S, 1)}),
    projected("lengths", PROJECTED | {"mask": np.array([3, 5], np.int32)}),
    projected("cache", PROJECTED | {"mask": None} | PAST, ("y", "present")),
    projected("cache, causal", PROJECTED | {"mask": None} | PAST, ("y", "present"),
              unidirectional=1),
    projected("cache, padded", PROJECTED
              | {"mask": np.hstack([np.ones((B, P), np.int32), TOKENS])} | PAST,
              ("y", "present"), unidirectional=1),
    projected("bias of scores", PROJECTED | {"mask": None, "past": None}
              | {"bias": real(B, HEADS, S, S)}),
    projected("wider values", PROJECTED | {"w": real(MODEL, 48), "b": real(48)},
              qkv_hidden_sizes=[12, 12, 24], scale=0.25),
]  # fmt: skip


def blocks(*qkv: Array, starts: Array, count: int) -> Array:
    """Attention within each sequence of a row of tokens."""
    out = np.zeros((len(qkv[0]), qkv[2].shape[1]))
    for low, high in itertools.pairwise(starts):
        parts = (a[low:high].reshape(high - low, count, -1) for a in qkv)
        qs, ks, vs = (np.swapaxes(a, 0, 1).astype(np.float64) for a in parts)
        scores = qs @ np.swapaxes(ks, 1, 2) / np.sqrt(qs.shape[-1])
        p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        out[low:high] = np.swapaxes(p @ vs, 0, 1).reshape(high - low, -1)
    return out


STARTS = np.array([0, 3, 7], np.int32)
OFFSETS = np.array([[0, 1, 2, 7], [3, 4, 5, 6]], np.int32)
PACKED = [
    Row("PackedMultiHeadAttention", "PackedMultiHeadAttention",
        {"q": real(T, 12), "k": real(T, 12, seed=1), "v": real(T, 24, seed=2), "b": real(48),
         "offsets": OFFSETS, "starts": STARTS}, {"num_heads": 3},
        oracle=lambda q, k, v, b, offsets, starts: blocks(
            q + b[:12], k + b[12:24], v + b[24:], starts=starts, count=3)),
    Row("PackedAttention", "PackedAttention",
        {"x": real(T, 12), "w": real(12, 36), "b": real(36), "offsets": OFFSETS,
         "starts": STARTS}, {"num_heads": 3}, constants=FIXED,
        oracle=lambda x, w, b, offsets, starts: blocks(
            *np.hsplit(x @ w + b, [12, 24]), starts=starts, count=3)),
]  # fmt: skip
