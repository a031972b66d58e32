"""Adam on learned parameters, in a seeded order, resumable to the same bytes.

One thread: sums are split the same way everywhere, and whoever else computes does not stall it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.checkpoint import Checkpoint

Loss = Callable[[int], Tensor]
_SAVES = 20  # how often a run is kept


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute with one thread, and leave torch as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    leaves: Mapping[str, Tensor],
    rates: Mapping[str, float],
    loss: Loss,
    after: Callable[[], None],
    *,
    iterations: int,
    checkpoint: Checkpoint | None = None,
    key: str = "",
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Change the leaves, in place.

    The rates fall to 0 along half a cosine.

    Args:
        leaves: What is learned, by name.
        rates: Adam's rate of each.
        loss: Returns the loss of the iteration of a number.
        after: Called after each step.
        iterations: How many.
        checkpoint: Where the state is kept; an interrupted run goes on from there.
        key: Of the checkpoint.
        progress: Called with the number of finished iterations.
    """
    groups = [{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()]
    if not groups:
        return
    optimizer = torch.optim.Adam(groups, eps=1e-12)
    kept = None if checkpoint is None else checkpoint.load(key)
    first = 0 if kept is None else _restore(kept, leaves, optimizer)
    every = max(1, iterations // _SAVES)
    for number in range(first, iterations):
        if checkpoint is not None and number % every == 0 and number > first:
            checkpoint.save(key, _state(leaves, optimizer, number))
        share = 0.5 * (1 + math.cos(math.pi * number / iterations))
        for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad(set_to_none=True)
        loss(number).backward()
        optimizer.step()
        after()
        progress(number + 1)
    if checkpoint is not None:
        checkpoint.save(key, _state(leaves, optimizer, iterations))


def _state(
    leaves: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, number: int
) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"iteration": np.array(number)}
    for place, leaf in enumerate(leaves.values()):
        arrays[f"leaf{place}"] = leaf.detach().cpu().numpy()
        for word, value in optimizer.state[leaf].items():
            arrays[f"{word}{place}"] = value.detach().cpu().numpy()
    return arrays


def _restore(
    kept: Mapping[str, NDArray[Any]],
    leaves: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    for place, leaf in enumerate(leaves.values()):
        with torch.no_grad():
            leaf.copy_(torch.from_numpy(np.array(kept[f"leaf{place}"])))
        words = [name.removesuffix(str(place)) for name in kept if name.endswith(str(place))]
        optimizer.state[leaf] = {
            word: torch.from_numpy(np.array(kept[f"{word}{place}"]))
            for word in ("exp_avg", "exp_avg_sq", "step")
            if word in words
        }
        for word in ("exp_avg", "exp_avg_sq"):
            if word in optimizer.state[leaf]:
                optimizer.state[leaf][word] = optimizer.state[leaf][word].to(leaf.device)
    return int(kept["iteration"])
