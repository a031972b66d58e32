"""Train a small language model, compile it, and let the bundle write.

    python samples/language/train.py         # two minutes; needs edgeq[torch,transformers]

An OPT model learns the bytes of Python's language reference, the text behind `help()`, which comes
with every CPython. Perplexity is measured on the last tenth, which is held out. The float model and
the bundle, in `build/language`, continue one prompt, each time by the likeliest byte.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

import edgeq
from edgeq.language import save_windows, token_windows

LENGTH = 128  # bytes that the model sees
PROMPT = b"The following "


class Logits(nn.Module):
    """Bytes [batch, length] -> logits of the next ones [batch, length, 256]."""

    def __init__(self) -> None:
        super().__init__()
        config = OPTConfig(
            vocab_size=256, hidden_size=64, word_embed_proj_dim=64, ffn_dim=256, dropout=0.0,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH,
        )  # fmt: skip
        self.opt = OPTForCausalLM(config)

    def forward(self, ids: Tensor) -> Any:  # noqa: ANN401 # transformers has no types
        """Return the logits."""
        return self.opt(ids, use_cache=False).logits


def train(model: Logits, text: Tensor, steps: int) -> None:
    """Train on windows from anywhere in the text."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
    for _ in range(steps):
        begins = torch.randint(len(text) - LENGTH, (16,)).tolist()
        windows = torch.stack([text[i : i + LENGTH + 1] for i in begins])
        logits = model(windows[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"loss after {steps} steps: {loss.item():.3f}")


def write(logits: Callable[[NDArray[np.int64]], NDArray[Any]], count: int = 100) -> str:
    """Continue the prompt; `logits` takes bytes [1, length]."""
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(logits(np.array([ids], np.int64))[0, -1].argmax()))
    return bytes(ids).decode(errors="replace")


def main() -> None:
    """Train, export, compile, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--output", type=Path, default=Path("build/language"))
    given = parser.parse_args()
    text = np.frombuffer("\n\n".join(topics[t] for t in sorted(topics)).encode(), np.uint8)
    text, held_out = np.split(text, [len(text) * 9 // 10])
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as fast for tensors of this size
    model = Logits()
    train(model, torch.from_numpy(text.astype(np.int64)), given.steps)

    given.output.mkdir(parents=True, exist_ok=True)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=LENGTH)
    example = {"ids": torch.zeros(2, 64, dtype=torch.int64)}
    exported = edgeq.export(model, example, {"ids": {0: batch, 1: length}})
    save_windows(given.output / "evaluation.npz", held_out[: 100 * LENGTH], LENGTH)
    bundle = edgeq.compile(
        exported, calibration=list(token_windows(text, LENGTH, stride=len(text) // 64)),
        evaluation=given.output / "evaluation.npz", metric="perplexity",
        max_dim=LENGTH, output=given.output / "bundle", force=True,
    )  # fmt: skip
    found, session = bundle.manifest.metrics, bundle.session()
    print(f"perplexity: {found['perplexity_float']:.4f} -> {found['perplexity']:.4f} per byte")
    print("float: ", write(lambda ids: model(torch.from_numpy(ids)).numpy(force=True)))
    print("bundle:", write(lambda ids: session.run(None, {"ids": ids})[0]))


if __name__ == "__main__":
    main()
