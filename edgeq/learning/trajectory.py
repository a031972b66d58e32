"""Learning the numbers of an iterated graph from where groups of its runs end."""

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeq.checkpoint import digest
from edgeq.errors import DataError
from edgeq.feeds import input_specs
from edgeq.graph import digest as model_digest
from edgeq.learning.iteration import Iteration
from edgeq.learning.parameters import Parameters
from edgeq.learning.parameters import Rates as Rates
from edgeq.learning.rollout import Rollout, surrogate
from edgeq.learning.rounding import follow, open_parameters
from edgeq.learning.training import reproducible, train
from edgeq.passing import Context
from edgeq.user_code import find_function

STAGE = "learn trajectory"
HELD = 8  # first states that learning never sees


def open_iteration(text: str, model: ir.Model) -> Iteration:
    """Return the iteration that `MODULE:FUNCTION` makes of the model's inputs.

    Raises:
        DataError: There is none.
    """
    function = find_function(text)
    try:
        made = function(input_specs(model))
    except Exception as error:  # the user's code can raise anything
        raise DataError(f"{text} failed: {type(error).__name__}: {error}") from error
    if not all(hasattr(made, name) for name in ("runs", "start", "feeds", "advance")):
        raise DataError(
            f"{text} returned {type(made).__name__}: an iteration has runs, start, feeds and"
            " advance, see edgeq.learning.iteration"
        )
    return made  # type: ignore[return-value]  # the attributes were looked at


def learn(
    model: ir.Model,
    context: Context,
    iteration: Iteration,
    *,
    rates: Rates,
    length: int,
    iterations: int,
    states: int,
    batch: int,
    carried: bool,
) -> int:
    """Learn codes, biases and scales; keep them if held-out iterations end nearer to float.

    Args:
        model: A graph of QuantizeLinear and DequantizeLinear pairs; its initializers change.
        context: With the float model and what weights were rounded from.
        iteration: How the graph is run again.
        rates: How fast.
        length: M, runs of a group.
        iterations: Steps of the optimizer.
        states: First states to learn from.
        batch: States for each step.
        carried: As for `Rollout`.

    Returns:
        How many initializers are learned; 0 where that made nothing better.

    Raises:
        DataError: The iteration is shorter than a group.
    """
    assert context.reference is not None, "learning compares with the float model"
    if not 1 <= length <= iteration.runs:
        raise DataError(f"groups of {length} runs: the iteration has {iteration.runs}")
    parameters = open_parameters(model.graph, context, rates)
    if not parameters.leaves:
        return 0
    rollout = Rollout(model, context.reference, iteration, context.device, carried=carried)
    options = (rates, length, iterations, states, batch, carried, context.seed, context.device)
    sources = (model_digest(model), model_digest(context.reference))
    with reproducible():
        held = list(iteration.start(HELD, context.seed + 1).split(batch))
        before = rollout.end_error(held, _tensors(parameters))
        groups = rollout.group(states, length, context.seed)

        def loss(number: int) -> Tensor:
            generator = np.random.default_rng([context.seed, number])
            place = int(generator.integers(len(groups.states)))
            rows = generator.permutation(states)[:batch]
            made = parameters.tensors()
            _, gradients = rollout.gradients(
                groups.states[place][torch.from_numpy(rows)], place * length, length, made
            )
            return surrogate(made, gradients)

        train(
            parameters.leaves,
            parameters.rates,
            loss,
            parameters.keep_within_limits,
            iterations=iterations,
            checkpoint=context.checkpoint,
            # The float states stand for the iteration, which is code of the user's.
            key=digest((STAGE, repr(options), *sources), {"states": groups.states.cpu().numpy()}),
            progress=lambda done: context.progress(STAGE, done, iterations),
        )
        after = rollout.end_error(held, _tensors(parameters))
    kept = after < before
    context.notes.append((
        "learn-trajectory",
        f"relative squared error where {HELD} held-out iterations end: {before:.5f}, learned"
        f" {after:.5f} ({iterations} iterations of {batch} groups of {length} runs)"
        + ("" if kept else "; not kept"),
    ))  # fmt: skip
    if not kept:
        return 0
    follow(model.graph, context, parameters.commit())
    return len(parameters.leaves)


def _tensors(parameters: Parameters) -> dict[str, Tensor]:
    """Return what the leaves make, without gradients."""
    with torch.no_grad():
        return parameters.tensors()
