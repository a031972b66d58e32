"""Learning over several runs of an iterated graph: match where a group of M runs ends.

    L = |x[M] - q[M]|^2        x: float states, q: quantized ones, from one first state x[0] = q[0]

An error that a later run takes back costs nothing, one that adds up costs much (Lee et al. 2025,
"AccuQuant: Simulating Multiple Denoising Steps for Quantizing Diffusion Models"). The gradient is
that of the paper's figure: what reaches the state behind run m is taken to be what reaches the last
one, and each run is differentiated by itself. So memory is for one run, whatever M is. Between the
states the gradient may also be carried back by `advance` alone, with the graph's outputs held: the
scheduler's linear part, exact but for what the graph would add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from edgeq.learning.executor import Executor
from edgeq.learning.iteration import Iteration, Tensors

_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Grouping:
    """Float states at the beginning of each group.

    Attributes:
        length: M, runs of a group.
        states: `(groups, count, ...)`.
    """

    length: int
    states: Tensor


class Rollout:
    """A quantized graph and the float one, run along the same iteration."""

    def __init__(
        self,
        model: ir.Model,
        reference: ir.Model,
        iteration: Iteration,
        device: str,
        *,
        carried: bool = True,
    ) -> None:
        """Prepare both graphs.

        Args:
            model: The quantized graph.
            reference: The float graph.
            iteration: How they are run again.
            device: Where to run.
            carried: Whether the gradient is carried back by `advance`, or copied to each run.
        """
        self._iteration, self._carried = iteration, carried
        self._device = torch.device(device)
        self._quantized = Executor(model, device, exact=False)
        self._float = Executor(reference, device, exact=False)
        self._names = [str(v.name) for v in model.graph.outputs]
        self._real_names = [str(v.name) for v in reference.graph.outputs]

    def _run(
        self, state: Tensor, number: int, tensors: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Return the outputs, by the float graph's names; `tensors` None: of the float graph."""
        feeds = self._iteration.feeds(state, number)
        if tensors is None:
            return self._float.run(feeds, self._real_names)
        found = self._quantized.run(feeds, self._names, tensors)
        return {real: found[name] for name, real in zip(self._names, self._real_names, strict=True)}

    def _step(self, state: Tensor, number: int, tensors: Mapping[str, Tensor] | None) -> Tensor:
        return self._iteration.advance(state, self._run(state, number, tensors), number)

    def walk(
        self, state: Tensor, first: int, runs: int, tensors: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        """Return the states from `state` on, `runs + 1` of them; of the float graph by default."""
        states = [state]
        with torch.no_grad():
            for number in range(first, first + runs):
                states.append(self._step(states[-1], number, tensors))
        return states

    def group(self, count: int, length: int, seed: int) -> Grouping:
        """Follow the float graph, and keep its states at the beginning of each group."""
        state = self._iteration.start(count, seed).to(self._device)
        kept = []
        for first in range(0, self._iteration.runs - length + 1, length):
            kept.append(state)
            state = self.walk(state, first, length)[-1]
        return Grouping(length, torch.stack(kept))

    def gradients(
        self, state: Tensor, first: int, length: int, tensors: Mapping[str, Tensor]
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the loss of a group, relative to the states' power, and its gradients.

        Args:
            state: The first states, `(count, ...)`.
            first: Number of the first run.
            length: M.
            tensors: What initializers are replaced with; the gradients are theirs.
        """
        held = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        end = self.walk(state, first, length)[-1]
        states = self.walk(state, first, length, held)
        error, power = states[-1] - end, float(torch.sum(torch.square(end))) + _TINY
        reaching = 2 * error / power
        found: dict[str, Tensor] = {}
        for place in reversed(range(length)):
            number, before = first + place, states[place].detach()
            outputs = self._run(before, number, held)
            made = self._iteration.advance(before, outputs, number)
            parts = torch.autograd.grad(made, list(held.values()), reaching, allow_unused=True)
            for name, part in zip(held, parts, strict=True):
                if part is not None:
                    found[name] = part if name not in found else found[name] + part
            if self._carried and place:
                reaching = self._carry(before, number, outputs, reaching)
        return float(torch.sum(torch.square(error))) / power, found

    def _carry(self, state: Tensor, number: int, outputs: Tensors, reaching: Tensor) -> Tensor:
        """Return what reaches the state in front of a run whose outputs are held."""
        still = {name: output.detach() for name, output in outputs.items()}
        leaf = state.clone().requires_grad_()
        made = self._iteration.advance(leaf, still, number)
        (found,) = torch.autograd.grad(made, [leaf], reaching, allow_unused=True)
        return torch.zeros_like(state) if found is None else found

    def end_error(self, states: Sequence[Tensor], tensors: Mapping[str, Tensor] | None) -> float:
        """Return the relative squared error of the last states, over whole iterations."""
        noise = power = 0.0
        for state in states:
            runs = self._iteration.runs
            end = self.walk(state, 0, runs)[-1]
            found = self.walk(state, 0, runs, tensors or {})[-1]
            noise += float(torch.sum(torch.square(found - end)))
            power += float(torch.sum(torch.square(end)))
        return noise / (power + _TINY)


def surrogate(tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """Return a number whose gradients are these, for whoever learns what made the tensors."""
    return torch.stack([(tensors[n] * g).sum() for n, g in gradients.items()]).sum()
