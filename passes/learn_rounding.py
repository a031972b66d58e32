"""Learn the codes of weights, biases and scales, against the float model.

before:  y = Conv(DequantizeLinear(x_q, sx, zx), DequantizeLinear(w_q, sw, 0), b)
after:   the same nodes; w_q, sw, b_q, and the scales of activations are other numbers

Rounding each weight to the nearest code is not what makes the smallest error behind the layer
(Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"), and errors of
layers can make up for each other (Li et al. 2021, "BRECQ"). Each code has a latent real number of
steps that is rounded in every forward pass, with a gradient as if it were not (Esser et al. 2020,
"Learned Step Size Quantization"), so nothing differs between what is learned and what is deployed.
Learning begins at the codes that are there. Where rounding ruins the model, errors in front hide
those behind: then block by block first, everything together afterwards.

The samples are few: every eighth is held out, and what is learned is kept only where the held-out
loss falls. The result depends on the seed and on torch's version, not on the number of cores.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.errors import RecipeError
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class LearnRounding(Pass):
    """Learn weights, biases and scales; behind quantize-embeddings, before exact forms are made.

    Attributes:
        scope: `model`: everything together; `block`: one residual block, half a transformer's
            block, or two layers of a chain at a time.
        iterations: Steps of the optimizer, of each block.
        batch: Samples for each.
        rate: Of the codes of weights, in steps of a code; 0: they stay.
        scale_rate: Of the scales of weights, relative; 0: they stay.
        activation_rate: Of the scales of activations, relative; 0: they stay.
        bias_rate: Of biases, in steps of the result; 0: their real values stay.
        outputs: How much the model's outputs count, beside 1 for the mean of all tensors.
    """

    scope: str = "model"
    iterations: int = 400
    batch: int = 16
    rate: float = 0.01
    scale_rate: float = 0.003
    activation_rate: float = 0.003
    bias_rate: float = 0.01
    outputs: float = 1.0

    def run(self, model: ir.Model, context: Context) -> int:
        """Change initializers; return how many, 0 where nothing learned was better."""
        if self.scope not in ("model", "block"):
            raise RecipeError(f"pass {self.name()}: scope = {self.scope!r}; write model or block")
        try:
            from edgeq.learning.rounding import Rates, learn
        except ImportError as error:
            raise RecipeError(
                f"pass {self.name()} needs torch ({error}): pip install edgeq[torch]"
            ) from error
        return learn(
            model,
            context,
            rates=Rates(self.rate, self.scale_rate, self.activation_rate, self.bias_rate),
            scope="block" if self.scope == "block" else "model",
            iterations=self.iterations,
            batch=self.batch,
            outputs=self.outputs,
        )
