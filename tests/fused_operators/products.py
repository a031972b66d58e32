"""Activations and products with what stands beside them."""

from typing import Any

import numpy as np

from tests.fused_operators.row import B, Row, S, T, gelu, real, silu, tanh_gelu

X = real(B, S, 8)
ACTIVATIONS = [
    Row("Gelu", "Gelu", {"x": 3 * X}),
    Row("BiasGelu", "BiasGelu", {"x": 3 * X, "b": real(8)}),
    Row("FastGelu", "FastGelu", {"x": 3 * X}),
    Row("FastGelu with bias", "FastGelu", {"x": 3 * X, "b": real(8)}),
    Row("QuickGelu", "QuickGelu", {"x": X}),
    Row("QuickGelu, alpha 1", "QuickGelu", {"x": X}, {"alpha": 1.0}),
    Row("Swish", "Swish", {"x": X}, {"alpha": 1.5}, "", 24, reference=True),
    Row("Swish, alpha 1", "Swish", {"x": X}, {}, "", 24, reference=True),
    Row("SwiGLU", "SwiGLU", {"a": X, "b": real(B, S, 8, seed=1)}, {}, "", 28,
        oracle=lambda a, b: silu(a) * b),
    Row("ScaledSiLU", "ScaledSiLU", {"x": X}, {"alpha": 0.5}),
    Row("BiasSplitGelu", "BiasSplitGelu", {"x": X, "b": real(8)}, constants=("b",),
        oracle=lambda x, b: (x + b)[..., :4] * gelu((x + b)[..., 4:])),
    Row("BiasAdd", "BiasAdd", {"x": X, "b": real(8), "s": X}, oracle=lambda x, b, s: x + b + s),
    Row("GatedAdd", "GatedAdd", {"x": X, "y0": real(B, S, 8, seed=1), "g": real(B, S, 1)}),
    Row("BiasDropout", "BiasDropout", {"x": X, "b": real(8), "r": X},
        oracle=lambda x, b, r: x + b + r),
    Row("BiasSoftmax", "BiasSoftmax", {"x": X, "b": real(B, 1, 8)},
        {"axis": 2, "is_inner_broadcast": 1},
        oracle=lambda x, b: np.exp(x + b) / np.exp(x + b).sum(-1, keepdims=True)),
]  # fmt: skip

MATRICES = {
    "a": real(B, S, 8),
    "aT": real(B, 8, S),
    "b": real(B, 8, T),
    "bT": real(B, T, 8),
    "batch_a": real(S, B, 8),
    "batch_aT": real(8, B, S),
    "batch_b": real(8, B, T),
}


def product(rule: str, a: str, b: str, op_type: str = "FusedMatMul", **attributes: Any) -> Row:
    return Row(rule, op_type, {"a": MATRICES[a], "b": MATRICES[b]}, attributes)


IMAGE, FILTER = real(1, 2, 6, 6), real(4, 2, 3, 3)
_PRODUCTS = [
    product("FusedMatMul", "a", "b", alpha=0.25),
    product("FusedMatMul, transA", "aT", "b", transA=1),
    product("FusedMatMul, transB", "a", "bT", transB=1),
    product("FusedMatMul, both", "aT", "bT", transA=1, transB=1, alpha=3.0),
    product("FusedMatMul, batch of a", "batch_a", "b", transBatchA=1),
    product("FusedMatMul, batch of both", "batch_a", "batch_b", transBatchA=1, transBatchB=1),
    product("FusedMatMul, a turned twice", "batch_aT", "b", transBatchA=1, transA=1),
    product("TransposeMatMul", "aT", "b", "TransposeMatMul", transA=1, alpha=0.5),
    Row("FusedMatMul, vector", "FusedMatMul", {"a": real(8), "b": MATRICES["b"]}, {"transA": 1}),
    *(
        Row(f"FusedConv, {name}", "FusedConv", {"x": IMAGE, "w": FILTER, "b": real(4)},
            {"activation": name, "pads": [1, 1, 1, 1]} | more)
        for name, more in (
            ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}),
            ("LeakyRelu", {"activation_params": [0.125]}),
            ("Clip", {"activation_params": [-0.5, 0.75]}),
            ("HardSigmoid", {"activation_params": [0.25, 0.5]}),
        )
    ),
    Row("FusedConv with a sum", "FusedConv",
        {"x": IMAGE, "w": FILTER, "b": real(4), "z": real(1, 4, 6, 6)},
        {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    Row("FusedConv without bias", "FusedConv", {"x": IMAGE, "w": FILTER}, {"activation": "Relu"}),
    Row("FusedGemm", "FusedGemm", {"a": real(S, 8), "b": real(4, 8), "c": real(4)},
        {"activation": "LeakyRelu", "activation_alpha": 0.25, "transB": 1, "alpha": 2.0}),
    Row("GemmFastGelu", "GemmFastGelu", {"x": X, "w": real(8, 4), "b": real(4)},
        oracle=lambda x, w, b: tanh_gelu(x @ w + b)),
    Row("NhwcConv", "NhwcConv", {"x": real(1, 6, 6, 2), "w": real(4, 3, 3, 2)},
        oracle=lambda x, w: np.array([[[
            [(x[0, i:i + 3, j:j + 3] * w[k]).sum() for k in range(4)]
            for j in range(4)] for i in range(4)]])),
    Row("ExpandDims", "ExpandDims", {"x": X, "axis": np.array(1, np.int32)}, constants=("axis",)),
    Row("Trilu", "Trilu", {"x": X}, {"upper": 0}),
    Row("Pad", "Pad", {"x": X, "p": np.array([0, 0, 1, 0, 0, 2])}, constants=("p",)),
]  # fmt: skip
PRODUCTS = [row if "MatMul" in row.op_type else row.holding("w", "b", "c") for row in _PRODUCTS]
