"""Learn the numbers of a graph that is run again and again, by where several runs end.

before:  y = Conv(DequantizeLinear(x_q, sx, zx), DequantizeLinear(w_q, sw, 0), b)
after:   the same nodes; w_q, sw, b_q, and the scales of activations are other numbers

A denoiser, or a recurrent network, sees what it made itself: errors of single runs may add up, or
make up for each other. Here the float and the quantized graph go M runs from a common state, and
the distance between where they end is what is made small (Lee et al. 2025, "AccuQuant"). Memory is
for one run, whatever M is. `iteration` names a function that says how one run leads to the next,
such as `edgeq.diffusion.iteration:ddim`; without it nothing is learned. What is learned is kept
only if whole iterations from held-out states end nearer to the float model's.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.errors import RecipeError
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class LearnTrajectory(Pass):
    """Learn over groups of runs; behind learn-rounding, before exact forms are made.

    Attributes:
        iteration: `MODULE:FUNCTION` that makes an `edgeq.learning.iteration.Iteration` of the
            model's inputs; empty: the pass does nothing.
        group: M, runs whose end is matched.
        iterations: Steps of the optimizer.
        states: First states to learn from.
        batch: States for each step.
        carried: Carry the gradient back by the iteration's `advance`; else it is copied.
        rate: Of the codes of weights, in steps of a code; 0: they stay.
        scale_rate: Of the scales of weights, relative; 0: they stay.
        activation_rate: Of the scales of activations, relative; 0: they stay.
        bias_rate: Of biases, in steps of the result; 0: their real values stay.
    """

    iteration: str = ""
    group: int = 4
    iterations: int = 100
    states: int = 32
    batch: int = 8
    carried: bool = True
    rate: float = 0.003
    scale_rate: float = 0.001
    activation_rate: float = 0.001
    bias_rate: float = 0.003

    def run(self, model: ir.Model, context: Context) -> int:
        """Change initializers; return how many, 0 where nothing learned was better."""
        if not self.iteration:
            return 0
        try:
            from edgeq.learning.trajectory import Rates, learn, open_iteration
        except ImportError as error:
            raise RecipeError(
                f"pass {self.name()} needs torch ({error}): pip install edgeq[torch]"
            ) from error
        assert context.reference is not None
        return learn(
            model,
            context,
            open_iteration(self.iteration, context.reference),
            rates=Rates(self.rate, self.scale_rate, self.activation_rate, self.bias_rate),
            length=self.group,
            iterations=self.iterations,
            states=self.states,
            batch=self.batch,
            carried=self.carried,
        )
