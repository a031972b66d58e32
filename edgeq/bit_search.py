"""From measured noise to a plan: one format for each layer, within the budgets.

First every layer is rounded alone, its noise counted as if that of all layers added up. Where
widths are narrow, it does not quite: errors of layers in a row cancel, or make each other worse.
So the layers are measured again around the plan that was found, each in all its formats with the
weights of the others as the plan has them, and planned again. Of all plans the one whose own noise
is least counts. Where there is a choice for what layers read, the first plan is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeq.bit_formats import Float64, Formats
from edgeq.bit_measure import NoiseMeter, losses, option_trials
from edgeq.bit_program import BitProgram, solve


@dataclass(frozen=True, eq=False)
class Plan:
    """What was found.

    Attributes:
        chosen: The number of each layer's option.
        alone: The noise of each layer in each of its options, rounded alone: (layers, options).
        together: The noise of all layers: with all weights rounded, or added up where no round was.
    """

    chosen: tuple[int, ...]
    alone: Float64
    together: float


def search(
    found: Formats,
    program: Callable[[Float64], BitProgram],
    meter: NoiseMeter,
    *,
    loss: str,
    rounds: int,
) -> Plan:
    """Return the best plan.

    Args:
        found: What there is to choose from.
        program: What noise, (layers, options), makes of the budgets.
        meter: Measures layers.
        loss: `mse` or `kl`.
        rounds: How many plans to measure around, at most; 0: the first is taken as it is.

    Raises:
        RecipeError: The budgets cannot be met.
    """
    trials = option_trials(found)
    alone = losses(meter.measure(trials), loss)
    chosen = solve(program(alone))
    if rounds == 0 or len(set(found.kinds)) > 1:
        added = float(alone[np.arange(len(chosen)), chosen].sum())
        return Plan(chosen, alone, added)
    best: Plan | None = None
    seen = set()
    for _ in range(rounds):
        seen.add(chosen)
        around = losses(meter.measure(trials, meter.rounded_model(found, chosen)), loss)
        together = float(around[0, chosen[0]])  # every layer has the plan among its trials
        if best is None or together < best.together:
            best = Plan(chosen, alone, together)
        chosen = solve(program(around))
        if chosen in seen:
            break
    assert best is not None
    return best
