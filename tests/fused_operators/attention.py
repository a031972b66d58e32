"""Attention of ai.onnx: heads, grouped keys, caches, masks, windows."""

from typing import Any

import numpy as np

from tests.fused_operators.row import Array, B, P, Row, S, T, real

N, K, H, W = 9, 3, 4, 8  # heads of queries, of keys; channels of a head of keys, of values


def heads(count: int, length: int, size: int, seed: int = 0) -> Array:
    return real(B, count, length, size, seed=seed)


def flat(count: int, length: int, size: int, seed: int = 0) -> Array:
    return real(B, length, count * size, seed=seed)


QKV = {"q": heads(K, S, H), "k": heads(K, T, H, 1), "v": heads(K, T, W, 2)}
SELF = {"q": heads(K, S, H), "k": heads(K, S, H, 1), "v": heads(K, S, W, 2)}
GROUPED = {"q": heads(N, S, H), "k": heads(K, T, H, 1), "v": heads(K, T, W, 2)}
FLAT = {"q": flat(N, S, H), "k": flat(K, T, H, 1), "v": flat(K, T, W, 2)}
COUNTS = {"q_num_heads": N, "kv_num_heads": K}
CACHE = {"pk": heads(K, P, H, 3), "pv": heads(K, P, W, 4)}
FLOATS = {"mask": real(S, T)}
NO_MASK: dict[str, Array | None] = {"mask": None}
TRUTH = {"mask": np.random.default_rng(3).random((B, 1, S, T)) < 0.6}
EMPTY_ROWS = {"mask": np.array([1, 0, 1, 0, 1], bool)[:, None] & TRUTH["mask"]}
ALL = ("y", "present_k", "present_v", "scores")


def attention(
    rule: str, inputs: Any, opset: int = 23, outputs: Any = ("y",), **attributes: Any
) -> Row:
    reference = opset == 25  # ONNX Runtime 1.31 has no windows and no short masks
    return Row(rule, "Attention", inputs, attributes, "", opset, outputs, reference=reference)


ATTENTIONS = [
    attention("plain", QKV),
    attention("grouped", GROUPED),
    attention("one head of keys", GROUPED | {"k": heads(1, T, H), "v": heads(1, T, W)}),
    attention("flat", FLAT, **COUNTS),
    attention("scaled", QKV, scale=0.125),
    attention("causal", SELF, is_causal=1),
    attention("causal, more keys", QKV, is_causal=1),
    attention("causal, flat", FLAT, is_causal=1, **COUNTS),
    attention("capped", QKV, softcap=0.5),
    attention("capped and causal", SELF, softcap=0.5, is_causal=1),
    attention("float mask", QKV | FLOATS),
    attention("float mask of heads", QKV | {"mask": real(B, K, S, T)}),
    attention("float mask, causal", QKV | FLOATS, is_causal=1),
    attention("truth mask", QKV | TRUTH),
    attention("truth mask, grouped", GROUPED | TRUTH),
    attention("truth mask, causal", QKV | TRUTH, is_causal=1),
    attention("queries without keys", QKV | EMPTY_ROWS),
    attention("probabilities of queries without keys", QKV | EMPTY_ROWS, outputs=ALL,
              qk_matmul_output_mode=3),
    attention("cache", QKV | NO_MASK | CACHE, outputs=ALL[:3]),
    attention("cache, causal", QKV | NO_MASK | CACHE, outputs=ALL[:3], is_causal=1),
    attention("cache, flat, causal", FLAT | NO_MASK | CACHE, outputs=ALL[:3], is_causal=1,
              **COUNTS),
    attention("cache and mask", QKV | {"mask": real(S, P + T)} | CACHE, outputs=ALL[:3]),
    attention("present alone", QKV, outputs=ALL[:3]),
    attention("scores", QKV | TRUTH, outputs=ALL),
    attention("capped scores", QKV | TRUTH, outputs=ALL, softcap=2.0, qk_matmul_output_mode=1),
    attention("unmasked scores", QKV, outputs=ALL, softcap=2.0, qk_matmul_output_mode=2),
    attention("probabilities", QKV | TRUTH, outputs=ALL, qk_matmul_output_mode=3),
    attention("opset 24", QKV | TRUTH, 24, is_causal=1),
    attention("lengths", QKV | NO_MASK | {"pk": None, "pv": None, "n": np.array([3, 7])}, 24),
    attention("lengths, causal", QKV | NO_MASK | {"pk": None, "pv": None, "n": np.array([6, 7])},
              24, is_causal=1),
    attention("short lengths, causal",
              QKV | NO_MASK | {"pk": None, "pv": None, "n": np.array([3, 7])}, 24, is_causal=1),
    attention("window", QKV, 25, left_window_size=1, right_window_size=2),
    attention("window, causal, cache", QKV | NO_MASK | CACHE, 25, ALL[:3], left_window_size=3,
              is_causal=1),
]  # fmt: skip

# A mask that is shorter than the keys forbids the rest; both lengths have to be known.
SHORT_MASKS = [
    attention("short float mask", QKV | {"mask": real(S, 4)}, 25),
    attention("short truth mask", QKV | {"mask": real(S, 4) < 1}, 25),
    attention("short mask, cache", QKV | {"mask": real(S, 4)} | CACHE, 25, outputs=ALL[:3]),
]
