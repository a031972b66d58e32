"""Autoregressive decoding as an iteration: each run reads the token that the one before chose.

    state = [the window of tokens | log-probabilities that run 0, 1, ... gave to its next token]

Both graphs choose the likeliest token of their own, so what the quantized one says wrongly it has
to go on from. Tokens are counted in steps of `UNIT`: a float32 holds them exactly, and of the
distance between two states it is the log-probabilities that count. No gradient passes through a
choice; what reaches a run is the error of its log-probabilities, given the tokens it was led to.
"""

import torch
from torch import Tensor

from edgeq.learning.iteration import Tensors

UNIT = 2.0**-20


class Decoding:
    """A language model on a window of tokens that moves on by one with each run.

    >>> Decoding("tokens", "logits", torch.tensor([[1, 2, 3]]), classes=10, runs=4).runs
    4
    """

    def __init__(
        self, tokens: str, logits: str, prompts: Tensor, *, classes: int, runs: int
    ) -> None:
        """Say what is decoded.

        Args:
            tokens: Name of the input that takes the window, int64 `(count, length)`.
            logits: Name of the output `(count, length, classes)`; the last row is the next token's.
            prompts: Windows to begin with, int64 `(prompts, length)`; a seed chooses among them.
            classes: How many tokens there are.
            runs: How many tokens are decoded.
        """
        self.runs = runs
        self._tokens, self._logits, self._prompts = tokens, logits, prompts
        self._length, self._classes = prompts.shape[1], classes

    def start(self, count: int, seed: int) -> Tensor:
        """Return prompts, and nothing said yet."""
        order = torch.randperm(len(self._prompts), generator=torch.Generator().manual_seed(seed))
        chosen = self._prompts[order[torch.arange(count) % len(order)]]
        silence = torch.zeros(count, self.runs * self._classes)
        return torch.cat([chosen.float() * UNIT, silence], 1)

    def feeds(self, state: Tensor, number: int) -> dict[str, Tensor]:
        """Return the window."""
        return {self._tokens: torch.round(state[:, : self._length] / UNIT).long()}

    def advance(self, state: Tensor, outputs: Tensors, number: int) -> Tensor:
        """Move the window on by the likeliest token, and keep how likely each was."""
        said = torch.log_softmax(outputs[self._logits][:, -1], 1)
        token = said.argmax(1, keepdim=True).to(state.dtype) * UNIT
        window, history = state[:, : self._length], state[:, self._length :]
        before, after = number * self._classes, (number + 1) * self._classes
        parts = (window[:, 1:], token, history[:, :before], said, history[:, after:])
        return torch.cat(parts, 1)
