"""Normalisations, with residuals, embeddings and activations."""

import numpy as np

from tests.fused_operators.row import B, Row, S, group_norm, real, silu

X = real(B, S, 8)
GAMMA, BETA = real(8, seed=1), real(8, seed=2)
SKIP = real(B, S, 8, seed=3)
AFFINE = {"gamma": GAMMA, "beta": BETA}
NHWC = real(1, 4, 4, 8)
IDS = np.random.default_rng(5).integers(0, 10, (B, S)).astype(np.int32)
EMBEDDINGS = {"word": real(10, 8), "position": real(10, 8, seed=1), "segment": real(2, 8)}
_ROWS = [
    Row("SkipLayerNormalization", "SkipLayerNormalization", {"x": X, "skip": SKIP} | AFFINE),
    Row("SkipLayerNormalization, sum read", "SkipLayerNormalization",
        {"x": X, "skip": SKIP} | AFFINE | {"bias": real(8)}, {"epsilon": 1e-3},
        outputs=("y", "", "", "s")),
    Row("SkipLayerNormalization without beta", "SkipLayerNormalization",
        {"x": X, "skip": SKIP, "gamma": GAMMA}),
    Row("SkipLayerNormalization, one skip", "SkipLayerNormalization",
        {"x": X, "skip": SKIP[:1]} | AFFINE),
    Row("LayerNormalization before opset 17", "LayerNormalization", {"x": X} | AFFINE,
        {"axis": -1, "epsilon": 1e-3}, "", 11),
    Row("SimplifiedLayerNormalization", "SimplifiedLayerNormalization", {"x": X, "w": GAMMA},
        {"epsilon": 1e-3, "axis": -1, "stash_type": 1}, "", 14),
    Row("SkipSimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
        {"x": X, "skip": SKIP, "w": GAMMA, "bias": real(8)}, {"epsilon": 1e-3},
        outputs=("y", "", "", "s")),
    Row("RMSNormalization", "RMSNormalization", {"x": X, "w": GAMMA}, {}, "", 23),
    Row("RMSNormalization, two axes", "RMSNormalization", {"x": X, "w": real(S, 8)},
        {"axis": 1, "epsilon": 0.125}, "", 23),
    Row("RMSNormalization, negative axis", "RMSNormalization", {"x": X, "w": real(S, 1)},
        {"axis": -2}, "", 24),
    Row("GroupNormalization by group", "GroupNormalization",
        {"x": real(B, 8, 4, 4), "gamma": GAMMA[:2], "beta": BETA[:2]}, {"num_groups": 2}, "", 18),
    Row("GroupNormalization by channel", "GroupNormalization",
        {"x": real(B, 8, 4, 4)} | AFFINE, {"num_groups": 2, "epsilon": 0.5}, "", 21),
    Row("GroupNorm", "GroupNorm", {"x": NHWC} | AFFINE, {"groups": 4, "activation": 0},
        oracle=lambda x, gamma, beta: group_norm(x, gamma, beta, 4, 1e-5)),
    Row("GroupNorm with SiLU", "GroupNorm", {"x": NHWC} | AFFINE,
        {"groups": 2, "activation": 1, "epsilon": 0.5},
        oracle=lambda x, gamma, beta: silu(group_norm(x, gamma, beta, 2, 0.5))),
    Row("GroupNorm, channels first", "GroupNorm", {"x": real(1, 8, 4, 4)} | AFFINE,
        {"groups": 2, "activation": 0, "channels_last": 0},
        oracle=lambda x, gamma, beta: np.moveaxis(
            group_norm(np.moveaxis(x, 1, -1), gamma, beta, 2, 1e-5), -1, 1)),
    Row("SkipGroupNorm", "SkipGroupNorm",
        {"x": NHWC} | AFFINE | {"skip": real(1, 4, 4, 8, seed=1), "bias": real(8)},
        {"groups": 4, "activation": 1}, outputs=("y", "s"),
        oracle=lambda x, gamma, beta, skip, bias: (
            silu(group_norm(x + skip + bias, gamma, beta, 4, 1e-5)), x + skip + bias)),
    Row("SkipGroupNorm, skip per sample", "SkipGroupNorm",
        {"x": NHWC} | AFFINE | {"skip": real(1, 8)}, {"groups": 4, "activation": 0},
        oracle=lambda x, gamma, beta, skip: group_norm(x + skip, gamma, beta, 4, 1e-5)),
    Row("EmbedLayerNormalization", "EmbedLayerNormalization",
        {"ids": IDS, "segments": IDS % 2} | EMBEDDINGS | AFFINE, {"epsilon": 1e-3},
        constants=tuple(EMBEDDINGS), outputs=("y", "", "s")),
    Row("EmbedLayerNormalization, mask and positions", "EmbedLayerNormalization",
        {"ids": IDS, "segments": None, "word": EMBEDDINGS["word"],
         "position": EMBEDDINGS["position"], "segment": None} | AFFINE
        | {"mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], np.int32), "places": IDS[::-1]},
        {"mask_index_type": 1}, constants=("word", "position"), outputs=("y", "int_mask")),
]  # fmt: skip
NORMALIZATIONS = [row.holding("gamma", "beta", "w", "bias") for row in _ROWS]
