"""RotaryEmbedding: halves or neighbours, tables or values by token, parts of a head."""

from typing import Any

import numpy as np

from tests.fused_operators.attention import flat, heads
from tests.fused_operators.row import OPSET, B, Row, S, real

ANGLES = np.random.default_rng(7).normal(size=(16, 4)).astype(np.float32)
TABLES = {"cos": np.cos(ANGLES), "sin": np.sin(ANGLES)}
PLACES = {"ids": np.random.default_rng(8).integers(0, 16, (B, S))}
BY_TOKEN = {"cos": real(B, S, 4), "sin": real(B, S, 4, seed=1)}
APART, TOGETHER = {"x": heads(3, S, 8)}, {"x": flat(3, S, 8)}


def rotary(rule: str, inputs: Any, domain: str = "", **attributes: Any) -> Row:
    opset = OPSET if domain else 23
    constants = ("cos", "sin") if "ids" in inputs else ()
    return Row(f"RotaryEmbedding, {rule}", "RotaryEmbedding", inputs, attributes, domain, opset,
               constants=constants)  # fmt: skip


def of_ort(x: Any, ids: Any = PLACES) -> Any:
    return x | ids | TABLES


ROTARY = [
    rotary(f"{rule}, {interleaved}", inputs, domain, interleaved=interleaved, **more)
    for interleaved in (0, 1)
    for rule, inputs, domain, more in (
        ("by head", APART | TABLES | PLACES, "", {}),
        ("flat", TOGETHER | TABLES | PLACES, "", {"num_heads": 3}),
        ("by token", APART | BY_TOKEN, "", {}),
        ("by token, flat", TOGETHER | BY_TOKEN, "", {"num_heads": 3}),
        ("partial", {"x": heads(3, S, 12)} | TABLES | PLACES, "", {"rotary_embedding_dim": 8}),
        ("partial, flat", {"x": flat(3, S, 12)} | TABLES | PLACES, "",
         {"rotary_embedding_dim": 8, "num_heads": 3}),
        ("of com.microsoft by head", of_ort(APART), "com.microsoft", {}),
        ("of com.microsoft, flat", of_ort(TOGETHER), "com.microsoft", {}),
        ("of com.microsoft, offset", of_ort(APART, {"ids": np.array([3])}), "com.microsoft", {}),
        ("of com.microsoft, flat, offset", of_ort(TOGETHER, {"ids": np.array([3])}),
         "com.microsoft", {}),
        ("of com.microsoft, partial", of_ort({"x": flat(3, S, 12)}), "com.microsoft",
         {"rotary_embedding_dim": 8, "num_heads": 3}),
    )
]  # fmt: skip
