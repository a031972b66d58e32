"""Graphs that are run again and again on what they made: how one run leads to the next.

    state -> feeds(state, n) -> the graph -> advance(state, outputs, n) -> the next state

A diffusion model is told the timestep and predicts noise, of which a scheduler makes the next
sample (`edgeq.diffusion.iteration`); a recurrent one is fed its own output (`Feedback`), a language
model the token that it chose (`edgeq.learning.decoding`).
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from edgeq.feeds import InputSpec

Tensors = Mapping[str, Tensor]


class Iteration(Protocol):
    """How a graph is run again and again.

    Attributes:
        runs: How often, from the first state to the last.
    """

    runs: int

    def start(self, count: int, seed: int) -> Tensor:
        """Return first states, `(count, ...)`, float32; the same for the same seed."""

    def feeds(self, state: Tensor, number: int) -> dict[str, Tensor]:
        """Return what run `number` is fed, of states `(count, ...)`."""

    def advance(self, state: Tensor, outputs: Tensors, number: int) -> Tensor:
        """Return the states after run `number`; gradients pass to `state` and to `outputs`.

        It must depend on its arguments alone: runs are repeated, in any order.
        """


MakeIteration = Callable[[tuple[InputSpec, ...]], Iteration]


class Feedback:
    """A recurrent graph: an output is the state, and an input of the next run.

    >>> Feedback("h", "h_next", torch.zeros(1, 4), runs=8).runs
    8
    """

    def __init__(
        self, state: str, output: str, first: Tensor, *, runs: int, inputs: Tensors | None = None
    ) -> None:
        """Say what is fed back.

        Args:
            state: Name of the input that takes the state.
            output: Name of the output that is the next one.
            first: Where states begin, `(count, ...)`; a seed chooses among them.
            runs: How often the graph is run.
            inputs: What other inputs take, by name: `(runs, ...)`, one row for each run.
        """
        self.runs = runs
        self._state, self._output, self._first = state, output, first
        self._inputs = dict(inputs or {})

    def start(self, count: int, seed: int) -> Tensor:
        """Return rows of the first states."""
        order = torch.randperm(len(self._first), generator=torch.Generator().manual_seed(seed))
        return self._first[order[torch.arange(count) % len(order)]]

    def feeds(self, state: Tensor, number: int) -> dict[str, Tensor]:
        """Return the state, and the rows of other inputs for this run."""
        rows = {n: a[number].to(state.device) for n, a in self._inputs.items()}
        shared = {n: r.expand(len(state), *r.shape) if r.ndim else r for n, r in rows.items()}
        return {self._state: state, **shared}

    def advance(self, state: Tensor, outputs: Tensors, number: int) -> Tensor:
        """Return the output."""
        return outputs[self._output]
